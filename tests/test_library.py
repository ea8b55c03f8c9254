"""The image level from Python: what the names of the package load, `fit_darkener`, and `NightView` in one line."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import darkening
from darkening import (
    CameraConfig,
    Darkener,
    DarkenerSettings,
    DarkeningLoss,
    NightView,
    RequestConfig,
    fit_darkener,
    load_darkener,
    photograph,
)
from darkening.heuristics import HEURISTICS

HEAVY = ("tyro", "cattrs", "yaml", "tensorboard", "matplotlib", "filelock", "torchvision")
DAY = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = DarkenerSettings(width=4)


class Encoder(nn.Module):
    """Two maps, behind a BatchNorm that training mode would change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, 6, 3)

    def forward(self, images):
        shallow = self.first(images)
        return [shallow, self.second(shallow)]


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_names_of_the_package_load_nothing_that_only_scripts_need():
    program = f"""
import sys
import darkening
assert "torch" not in sys.modules, "import darkening alone"
for name in (name for names in darkening.PUBLIC.values() for name in names):
    getattr(darkening, name)
import minmax
print([name for name in {HEAVY} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="nothing"):
        _ = darkening.nothing


def test_training_lowers_the_similarity_and_changes_nothing_that_it_was_given():
    encoder = Encoder().train()
    start = Darkener(SMALL)
    before, given = state_of(encoder), state_of(start)
    seen = []
    found = fit_darkener(
        *(start, [DAY[:4], DAY[4:]], encoder),
        epochs=6,
        lr=3e-2,
        clip=1.0,
        request=RequestConfig((0.2, 0.2)),
        loss=DarkeningLoss(similarity=1.0, exposure=0.0, colour=0.0, total_variation=0.0),
        progress=lambda epoch, step, losses: seen.append((epoch, step, losses["similarity"])),
    )
    assert [(epoch, step) for epoch, step, _ in seen] == [(step // 2, step) for step in range(12)]
    assert seen[-1][2] < seen[0][2] - 0.02
    assert equal(state_of(encoder), before) and encoder.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())
    assert equal(state_of(start), given) and not equal(state_of(found), given)
    assert not found.training and found.darken(DAY, 0.1).shape == DAY.shape


@pytest.mark.parametrize("view", ["pixels", "scene", "camera"])
def test_equal_seeds_give_equal_darkeners_of_every_view_and_the_global_generator_is_left_alone(view):
    settings = DarkenerSettings(view=view)
    state = torch.random.get_rng_state()
    first, again, other = (
        state_of(fit_darkener(settings, [DAY], Encoder().eval(), epochs=1, seed=seed)) for seed in (0, 0, 1)
    )
    torch.manual_seed(1)
    assert equal(first, again) and not equal(first, other)
    torch.random.set_rng_state(state)
    fit_darkener(settings, [DAY], lambda images: [images], epochs=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_with_labels_and_clips_are_understood():
    loader = DataLoader(TensorDataset(DAY, torch.zeros(8)), batch_size=4)
    plain = fit_darkener(SMALL, [DAY[:4], DAY[4:]], Encoder(), epochs=2)
    assert equal(state_of(fit_darkener(SMALL, loader, Encoder(), epochs=2)), state_of(plain))
    shapes = []

    def encoder(clips):
        shapes.append(tuple(clips.shape))
        return [clips.mean(dim=(3, 4))]

    fit_darkener(SMALL, [DAY.view(2, 4, 3, 16, 16).transpose(1, 2)], encoder, epochs=1)
    assert shapes == [(2, 3, 4, 16, 16)] * 2


def test_what_was_asked_for_in_training_is_kept():
    found = fit_darkener(SMALL, [DAY], None, epochs=1, request=RequestConfig((0.1, 0.3)))
    assert found.trained_on == RequestConfig((0.1, 0.3))
    with pytest.raises(ValueError, match=r"exposure 0.0 0.2: expected 0.1 to 0.3, what the darkener was trained on"):
        NightView(found, exposure=(0.0, 0.2))


@pytest.mark.parametrize(
    ("settings", "images", "encoder", "options", "message"),
    [
        (SMALL, [], Encoder(), {}, "day_images is empty"),
        (SMALL, iter([DAY]), Encoder(), {"epochs": 2}, "day_images can be gone through only once"),
        (SMALL, [DAY * 255], Encoder(), {}, r"day_images: expected intensities in \[0, 1\], found .* to 255"),
        (SMALL, [(DAY * 255).byte()], Encoder(), {}, r"day_images: expected batches .*, found torch.uint8 \(8, 3"),
        (SMALL, [DAY[:, :1]], Encoder(), {}, r"found torch.float32 \(8, 1, 16, 16\)"),
        (SMALL, ["a.png"], Encoder(), {}, "day_images: expected batches .*, found str"),
        (SMALL, [DAY], Encoder(), {"epochs": 0}, "epochs 0: expected 1 or more"),
        (SMALL, [DAY], Encoder(), {"lr": 0.0}, "lr 0.0: expected more than 0"),
        (SMALL, [DAY], lambda images: [images * float("nan")], {}, r"lr .*: step 0 is not finite \(.*similarity nan"),
        (DarkenerSettings(view="camera"), [DAY], None, {}, "encoder None: a darkener of view camera learns"),
        (
            *(DarkenerSettings(view="scene"), [DAY], Encoder(), {"loss": DarkeningLoss()}),
            "exposure_patch 1: expected 0 for view scene",
        ),
    ],
)
def test_what_cannot_train_is_refused_by_the_name_of_the_argument(settings, images, encoder, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit_darkener(settings, images, encoder, **options)
    assert "--" not in str(caught.value)


def test_a_night_view_by_name_draws_from_torchs_own_generator_unless_one_is_given():
    night = NightView("gamma", exposure=(0.05, 0.4), camera=CameraConfig(share=1))
    assert night.night is HEURISTICS["gamma"]
    torch.manual_seed(3)
    first, second = night(DAY), night(DAY)
    torch.manual_seed(3)
    assert torch.equal(night(DAY), first) and not torch.equal(first, second)
    assert torch.equal(night(DAY, torch.Generator().manual_seed(3)), first)


def test_a_shipped_darkener_is_a_night_view_and_is_not_changed():
    darkener = load_darkener("night-to-look-at")
    night = NightView(darkener, exposure=(0.1, 0.1), noise=0.0)
    assert night(DAY).shape == DAY.shape and all(parameter.requires_grad for parameter in darkener.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("moon",), "night 'moon': expected a darkener, a function, or one of day, augmix, gamma, brightness"),
        (("gamma", (0.4, 0.05)), "exposure 0.4 0.05: expected two numbers"),
        (("gamma", (0.0, 0.2), -1.0), "noise -1.0: expected 0 or more"),
        (("gamma", (0.0, 0.2), 0.0, 0), "cell 0: expected 1 or more"),
    ],
)
def test_impossible_night_views_are_value_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        NightView(*arguments)
    with pytest.raises(ValueError, match="a camera of its own"):
        NightView(Darkener(DarkenerSettings(view="camera")), camera=CameraConfig(share=1))


def test_a_darkener_takes_a_number_as_exposure():
    darkener = load_darkener("starting-point")
    assert torch.equal(darkener.darken(DAY, 0.2), darkener.darken(DAY, torch.full((8, 1, 1, 1), 0.2)))


def test_photograph_is_the_camera_alone():
    draws, noise = torch.zeros(8, 11), torch.zeros_like(DAY)
    assert photograph(DAY, CameraConfig(share=1), draws, noise).shape == DAY.shape

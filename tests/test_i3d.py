"""Networks for clips: the authors' numbers, their checkpoints and torchvision's, inflation, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from clip_optim import ClipOptim
from clips import frames_of_clip
from i3d import GlobalAverage, HalveFrames, build_i3d, inflate
from recogniser import (
    RELEASED_CLASSES,
    RecogniserSettings,
    build_recogniser,
    expected_normalization,
    load_recogniser,
    save_recogniser,
)
from reference_weights import assert_names, assert_numbers, batch_norm, filled, kind_of, linear, rand, tensors_of

from minmax.byol import MomentumPair, byol_loss
from minmax.features import InputNormalization
from minmax.runtime.checkpoints import load_strictly
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError

EXPECTED = json.loads((Path(__file__).parent / "action_numbers.json").read_text())
SMALL = RecogniserSettings("i3d_resnet18", ("sit", "stand"), width=4)


def res_i3d_shapes():
    """Names and shapes of the authors' Res_I3D: ResNet-50's, with filters that reach over time."""
    spans_time = {(1, 0), (1, 1), (1, 2), (2, 0), (2, 2), (3, 0), (3, 2), (3, 4), (4, 1)}
    shapes = {}
    for name, tensor in torchvision.models.resnet50(weights=None).state_dict().items():
        shape = tuple(tensor.shape)
        if len(shape) == 4:
            where = name.split(".")
            deep = name == "conv1.weight"
            frames = 5 if deep else 1
            if where[0].startswith("layer") and where[2] == "conv1":
                frames = 3 if (int(where[0][-1]), int(where[1])) in spans_time else 1
            shape = (*shape[:2], frames, *shape[2:])
        if not name.startswith("fc."):
            shapes[name] = shape
    return shapes | linear("cls_head.fc_cls", 11, 2048)


def released_shapes(adapted):
    """Names and shapes of a released file without `module.`."""
    network = res_i3d_shapes()
    if not adapted:
        return network
    shapes = {f"{part}.{name}": shape for part in ("encoder_q", "encoder_k") for name, shape in network.items()}
    for head, inputs in (("head_q", 2048), ("head_k", 2048), ("pred", 64)):
        shapes |= linear(f"{head}.fc1", 64, inputs) | batch_norm(f"{head}.bn1", 64) | linear(f"{head}.fc2", 64, 64)
    return shapes


CHECKPOINTS = {"daytime": (False, "action_daytime_res_i3d"), "adapted": (True, "action_res_i3d_byol")}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_released_file_loads_strictly(case, tmp_path):
    adapted, name = CHECKPOINTS[case]
    assert_names(released_shapes(adapted), EXPECTED["checkpoints"][name])
    tensors = tensors_of(released_shapes(adapted))
    torch.save({"epoch": 10, "state_dict": tensors, "optimizer": {}}, tmp_path / "action_ep-0010.pth")
    network, settings = load_recogniser(tmp_path / "action_ep-0010.pth")
    assert settings == RecogniserSettings("i3d_resnet50", RELEASED_CLASSES)
    assert all(bool((tensor == 1).all()) for tensor in network.state_dict().values())
    tensors = tensors_of(released_shapes(adapted=False)) | {"module.layer9.weight": torch.ones(1)}
    torch.save({"state_dict": tensors}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"1 unexpected \(layer9.weight\)"):
        load_recogniser(tmp_path / "b.pth")


@pytest.fixture(scope="module")
def reference():
    """The weights that the reference numbers were made with, under the authors' names."""
    shapes = released_shapes(adapted=True)
    return filled({name: shape for name, shape in shapes.items() if kind_of(name) == torch.float32})


def paper_network():
    network = build_recogniser(RecogniserSettings("i3d_resnet50", RELEASED_CLASSES))
    network.normalization = InputNormalization.identity()
    network.model.dropout.p = 0.0
    return network


def test_parity_of_the_features_and_logits_of_a_released_i3d(reference):
    network, counter = paper_network(), torch.zeros((), dtype=torch.int64)
    names = (name for name in released_shapes(adapted=True) if name.startswith("encoder_q."))
    weights = {name.removeprefix("encoder_q."): reference.get(name, counter) for name in names}
    renamed = {name.replace("cls_head.fc_cls.", "classifier."): tensor for name, tensor in weights.items()}
    load_strictly(network.model, renamed, "the reference")
    network.double().eval()
    with torch.no_grad():
        logits, features = network.with_features(rand((1, 3, 13, 193, 193), 501, 4, -2))
    assert_numbers(features[0], EXPECTED["eval"]["feature"])
    assert_numbers(logits, EXPECTED["eval"]["logits"])


PARTS = {
    "encoder_q.cls_head.fc_cls": "online.model.classifier",
    "encoder_q": "online.model",
    "encoder_k": "target.model",
    "head_q": "projectors.0.layers",
    "head_k": "target_projectors.0.layers",
    "pred": "predictors.0",
}


def our_name(released):
    """The tensor of a MomentumPair that a released Res_I3D_BYOL calls `released`; None for the unused one."""
    if released.startswith("encoder_k.cls_head."):
        return None
    part = next(part for part in PARTS if released.startswith(f"{part}."))
    return f"{PARTS[part]}{released.removeprefix(part)}"


def test_parity_of_both_views_in_training(reference):
    """In float32: this network amplifies rounding by 2e-4 of the largest value, as the reference itself states."""
    pair = MomentumPair(paper_network(), hidden=64, outputs=64)
    state = {our_name(name): tensor.float() for name, tensor in reference.items() if our_name(name) is not None}
    own = {name for name, tensor in pair.state_dict().items() if kind_of(name) == torch.float32 and tensor.numel()}
    assert state.keys() == own
    pair.load_state_dict(state, strict=False)
    contrast = torch.tensor([0.4, 1.0, 1.8]).view(3, 1, 1, 1, 1)
    day, night = (rand((3, 3, 13, 193, 193), seed, 4, -2).float() * contrast for seed in (503, 504))
    with torch.no_grad():
        out = pair.train()(day, night)
    labels = torch.tensor([2, 9, 0])
    for name, expected in EXPECTED["train"].items():
        value = getattr(out, name)
        assert_numbers(value[:, 0] if value.dim() == 3 else value, expected, tolerance=2e-4)
    for name, prediction in (("ce_day", out.day_prediction), ("ce_night", out.night_prediction)):
        loss = torch.nn.functional.cross_entropy(prediction, labels)
        assert float(loss) == pytest.approx(EXPECTED[name], rel=1e-5)
    assert float(0.1 * byol_loss(out)) == pytest.approx(EXPECTED["byol_weighted"], rel=1e-4)
    pair.update_target()
    parameters = dict(pair.named_parameters())
    for name, total in EXPECTED["key_params_after_one_update"].items():
        if (ours := our_name(name)) is not None:
            assert float(parameters[ours].double().sum()) == pytest.approx(total, rel=1e-5), name


def test_parity_of_the_learning_rate():
    optim = ClipOptim(lr=0.01, batch_size=48)
    for update, rate in EXPECTED["lr_at_update"].items():
        # The first update follows none.
        assert 0.01 * optim.rate_factor(int(update) - 1, 100) == pytest.approx(rate), update


def test_rates_fall_after_clips_of_all_processes_or_along_a_curve(monkeypatch):
    monkeypatch.setattr("clip_optim.joined_processes", lambda: Runtime(torch.device("cpu"), world_size=2))
    optim = ClipOptim(batch_size=10, milestones=(400,), warmup_steps=5)
    assert [optim.rate_factor(step, 1) for step in (4, 5, 19, 20)] == pytest.approx([0.5, 1, 1, 0.1])
    cosine = ClipOptim(epochs=2, decay="cosine", milestones=(), warmup_steps=5)
    assert [cosine.rate_factor(step, 10) for step in (0, 10, 20)] == pytest.approx([0.5, 0.5, 0])


def test_parity_of_the_frames_of_a_clip():
    """The authors' draws are among ours; where only one clip fits, it is theirs. Short videos differ, by design."""
    for count, frames in EXPECTED["clips_of_16_frames"].items():
        ours = [frames_of_clip(int(count), 16, 2, start / 999) for start in range(1000)]
        if int(count) >= 31:
            assert frames in ours
        if int(count) == 31:
            assert all(clip == frames for clip in ours)


@pytest.mark.parametrize(("frames", "side"), [(13, 193), (16, 224), (20, 224)])
def test_the_average_equals_the_authors_windows_where_these_are_accepted(frames, side):
    """Their sizes leave 2x7x7 positions, of which 2x7x7 windows make one: the shapes are traced without computing."""
    with torch.device("meta"):
        network = build_i3d("resnet50", 2)
        value = network[: list(network._modules).index("average")](torch.empty(1, 3, frames, side, side))
    assert value.shape == (1, 2048, 2, 7, 7)
    positions = torch.rand(2, 3, 2, 7, 7)
    windows = torch.nn.functional.avg_pool3d(positions, (2, 7, 7), stride=1).flatten(1)
    torch.testing.assert_close(GlobalAverage()(positions), windows)


@pytest.mark.parametrize("shape", [(1, 17, 23), (3, 32, 48), (8, 48, 48), (21, 33, 64)])
@pytest.mark.parametrize("model", ["i3d_resnet18", "i3d_resnet50", "r3d_18", "r2plus1d_18"])
def test_clips_of_any_length_and_size(model, shape):
    width = 4 if model.startswith("i3d") else 64
    network = build_recogniser(RecogniserSettings(model, ("a", "b", "c"), width=width)).eval()
    with torch.no_grad():
        clips = torch.rand(2, 3, *shape)
        logits, features = network.with_features(clips)
    assert logits.shape == (2, 3)
    assert [feature.flatten(1).shape for feature in features] == [(2, network.widths[0])]


def test_halving_keeps_a_single_frame():
    value = torch.rand(1, 2, 5, 3, 3)
    assert torch.equal(HalveFrames()(value)[:, :, 0], value[:, :, :2].amax(dim=2))
    assert HalveFrames()(value).shape[2] == 2 and torch.equal(HalveFrames()(value[:, :, :1]), value[:, :, :1])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_inflated_weights_see_a_still_clip_as_the_image(backbone):
    torch.manual_seed(0)
    images = torchvision.models.get_model(backbone, weights=None).eval()
    network = build_i3d(backbone, 2).eval()
    network.load_state_dict(inflate(images.state_dict(), network), strict=False)
    picture = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        stem = images.maxpool(images.relu(images.bn1(images.conv1(picture))))
        ours = network[:4](picture.unsqueeze(2).repeat(1, 1, 16, 1, 1))
        torch.testing.assert_close(ours[:, :, 1], stem)  # the first and the last frame see the padding
        found, value = [], ours[:, :, 1:2].repeat(1, 1, 9, 1, 1)
        for block, image_block in zip(network.layer1, images.layer1, strict=True):
            value, stem = block(value), image_block(stem)
            found.append(torch.allclose(value[:, :, 4], stem, atol=1e-4))
    assert all(found)


def test_inflation_names_what_does_not_fit():
    weights = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(ValueError, match=r"conv1.weight is .*, expected \(4, 3, 5, 7, 7\)"):
        inflate(weights, build_i3d("resnet18", 2, width=4))


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18", "mc3_18"])
def test_a_network_of_torchvision_predicts_the_same_here(name, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    ours, settings = load_recogniser(tmp_path / "a.pth")
    assert settings == RecogniserSettings(name, ("0", "1", "2", "3", "4"))
    clips = torch.rand(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(clips), theirs(ours.normalization(clips)))


def test_a_network_comes_back_from_its_file(tmp_path):
    network = build_recogniser(SMALL).eval()
    save_recogniser(network, SMALL, tmp_path / "a.pt")
    loaded, settings = load_recogniser(tmp_path / "a.pt")
    clips = torch.rand(2, 3, 8, 32, 32)
    assert settings == SMALL and torch.equal(loaded.eval()(clips), network(clips))


def test_clips_are_normalised_channel_by_channel():
    clips = torch.rand(2, 3, 3, 4, 5)
    normalised = InputNormalization((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(clips)
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(normalised[:, channel], (clips[:, channel] - mean) / std)


def test_a_network_from_image_weights_is_normalised_as_these_expect():
    assert expected_normalization("i3d_resnet18", pretrained=True) == "imagenet"
    assert expected_normalization("i3d_resnet18") == "kinetics"
    assert expected_normalization("r3d_18", pretrained=True) == "kinetics"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "slowfast"}, "--model slowfast: expected one of i3d_resnet18"),
        ({"model": "r3d_18", "width": 8}, "--width and --time-stride are for an I3D, not for r3d_18"),
        ({"model": "i3d_resnet18", "width": 0}, "--width 0: expected 1 or more"),
        ({"model": "i3d_resnet18", "time_stride": 3}, "--time-stride 3: expected 1 or 2"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        RecogniserSettings(classes=("a",), **settings)


def test_foreign_checkpoints_are_refused_with_what_was_expected(checkpoint, tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="holds none of the networks known here"):
        load_recogniser(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="best.pt is a checkpoint of another kind, similarity-minmax/classifier"):
        load_recogniser(checkpoint)

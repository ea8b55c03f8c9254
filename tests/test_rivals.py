"""Rivals of the field: CIConv's invariant, AdaBN's statistics of the test images, brightening before a network."""

import json
import math

import numpy as np
import pytest
import torch
from class_folders import ImageConfig, WholeImages, open_split
from classification_scripts import CLASSES, RUNTIME, SIZE, common, start
from classifier import ClassifierSettings, build_classifier, load_classifier, save_classifier
from scipy.ndimage import correlate1d
from torch import nn

from darkening.brightening import BRIGHTENINGS, brighten_inputs
from minmax import export
from minmax.adabn import with_statistics_of
from minmax.colour_invariant import ColourInvariant, behind_invariant
from minmax.features import FeatureModel
from minmax.runtime.errors import RunError, UsageError


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# --- CIConv


def slow_invariant(image, deviation):
    """W by its formula, of one image `(H, W, 3)`, in numpy."""
    steps = np.arange(-40, 41)
    bell = np.exp(-(steps**2) / (2 * deviation**2))
    slope = steps * bell
    bell, slope = bell / bell.sum(), slope / np.abs(slope).sum()
    matrix = np.array([[0.06, 0.63, 0.27], [0.3, 0.04, -0.35], [0.34, -0.6, 0.17]])
    colours = image @ matrix.T

    def seen(channel, down, right):
        return correlate1d(correlate1d(colours[..., channel], down, 0, mode="nearest"), right, 1, mode="nearest")

    energy = seen(0, bell, bell)
    squares = sum((seen(c, *taps) / energy) ** 2 for c in range(3) for taps in ((slope, bell), (bell, slope)))
    edges = np.log(squares + 1e-5)
    return (edges - edges.mean()) / np.sqrt(edges.var() + 1e-5)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_the_invariant_is_its_formula(scale):
    layer, images = ColourInvariant().double(), drawn(2, 3, 23, 31).double()
    nn.init.constant_(layer.scale, scale)
    found = layer(images)
    assert found.shape == (2, 1, 23, 31)
    for image, edges in zip(images, found, strict=True):
        expected = slow_invariant(image.permute(1, 2, 0).numpy(), 2**scale)
        assert np.allclose(edges[0].detach().numpy(), expected, atol=1e-6)


def test_the_invariant_does_not_see_how_much_light_there_is():
    layer, images = ColourInvariant(), drawn(2, 3, 16, 16) + 0.1
    assert torch.allclose(layer(images), layer(images / 20), atol=1e-4)
    assert not torch.allclose(layer(images), layer(images**2), atol=0.1)
    assert torch.allclose(layer(torch.full((1, 3, 16, 16), 0.3)), torch.zeros(1, 1, 16, 16), atol=0.1)
    assert layer(torch.zeros(1, 3, 16, 16)).isfinite().all()
    (gradient,) = torch.autograd.grad(layer(images).pow(3).sum(), layer.scale)
    assert gradient.abs() > 0.01


def test_behind_the_invariant_a_network_sums_its_first_weights_over_the_colours(tmp_path):
    plain = build_classifier(ClassifierSettings("resnet18", CLASSES))
    torch.save(plain.model.state_dict(), tmp_path / "weights.pth")
    settings = ClassifierSettings("resnet18", CLASSES, "ciconv")
    network = build_classifier(settings, init=tmp_path / "weights.pth")
    assert torch.equal(network.model.network.conv1.weight, plain.model.conv1.weight.sum(dim=1, keepdim=True))
    edges = network.model.invariant(drawn(2, 3, 64, 64))
    grey = plain.model.eval()(edges.expand(-1, 3, -1, -1))
    assert torch.allclose(network.eval()(drawn(2, 3, 64, 64)), grey, atol=1e-4)
    with pytest.raises(ValueError, match="starts with none"):
        behind_invariant(nn.Linear(3, 2))
    save_classifier(network, settings, tmp_path / "best.pt")
    nn.init.constant_(network.model.invariant.scale, 0.5)
    assert load_classifier(tmp_path / "best.pt")[0].model.invariant.scale == 0


def test_a_classifier_behind_the_invariant_goes_all_the_way(data, tmp_path):
    flags = common(data, tmp_path)
    day = start("train_day", *flags, "--normalization", "ciconv")
    scale = load_classifier(day)[0].model.invariant.scale
    assert scale != 0
    darkener = start("train_darkener", *flags, "--checkpoint", day)
    adapted = start("train", *flags, "--checkpoint", day, "--darkener", darkener)
    assert load_classifier(adapted)[0].model.invariant.scale != scale
    found = start("test", "--checkpoint", adapted, "--before", day, "--data", data, *SIZE)
    assert set(found) == {"before", "checkpoint"}
    with pytest.raises(UsageError, match=r"--output .*weights.pth: expected .onnx or .pt2, as .* no colour invariant"):
        export.main(export.Config(checkpoint=day, output=tmp_path / "weights.pth"))
    export.main(export.Config(checkpoint=day, output=tmp_path / "graph.pt2"))


# --- AdaBN


class Pixels(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], torch.tensor(0)


def normalised():
    return FeatureModel(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)), ["0"]).eval()


def test_statistics_are_those_of_the_images_and_the_network_stays_as_it_was():
    # All images of a kind in a row, as the files of a class lie.
    images = torch.cat([0.2 * drawn(32, 3, 4, 4), 0.8 + 0.2 * drawn(32, 3, 4, 4)])
    network = normalised()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapted = with_statistics_of(network, Pixels(images), "test_night", 16, 0, RUNTIME)
    layer = adapted.model[0]
    assert torch.allclose(layer.running_mean, images.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(layer.running_var, images.var(dim=(0, 2, 3)), rtol=0.1)
    assert not any(module.training for module in adapted.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    again = with_statistics_of(adapted, Pixels(images), "test_night", 16, 0, RUNTIME)
    assert torch.equal(again.model[0].running_mean, layer.running_mean)


def test_statistics_that_cannot_be_counted_are_told():
    with pytest.raises(UsageError, match="--adabn: the network has no BatchNorm"):
        with_statistics_of(nn.Conv2d(3, 2, 1), Pixels(drawn(2, 3, 4, 4)), "test_day", 2, 0, RUNTIME)
    with pytest.raises(RunError, match="--adabn, test_day: Expected more than 1 value per channel.*--batch-size"):
        with_statistics_of(normalised(), Pixels(drawn(3, 3, 1, 1)), "test_day", 2, 0, RUNTIME)


def test_test_py_says_that_adabn_saw_the_test_images(data, checkpoint, tmp_path, capsys):
    content, flags = checkpoint.read_bytes(), ["--checkpoint", checkpoint, "--data", data, *SIZE, "--output", tmp_path]
    found = start("test", *flags, "--adabn", "--batch-size", 4)["checkpoint"]
    assert "\nnot zero-shot: saw the test images" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["adabn"] is True
    assert checkpoint.read_bytes() == content
    alone = start("test", *flags, "--adabn", "--batch-size", 4, "--splits", "test_night")["checkpoint"]
    assert torch.equal(found["test_night"].confidences, alone["test_night"].confidences)  # nothing is left of the day
    plain = start("test", *flags)["checkpoint"]
    assert not torch.allclose(found["test_night"].confidences, plain["test_night"].confidences)
    network = load_classifier(checkpoint)[0]
    images = open_split(str(data), "test_night", ImageConfig(size=32))
    seen = with_statistics_of(network, WholeImages(images, ImageConfig(size=32)), "test_night", 4, 0, RUNTIME)
    pictures = torch.stack([WholeImages(images, ImageConfig(size=32))[i][0] for i in range(12)]) / 255
    assert torch.allclose(seen(pictures).softmax(dim=1).amax(dim=1), found["test_night"].confidences, atol=1e-4)
    capsys.readouterr()


# --- brightening


def test_a_power_brings_dark_images_to_the_mean_and_leaves_bright_ones():
    images = torch.stack([drawn(3, 32, 32) * 0.1, drawn(3, 32, 32) * 0.3, 0.5 + drawn(3, 32, 32) * 0.5])
    found = BRIGHTENINGS["gamma"](images)
    assert found.mean(dim=(1, 2, 3))[:2].tolist() == pytest.approx([0.45, 0.45], abs=0.01)
    assert torch.allclose(found[2], images[2], atol=1e-5)
    assert (found >= images - 1e-6).all() and found.max() <= 1
    assert BRIGHTENINGS["gamma"](torch.zeros(1, 3, 4, 4)).eq(0).all()
    flat = torch.full((1, 3, 4, 4), 0.0004)  # nearly black: the sixth root, and no more
    assert BRIGHTENINGS["gamma"](flat + 1 / 255).mean() == pytest.approx((0.0004 + 1 / 255) ** (1 / 6), abs=1e-3)


def test_frames_of_a_clip_share_a_power():
    clip = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.2)], dim=1)[None]
    found = BRIGHTENINGS["gamma"](clip)
    powers = [math.log(found[0, 0, frame, 0, 0]) / math.log(clip[0, 0, frame, 0, 0]) for frame in (0, 1)]
    assert powers[0] == pytest.approx(powers[1]) and found.mean() == pytest.approx(0.45, abs=0.01)


def test_equalisation_spreads_lightness_of_every_frame_and_keeps_grey_grey():
    ramp = (torch.linspace(0, 0.2, 64) * 255).round() / 255
    images = ramp.expand(2, 3, 64, 64).contiguous()
    found = BRIGHTENINGS["clahe"](images)
    assert found.shape == images.shape and found.mean() > 1.3 * images.mean()
    assert (found.amax(dim=1) - found.amin(dim=1)).max() <= 2 / 255
    clip = images.transpose(0, 1)[None]
    assert torch.equal(BRIGHTENINGS["clahe"](clip), found.transpose(0, 1)[None])


@pytest.mark.parametrize("how", ["none", "gamma", "clahe"])
def test_a_network_is_shown_brightened_images_in_every_way_to_call_it(how):
    images, plain, network = 0.2 * drawn(2, 3, 16, 16), normalised(), normalised()
    network.load_state_dict(plain.state_dict())
    brighten_inputs(network, how)
    shown = images if how == "none" else BRIGHTENINGS[how](images)
    assert torch.equal(network(images), plain(shown))
    assert torch.equal(network.features(images)[0], plain.features(shown)[0])


def test_test_py_says_what_brightens(data, checkpoint, tmp_path, capsys):
    flags = ["--checkpoint", checkpoint, "--data", data, *SIZE, "--output", tmp_path]
    plain = start("test", *flags)["checkpoint"]
    assert "brightened" not in capsys.readouterr().out
    found = start("test", *flags, "--brighten", "gamma")["checkpoint"]
    assert "\nbrightened before the network, day and night: gamma" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["brighten"] == "gamma"
    for split in ("test_day", "test_night"):
        assert not torch.equal(found[split].confidences, plain[split].confidences)

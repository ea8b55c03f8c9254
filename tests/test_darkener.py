"""The darkener: its network, the ways to ask for an exposure, its checkpoints, and the one that ships."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from darkening import Darkener, DarkenerSettings, RequestConfig, load_darkener, pixel_view, save_darkener
from darkening.darkener_files import CHECKPOINT_FORMAT, SHIPPED
from darkening.fit import DarkenerOptim
from darkening.night_view import LearnedNight
from darkening.pixel_view import DepthwiseSeparable, encode_exposure
from darkening.starting_point import open_exposure_path
from minmax.runtime.errors import UsageError
from scenes import render_labelled


def images_of(count=2, side=12, seed=0, dtype=torch.float32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def darkener_of(**settings):
    torch.manual_seed(3)
    return Darkener(DarkenerSettings(width=8, **settings)).double()


@torch.no_grad()
def test_a_batch_is_split_into_images_before_an_image_is_split_into_rows(monkeypatch):
    darkener, shapes = darkener_of(), []
    view = darkener.estimator
    forward = view.forward
    monkeypatch.setattr(
        view, "forward", lambda images, exposure: shapes.append(images.shape) or forward(images, exposure)
    )
    images, exposure = torch.rand(5, 3, 40, 20, dtype=torch.float64), torch.rand(5, 1, 40, 20, dtype=torch.float64)
    whole = darkener.darken(images, exposure)
    expected = {
        5 * 800: [(5, 40)],
        2 * 800: [(2, 40), (2, 40), (1, 40)],  # no row is computed twice
        800: [(1, 40)] * 5,
        799: [(1, 40), (1, 9)] * 5,
    }
    for most, calls in expected.items():
        shapes.clear()
        monkeypatch.setitem(pixel_view._PIXELS_AT_ONCE, "cpu", most)
        torch.testing.assert_close(darkener.darken(images, exposure), whole, rtol=0, atol=1e-12)
        assert [(shape[0], shape[2]) for shape in shapes] == calls


def test_parts_give_the_value_and_the_gradients_of_their_concatenation():
    torch.manual_seed(0)
    unit = DepthwiseSeparable(7, 5).double()
    parts = [torch.randn(2, width, 6, 7, dtype=torch.float64, requires_grad=True) for width in (3, 1, 3)]
    found, gradients = [], []
    for arguments in (parts, [torch.cat(parts, dim=1)]):
        output = unit(*arguments)
        found.append(output)
        weighted = (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum()
        gradients.append(torch.autograd.grad(weighted, [*parts, *unit.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    for apart, together in zip(*gradients, strict=True):
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)


def test_scalar_column_and_map_of_one_exposure_agree():
    darkener, images = darkener_of(), images_of(dtype=torch.float64)
    by_map = darkener(images, torch.full((2, 1, 12, 12), 0.2))
    for exposure in (torch.tensor(0.2), torch.full((2, 1, 1, 1), 0.2)):
        for found, expected in zip(darkener(images, exposure), by_map, strict=True):
            torch.testing.assert_close(found, expected)


def test_each_image_follows_its_own_exposure():
    darkener, images = darkener_of(), images_of(dtype=torch.float64)
    both = darkener(images, torch.tensor([0.05, 0.4]).view(2, 1, 1, 1)).image
    for i, exposure in enumerate((0.05, 0.4)):
        torch.testing.assert_close(both[i : i + 1], darkener(images[i : i + 1], torch.tensor(exposure)).image)
    assert not torch.allclose(both[1:], darkener(images[1:], torch.tensor(0.05)).image)


def test_exposure_code_by_hand():
    exposure = torch.full((1, 1, 2, 2), 0.1, dtype=torch.float64)
    assert torch.equal(encode_exposure(exposure, 1), exposure)
    # t = 10^-1; sin and cos of pi t, then of 2 pi t.
    waves = [wave(factor * math.pi * 0.1) for factor in (1, 2) for wave in (math.sin, math.cos)]
    expected = torch.tensor(waves, dtype=torch.float64).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    torch.testing.assert_close(encode_exposure(exposure, 4), expected)


@pytest.mark.parametrize("settings", [{}, {"exposure_channels": 4}, {"curve": "reciprocal"}, {"curve_rounds": 2}])
def test_maps_have_their_ranges_whatever_the_settings(settings):
    found = darkener_of(min_scale=0.9, **settings)(images_of(dtype=torch.float64), torch.tensor(0.2))
    assert {tuple(tensor.shape) for tensor in found} == {(2, 3, 12, 12)}
    assert found.curve_map.abs().max() <= 1
    assert found.scale_map.min() >= 0.9 and found.scale_map.max() <= 1


def brightening_darkener():
    darkener = darkener_of()
    last = darkener.estimator.units[-1].pointwise
    with torch.no_grad():
        last.weight.zero_()
        last.bias[:3], last.bias[3:] = -10.0, -20.0  # curve map -1, scale 0.95
    return darkener


def test_darken_clamps_is_outside_the_graph_and_keeps_its_input():
    darkener, images = brightening_darkener(), images_of(dtype=torch.float64)
    kept = images.clone()
    unclamped = darkener(images, torch.tensor(0.2)).image
    assert unclamped.max() > 1.04 and unclamped.requires_grad
    darkened = darkener.darken(images, torch.tensor(0.2))
    assert not darkened.requires_grad and darkened.grad_fn is None
    torch.testing.assert_close(darkened, unclamped.detach().clamp(0, 1))
    assert torch.equal(images, kept)


def test_gradients_reach_every_weight():
    darkener = darkener_of()
    darkener(images_of(dtype=torch.float64), torch.tensor(0.2)).image.sum().backward()
    silent = [name for name, weight in darkener.named_parameters() if not weight.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DarkenerSettings, {"exposure_channels": 3}, "exposure_channels 3: expected 1 or an even number"),
        (DarkenerSettings, {"exposure_channels": 0}, "exposure_channels 0"),
        (DarkenerSettings, {"curve": "cubic"}, "curve cubic: expected one of quadratic, reciprocal, gamma"),
        (DarkenerSettings, {"curve_rounds": 0}, "curve_rounds 0"),
        (DarkenerSettings, {"width": 0}, "width"),
        (DarkenerSettings, {"min_scale": 0.0}, "min_scale 0.0"),
        (DarkenerSettings, {"min_scale": 1.1}, "min_scale 1.1"),
        (DarkenerSettings, {"view": "far"}, "view far: expected one of"),
        (DarkenerSettings, {"view": "scene", "curve": "reciprocal"}, "curve reciprocal: expected quadratic"),
        (RequestConfig, {"exposure": (0.5, 0.1)}, "exposure 0.5 0.1"),
        (RequestConfig, {"contrast": (0.0, 5.0)}, "contrast 0.0 5.0"),
        (RequestConfig, {"cell": 0}, "cell 0"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, message):
    with pytest.raises(UsageError, match=message):
        kind(**settings)


SETTINGS = DarkenerSettings("reciprocal", 5, 0.8712345, 4, 6)
TRAINED_ON = RequestConfig((0.1, 0.8), (0.0, 1.5))


def assert_same_darkener(found, expected):
    assert found.settings == expected.settings and found.trained_on == expected.trained_on
    with torch.no_grad():
        for a, b in zip(found(images_of(), torch.tensor(0.2)), expected(images_of(), torch.tensor(0.2)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_saved_darkener_comes_back_with_all_its_settings(suffix, tmp_path):
    darkener, file = Darkener(SETTINGS, TRAINED_ON), tmp_path / f"darkener.{suffix}"
    save_darkener(darkener, file, {"seed": 1})
    assert_same_darkener(load_darkener(file), darkener)


def released_names(darkener):
    renamed = {
        name.replace("estimator.units.", "e_conv")
        .replace("depthwise", "depth_conv")
        .replace("pointwise", "point_conv"): t
        for name, t in darkener.state_dict().items()
    }
    settings = darkener.settings
    numbers = {
        "down_scale": settings.min_scale,
        "curve_round": settings.curve_rounds,
        "encode_dim": settings.exposure_channels,
    }
    return renamed | {name: torch.tensor(value) for name, value in numbers.items()}


def test_a_darkener_under_the_authors_names_is_understood(tmp_path):
    darkener = Darkener(DarkenerSettings(curve_rounds=5, min_scale=0.75, exposure_channels=4, width=6))
    torch.save(released_names(darkener), tmp_path / "Epoch15.pth")
    assert_same_darkener(load_darkener(tmp_path / "Epoch15.pth"), darkener)


def traces(state):
    """Number of values that are not zero and below 1e-30."""
    return sum(int(((tensor != 0) & (tensor.abs() < 1e-30)).sum()) for tensor in state.values() if tensor.dim())


def test_no_subnormal_weight_is_saved_or_loaded(tmp_path):
    darkener = Darkener(DarkenerSettings(width=4, min_scale=0.75))
    with torch.no_grad():
        darkener.estimator.units[2].pointwise.weight[:2] = 1e-40
        darkener.estimator.units[2].pointwise.weight[2] = -1e-29
    assert traces(darkener.state_dict()) == 8
    ours, other, released = tmp_path / "ours.pt", tmp_path / "other.safetensors", tmp_path / "Epoch15.pth"
    for file in (ours, other):
        save_darkener(darkener, file)
        assert traces(load_file(file) if file == other else torch.load(file)["darkener"]) == 0
    assert traces(darkener.state_dict()) == 8, "saving changes nothing in training"
    # Files that others made.
    torch.save(own_payload(asdict(darkener.settings), darkener=darkener.state_dict()), ours)
    torch.save(released_names(darkener), released)
    save_file(darkener.state_dict(), other, {"settings": json.dumps(asdict(darkener.settings))})
    for file in (ours, other, released):
        loaded = load_darkener(file)
        assert traces(loaded.state_dict()) == 0
        assert float(loaded.estimator.units[2].pointwise.weight[2, 0].detach()) == pytest.approx(-1e-29)
        assert_same_darkener(loaded, darkener)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_subnormal_weight_ships(name):
    assert traces(load_file(SHIPPED[name])) == 0


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


def own_payload(settings=None, **changes):
    state = Darkener(DarkenerSettings(width=4)).state_dict()
    settings = {"width": 4} if settings is None else settings
    return {"format": CHECKPOINT_FORMAT, "settings": settings, "darkener": state} | changes


FIRST = "estimator.units.0.depthwise.weight"
UNFIT_CHECKPOINTS = {
    "another network": (lambda: {"conv1.weight": torch.zeros(1)}, "not a darkener checkpoint: found .*conv1.weight"),
    "a classifier of ours": (lambda: {"format": "similarity-minmax/classifier"}, "found similarity-minmax/classifier"),
    "wrong shapes": (lambda: own_payload({"width": 8}), r"of another shape \(estimator"),
    "impossible settings": (lambda: own_payload({"width": 0}), "width"),
    "unknown settings": (lambda: own_payload({"width": 4, "depth": 9}), "depth"),
    "no settings": (lambda: without(own_payload(), "settings"), "settings"),
    "no weights": (lambda: without(own_payload(), "darkener"), "darkener"),
    "no tensors": (lambda: own_payload(darkener=own_payload()["darkener"] | {FIRST: 3}), rf"1 no tensors \({FIRST}\)"),
    "no mapping": (lambda: own_payload(darkener=3), "version: .* holds a int in place of weights"),
    "a missing tensor": (
        lambda: own_payload(darkener=without(own_payload()["darkener"], FIRST)),
        rf"1 missing \({FIRST}\)",
    ),
    "a surplus tensor": (
        lambda: own_payload(darkener=own_payload()["darkener"] | {"more": torch.zeros(1)}),
        r"1 unexpected \(more\)",
    ),
    "released without its rounds": (
        lambda: without(released_names(Darkener(DarkenerSettings(width=4))), "curve_round"),
        "lacks 'curve_round'",
    ),
}


@pytest.mark.parametrize("case", UNFIT_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(case, tmp_path):
    payload, message = UNFIT_CHECKPOINTS[case]
    file = tmp_path / "unfit.pt"
    torch.save(payload(), file)
    with pytest.raises(UsageError, match=message) as caught:
        load_darkener(file)
    assert str(file) in str(caught.value)


def test_a_fresh_darkener_with_an_open_path_listens_to_the_exposure():
    torch.manual_seed(0)
    darkener = Darkener()
    open_exposure_path(darkener)
    raw = [darkener(images_of(), torch.tensor(exposure)).curve_map for exposure in (0.0, 0.5)]
    assert (raw[0] - raw[1]).abs().mean() > 1e-3
    assert raw[0].abs().max() < 0.9  # away from the flat ends of tanh


def test_the_starting_point_obeys_the_requested_exposure():
    images = torch.from_numpy(render_labelled("day", 64, 64, seed=77)[0]).permute(0, 3, 1, 2) / 255.0
    darkener = load_darkener("starting-point").eval()
    means = {asked: float(darkener.darken(images, torch.tensor(asked)).mean()) for asked in (0.05, 0.1, 0.2, 0.3, 0.4)}
    assert means == pytest.approx({asked: asked for asked in means}, abs=0.05)


def test_the_learning_rate_warms_up_and_falls_tenfold_at_the_milestones():
    optim = DarkenerOptim(epochs=4, lr=1.0, milestones=(2, 3), warmup_steps=3)
    factors = [optim.rate_factor(step / 4, step) for step in range(16)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:8] == [1.0] * 4
    assert factors[8:] == pytest.approx([0.1] * 4 + [0.01] * 4)


def test_requests_are_even_or_follow_the_day_and_never_ask_for_more_than_white():
    images = torch.full((16, 3, 16, 16), 0.1)
    images[..., :8] = 0.9  # two cells of 8 pixels
    even = RequestConfig((0.2, 0.4)).draw(images, torch.Generator().manual_seed(0))
    assert even.shape == (16, 1, 1, 1) and 0.2 <= float(even.min()) < 0.25 and 0.35 < float(even.max()) <= 0.4
    follows = RequestConfig((0.2, 0.2), contrast=(1.0, 1.0)).draw(images, torch.Generator().manual_seed(0))
    assert follows.shape == (16, 1, 16, 16)
    assert float(follows[0, 0, 0, 0] / follows[0, 0, 0, -1]) == pytest.approx(0.91 / 0.11, rel=1e-3)
    torch.testing.assert_close(follows.mean(dim=(1, 2, 3)), torch.full((16,), 0.2))
    steep = RequestConfig((0.5, 0.9), contrast=(2.0, 4.0)).draw(images, torch.Generator().manual_seed(0))
    assert float(steep.max()) == 1.0
    assert float(steep.mean(dim=(1, 2, 3)).max()) <= 0.5 + 1e-6, "brighter than the day"
    dim = RequestConfig((0.2, 0.4)).draw(images / 5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(dim, torch.full((16, 1, 1, 1), 0.1))


def test_a_darkener_is_asked_for_what_it_was_trained_on_and_never_to_brighten():
    day = torch.full((2, 3, 8, 8), 0.4)
    noisy = torch.tensor([-0.1, 0.3, 0.9, 0.1]).repeat(16).view(1, 1, 8, 8)  # its mean is 0.3
    even = RequestConfig((0.0, 0.5)).bounded(day, noisy)
    torch.testing.assert_close(even, noisy.clamp(0.0, 0.5).expand(1, 1, 8, 8).repeat(2, 1, 1, 1))
    follows = RequestConfig((0.0, 0.5), (0.0, 1.5)).bounded(day, noisy)
    torch.testing.assert_close(follows[:1], noisy.clamp(0.0, 1.0))
    bright = RequestConfig((0.0, 0.5), (0.0, 1.5)).bounded(day, noisy + 0.5)
    torch.testing.assert_close(bright.mean(dim=(1, 2, 3)), torch.full((2,), 0.4))


def test_use_asks_a_darkener_for_no_more_than_its_training():
    darkener = Darkener(DarkenerSettings(width=4), RequestConfig((0.1, 0.3)))
    day, asked = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((2, 1, 1, 1), 0.9)
    night = LearnedNight(darkener)
    for request, expected in ((asked, 0.3), (asked - 0.9, 0.1)):
        found = night(day, request, torch.Generator())
        torch.testing.assert_close(found, darkener.darken(day, torch.tensor(expected)))
    dim = night(day / 10, asked, torch.Generator())
    torch.testing.assert_close(dim, darkener.darken(day / 10, (day / 10).mean(dim=(1, 2, 3), keepdim=True)))

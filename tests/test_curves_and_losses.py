"""Closed-form values of the tone curves, the losses and the feature similarity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darkening.curves import CURVES, gamma_curve, quadratic_curve, reciprocal_curve
from darkening.losses import DarkeningLoss, chroma_loss, colour_loss, exposure_loss, total_variation_loss
from darkening.views import Darkening
from minmax.similarity import feature_similarity

RAMP = torch.linspace(0.0, 1.0, 101, dtype=torch.float64).view(1, 1, 1, -1)
ROUNDS = st.integers(1, 10)


def constant(value, like=RAMP):
    return torch.full_like(like, value)


@pytest.mark.parametrize(("curve", "tolerance"), [(quadratic_curve, 0.0), (reciprocal_curve, 1e-4)])
def test_a_curve_map_of_zero_is_the_identity(curve, tolerance):
    torch.testing.assert_close(curve(RAMP, constant(0.0), 8), RAMP, rtol=0, atol=tolerance)


@pytest.mark.parametrize("curve", [quadratic_curve, reciprocal_curve])
@settings(deadline=None, max_examples=40)
@given(strength=st.floats(0.0, 0.99), rounds=ROUNDS)
def test_black_and_white_stay_and_the_curve_darkens_monotonically(curve, strength, rounds):
    bent = curve(RAMP, constant(strength), rounds).flatten()
    torch.testing.assert_close(bent[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert (bent.diff() >= 0).all()
    assert (bent <= RAMP.flatten() + 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(strength=st.floats(0.01, 1.0), rounds=ROUNDS)
def test_the_quadratic_curve_brightens_for_negative_maps_and_stays_in_range(strength, rounds):
    bent = quadratic_curve(RAMP, constant(-strength), rounds)
    assert (bent[..., 1:-1] > RAMP[..., 1:-1]).all()
    assert bent.min() >= 0 and bent.max() <= 1 + 1e-12


def test_two_rounds_by_hand():
    half = constant(0.5)
    # 0.5 - 0.4 * 0.25 = 0.4, then 0.4 - 0.4 * 0.24 = 0.304.
    torch.testing.assert_close(quadratic_curve(half, constant(0.4), 2), constant(0.304))
    # a = -2: 0.5 -> -0.5 / -1.5 = 1/3 -> (-1/3) / (-5/3) = 1/5.
    torch.testing.assert_close(reciprocal_curve(half, constant(0.5 - 1e-5), 2), constant(0.2))


@pytest.mark.parametrize("rounds", [1, 5, 8])
def test_the_reciprocal_curve_in_one_step_equals_the_formula_round_by_round(rounds):
    strength = torch.linspace(0.0, 0.9, 19, dtype=torch.float64).view(1, 1, -1, 1)
    value, a = RAMP, -1.0 / (strength + 1e-5)
    for _ in range(rounds):
        value = (a + 1.0) * value / (a + value)
    torch.testing.assert_close(reciprocal_curve(RAMP, strength, rounds), value, rtol=1e-9, atol=1e-9)


def test_the_gamma_curve_by_hand():
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for a, expected in ((1.0, values), (0.5, values**2), (0.25, values**4)):
        for rounds in (1, 8):
            found = gamma_curve(values, torch.full_like(values, a), rounds)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(CURVES))
def test_curves_and_their_gradients_are_finite_at_every_end(name):
    ends = torch.tensor([0.0, 1e-8, 1e-5, 0.5, 1 - 1e-5, 1 - 6e-8, 1.0])
    image, raw = (
        grid.clone().requires_grad_() for grid in torch.meshgrid(ends, torch.linspace(-60, 60, 13), indexing="ij")
    )
    curve, squash = CURVES[name]
    bent = curve(image, squash(raw), 8)
    assert bent.min() >= 0 and bent.max() <= 1 + 1e-6
    bent.sum().backward()
    assert torch.isfinite(image.grad.square().sum()) and torch.isfinite(raw.grad).all()  # gradients are clipped by norm


def test_the_quadratic_curve_without_gradients_equals_the_one_with_them_and_keeps_its_input():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 8, 9, generator=generator, dtype=torch.float64)
    curve_map = torch.rand(2, 3, 8, 9, generator=generator, dtype=torch.float64) * 2 - 1
    kept_image, kept_map = image.clone(), curve_map.clone()
    with torch.enable_grad():
        expected = quadratic_curve(image, curve_map, 8)
    with torch.no_grad():
        found = quadratic_curve(image, curve_map, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(image, kept_image) and torch.equal(curve_map, kept_map)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("quadratic", -1.0, 1.0), ("reciprocal", 0.0, 1.0), ("gamma", 0.0, 1.0)]
)
def test_the_squashing_function_reaches_exactly_the_range_of_the_curve_map(name, low, high):
    squashed = CURVES[name][1](torch.tensor([-50.0, 50.0]))
    torch.testing.assert_close(squashed, torch.tensor([low, high]))


# Four 1x1 "squares" of 0, 0.2, 0.4 and 0.6; by 2x1 columns the means are 0.2 and 0.4; the mean of all is 0.3.
STEPS = torch.tensor([[0.0, 0.2], [0.4, 0.6]]).expand(1, 3, 2, 2)


@pytest.mark.parametrize(
    ("patch", "space", "expected"),
    [
        (1, "linear", (0.1**2 + 0.1**2 + 0.3**2 + 0.5**2) / 4),
        (2, "linear", 0.2**2),
        (0, "linear", 0.2**2),
        (1, "log", sum(math.log((v + 0.02) / 0.12) ** 2 for v in (0.0, 0.2, 0.4, 0.6)) / 4),
        (0, "log", math.log(0.32 / 0.12) ** 2),
    ],
)
def test_exposure_loss_by_hand(patch, space, expected):
    found = exposure_loss(STEPS, torch.full((1, 1, 1, 1), 0.1), patch, space)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_exposure_loss_averages_channels_and_takes_one_request_per_image():
    images = torch.stack([torch.tensor([0.0, 0.3, 0.6]), torch.tensor([0.1, 0.1, 0.1])]).view(2, 3, 1, 1)
    images = images.expand(2, 3, 4, 4)
    request = torch.tensor([0.3, 0.3]).view(2, 1, 1, 1)
    assert float(exposure_loss(images, request)) == pytest.approx(0.2**2 / 2)


@pytest.mark.parametrize("patch", [0, 1, 2])
def test_exposure_loss_compares_local_means_with_those_of_a_map(patch):
    request = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(exposure_loss(request.expand(2, 3, 4, 4), request, patch, "log")) == pytest.approx(0, abs=1e-12)
    shuffled = request.flip(3)  # the same means of whole images, others of their parts
    found = float(exposure_loss(shuffled.expand(2, 3, 4, 4), request, patch))
    assert found == pytest.approx(0, abs=1e-12) if patch == 0 else found > 0.01


def test_exposure_loss_in_log_space_lets_a_black_picture_come_back():
    black = torch.zeros(1, 3, 4, 4, requires_grad=True)
    exposure_loss(black, torch.full((1, 1, 1, 1), 0.2), 0, "log").backward()
    assert torch.isfinite(black.grad).all() and (black.grad < 0).all()


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_colour_loss_of_grey_is_zero_with_a_finite_gradient(level):
    grey = torch.full((2, 3, 4, 4), level, requires_grad=True)
    loss = colour_loss(grey)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-9)
    assert torch.isfinite(grey.grad).all()


def test_colour_loss_by_hand():
    images = torch.tensor([[0.1, 0.2, 0.4], [0.3, 0.3, 0.3]]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    expected = math.sqrt(0.1**4 + 0.3**4 + 0.2**4) / 2
    assert float(colour_loss(images)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "midpoint", "counted"),
    [
        (0.01, 0.02, 0.01),
        (0.02, 0.02, 0.02),
        (0.03, 0.02, 0.01),
        (0.04, 0.02, 0.0),
        (0.5, 0.02, 0.0),
        (0.5, None, 0.5),
        (-0.5, None, 0.5),
    ],
)
def test_total_variation_of_one_vertical_edge_by_hand(step, midpoint, counted):
    # Two rows, three columns, two channels; only the two images' first channel has a step between its rows.
    curve_map = torch.zeros(2, 2, 2, 3, dtype=torch.float64)
    curve_map[:, 0, 1] = step
    # Three vertical pairs per image over (2 - 1) * 3 positions: counted^2 per image; the factor 2 is Zero-DCE's.
    assert float(total_variation_loss(curve_map, midpoint)) == pytest.approx(2 * counted**2, abs=1e-15)


def test_total_variation_counts_horizontal_and_vertical_edges_alike():
    curve_map = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    curve_map[..., 3:] = 0.01
    found = total_variation_loss(curve_map)
    assert float(found) == pytest.approx(2 * 3 * 6 * 0.01**2 / 30)
    assert float(total_variation_loss(curve_map.transpose(2, 3))) == pytest.approx(float(found))


def test_chroma_loss_by_hand():
    grey = torch.rand(2, 1, 4, 4).expand(2, 3, 4, 4)
    assert float(chroma_loss(0.1 * grey, grey)) == pytest.approx(0.0, abs=1e-9)
    # With the offset of 0.02 the colour of (0.08, 0.18, 0.28) is (0.1, 0.2, 0.3) / 0.2, that of grey is 1.
    image = torch.tensor([0.08, 0.18, 0.28]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(chroma_loss(image, grey[:1])) == pytest.approx((0.25 + 0.25) / 3, rel=1e-4)


def test_similarity_of_equal_is_one_of_opposite_minus_one_of_orthogonal_zero():
    features = [torch.randn(2, 5), torch.randn(2, 4, 3, 3), torch.randn(1, 4, 2, 3, 3)]
    assert float(feature_similarity(features, [3.0 * f for f in features])) == pytest.approx(1.0, abs=1e-6)
    assert float(feature_similarity(features, [-f for f in features])) == pytest.approx(-1.0, abs=1e-6)
    assert float(feature_similarity([torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 1.0]])])) == 0.0


def test_similarity_is_averaged_over_positions_then_over_the_list():
    one = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    half = one.clone()
    half[..., 0] *= -1  # two of four positions opposite: mean 0
    vector = torch.ones(1, 2)
    assert float(feature_similarity([one, vector], [half, vector])) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([torch.zeros(2, 3)], [torch.zeros(2, 4)]),
        ([torch.zeros(2, 3)], [torch.zeros(1, 3)]),
        ([torch.zeros(2, 3)], []),
        ([], []),
    ],
)
def test_similarity_refuses_features_that_do_not_match(first, second):
    with pytest.raises(ValueError, match="features"):
        feature_similarity(first, second)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-3, 1e3))
def test_similarity_is_symmetric_and_within_one(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 4, 4, 4, generator=generator, dtype=torch.float64).unbind()
    found = float(feature_similarity([a], [scale * b]))
    assert -1.0 <= found <= 1.0
    assert found == pytest.approx(float(feature_similarity([b], [a])), abs=1e-9)


DAY = torch.full((1, 3, 4, 4), 0.5)


def darkening_of_known_losses():
    image = torch.tensor([0.1, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    curve_map = torch.zeros(1, 3, 4, 4)
    curve_map[:, :, 2:] = 0.01
    return Darkening(image, curve_map, torch.full((1, 3, 4, 4), 0.96))


def test_darkening_loss_weighs_and_names_its_terms():
    darkening = darkening_of_known_losses()
    loss = DarkeningLoss(exposure=2, exposure_patch=0, colour=3, total_variation=5, scale=7, similarity=11)
    vector = torch.ones(1, 4)
    found = loss(DAY, darkening, torch.full((1, 1, 1, 1), 0.1), [vector], [-vector])
    assert list(found) == ["exposure", "colour", "total_variation", "scale", "similarity"]
    expected = {
        "exposure": 2 * (0.7 / 3 - 0.1) ** 2,
        "colour": 3 * math.sqrt(0.1**4 + 0.3**4 + 0.2**4),
        "total_variation": 5 * 2 * 3 * 4 * 0.01**2 / 12,
        "scale": 7 * 0.04,
        "similarity": -11.0,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_darkening_loss_compares_colours_with_the_day_when_asked():
    darkening = darkening_of_known_losses()
    found = DarkeningLoss(chroma=2.0)(DAY, darkening, torch.full((1, 1, 1, 1), 0.1))
    assert float(found["chroma"]) == pytest.approx(2 * float(chroma_loss(darkening.image, DAY)))


def test_darkening_loss_without_features_has_no_similarity_and_the_weights_of_the_paper():
    found = DarkeningLoss()(DAY, darkening_of_known_losses(), torch.full((1, 1, 1, 1), 0.1))
    assert list(found) == ["exposure", "colour", "total_variation", "scale"]
    loss = DarkeningLoss()
    assert (loss.exposure, loss.colour, loss.total_variation, loss.scale, loss.similarity) == (10, 25, 1600, 5, 0.1)

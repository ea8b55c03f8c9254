"""Our code against numbers that the authors' code gives in float64 (commit 2f1ca35 of ZeroShotDayNightDA).

Both sides fill their weights by one rule from the names of the released checkpoints, see `reference_weights`.
"""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from classifier import ClassifierSettings, build_classifier
from reference_weights import darkener_shapes, filled, rand

from darkening.curves import quadratic_curve
from darkening.darkener import DarkenerSettings
from darkening.darkener_files import darkener_from_released
from darkening.losses import DarkeningLoss, colour_loss, exposure_loss, scale_loss, total_variation_loss
from darkening.pixel_view import encode_exposure
from darkening.views import Darkening
from minmax.byol import MomentumPair, byol_loss
from minmax.features import freeze
from minmax.similarity import feature_similarity

EXPECTED = json.loads((Path(__file__).parent / "parity_numbers.json").read_text())
TOLERANCE = 1e-8


def released_darkener(exposure_channels=1):
    buffers = {
        "down_scale": torch.tensor(0.95),
        "curve_round": torch.tensor(8),
        "encode_dim": torch.tensor(exposure_channels),
    }
    return darkener_from_released(buffers | filled(darkener_shapes(exposure_channels)))


def assert_summary(value, expected):
    flat = value.detach().double().flatten()
    torch.testing.assert_close(flat[:16].tolist(), expected["first16"], rtol=TOLERANCE, atol=TOLERANCE)
    assert float(flat.sum()) == pytest.approx(expected["sum"], rel=TOLERANCE, abs=1e-7 * expected["abs_sum"])
    assert float(flat.abs().sum()) == pytest.approx(expected["abs_sum"], rel=TOLERANCE)


EXPOSURES = {
    "constant_0.1": torch.full((2, 1, 1, 1), 0.1),
    "per_sample": torch.tensor([0.05, 0.35]).view(2, 1, 1, 1),
    "per_pixel": 0.2 * torch.rand((2, 1, 32, 48), generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("case", EXPOSURES)
@pytest.mark.parametrize("gradients", [True, False])
def test_parity_of_the_darkener(case, gradients):
    with torch.set_grad_enabled(gradients):
        darkening = released_darkener()(rand((2, 3, 32, 48), 1), EXPOSURES[case].double())
    for value, name in zip(darkening, ("darkened", "curve_map", "downscale_map"), strict=True):
        assert_summary(value, EXPECTED["darkener"][case][name])


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_parity_of_the_darkener_with_sinusoidal_exposure(channels):
    exposure = EXPOSURES["per_pixel"].double()
    darkening = released_darkener(channels)(rand((2, 3, 32, 48), 1), exposure)
    for value, name in zip(darkening, ("darkened", "curve_map", "downscale_map"), strict=True):
        assert_summary(value, EXPECTED["darkener_sinusoid"][str(channels)][name])


def test_parity_of_the_exposure_code():
    probe = EXPECTED["sinusoid_probe"]
    code = encode_exposure(torch.tensor(probe["exposure"]).view(1, 1, 1, -1), 4)[0, :, 0]
    for channel, name in enumerate(("sin(pi t)", "cos(pi t)", "sin(2pi t)")):
        torch.testing.assert_close(code[channel], torch.tensor(probe[name]), rtol=1e-5, atol=1e-6)


def test_parity_of_the_curve():
    image, curve_map, scale = rand((1, 3, 4, 5), 5), rand((1, 3, 4, 5), 3, 2, -1), rand((1, 3, 4, 5), 4, 0.05, 0.95)
    assert_summary(quadratic_curve(image * scale, curve_map, 8) / scale, EXPECTED["curve_alone"])


def feature_maps(seed):
    shapes = [(2, 8, 12, 16), (2, 16, 6, 8), (2, 32, 3, 4), (2, 64, 2, 2)]
    return [rand(shape, seed + i, 2, -1) for i, shape in enumerate(shapes)]


IMAGES = rand((2, 3, 16, 24), 11)
REQUEST = torch.tensor([0.1, 0.3]).double().view(2, 1, 1, 1)
MAP_REQUEST, PATCH_REQUEST = rand((2, 1, 16, 24), 12, 0.2), rand((2, 1, 4, 6), 13, 0.2)
CURVES = rand((2, 3, 16, 24), 14, 2, -1)
SMOOTH_CURVES = (0.02 * (2 * torch.rand((2, 3, 16, 24), generator=torch.Generator().manual_seed(14)) - 1)).double()
LOSSES = {
    "L_color_mean": lambda: colour_loss(IMAGES),
    "L_exp patch1 weight10 e": lambda: 10 * exposure_loss(IMAGES, REQUEST),
    "L_exp patch1 weight10 em": lambda: 10 * exposure_loss(IMAGES, MAP_REQUEST),
    "L_exp patch4 weight10 e": lambda: 10 * exposure_loss(IMAGES, REQUEST, 4),
    "L_exp patch4 weight10 e4": lambda: 10 * exposure_loss(IMAGES, PATCH_REQUEST, 4),
    "L_exp patch1 weight1 e": lambda: exposure_loss(IMAGES, REQUEST),
    "L_TV mid_val=None r": lambda: total_variation_loss(CURVES, None),
    "L_TV mid_val=0.02 r": lambda: total_variation_loss(CURVES),
    "L_TV mid_val=None rs": lambda: total_variation_loss(SMOOTH_CURVES, None),
    "L_TV mid_val=0.02 rs": lambda: total_variation_loss(SMOOTH_CURVES),
    "L_sim list of 4 maps": lambda: feature_similarity(feature_maps(20), feature_maps(30)),
    **{
        f"L_sim map {i} alone": lambda i=i: feature_similarity([feature_maps(20)[i]], [feature_maps(30)[i]])
        for i in range(4)
    },
    "L_sim vectors": lambda: feature_similarity([rand((4, 64), 40, 2, -1)], [rand((4, 64), 41, 2, -1)]),
    "L_down d": lambda: scale_loss(rand((2, 3, 16, 24), 15, 0.05, 0.95)),
}


@pytest.mark.parametrize("name", EXPECTED["losses"])
def test_parity_of_the_losses(name):
    assert float(LOSSES[name]()) == pytest.approx(EXPECTED["losses"][name], rel=TOLERANCE, abs=1e-12)


def released_resnet18(prefix):
    """Names and shapes of a released ResNet-18, from our own."""
    network = build_classifier(ClassifierSettings("resnet18", tuple("abcdefghij"), "none"))
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in network.model.state_dict().items()}
    return network, {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def load_renamed(module, state, rename):
    """Load weights filled under released names; only counters of BatchNorm and the target's head may be missing."""
    found = module.load_state_dict({rename(name): value for name, value in state.items()}, strict=False)
    assert not found.unexpected_keys
    missing = [name for name in found.missing_keys if not name.endswith("num_batches_tracked")]
    assert all(module.get_parameter(name).numel() == 0 for name in missing)


def test_parity_of_the_classification_darkener_loss_with_gradients_and_one_step():
    expected = EXPECTED["train_loss"]
    darkener = released_darkener()
    network, shapes = released_resnet18("")
    load_renamed(freeze(network).double().model, filled(shapes), str)
    images = rand((2, 3, 64, 64), 50)
    exposure = torch.tensor([0.1, 0.4]).double().view(2, 1, 1, 1)
    darkening: Darkening = darkener(images, exposure)
    assert_summary(darkening.image, expected["darkened"])
    terms = DarkeningLoss()(images, darkening, exposure, network.features(darkening.image), network.features(images))
    released_names = {
        "exp": "exposure",
        "color": "colour",
        "tv": "total_variation",
        "down": "scale",
        "sim": "similarity",
    }
    for theirs, ours in released_names.items():
        assert terms[ours].item() == pytest.approx(expected["weighted_terms"][theirs], rel=TOLERANCE)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(expected["total"], rel=TOLERANCE)

    optimizer = torch.optim.Adam(darkener.parameters(), lr=1e-4, weight_decay=1e-4)
    total.backward()
    parameters = {
        re.sub(r"estimator\.units\.(\d)\.(depth|point)wise", r"e_conv\1.\2_conv", name): parameter
        for name, parameter in darkener.named_parameters()
    }
    for name, norm in expected["grad_l2"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-7), name
    clipped = torch.nn.utils.clip_grad_norm_(darkener.parameters(), 0.1)
    assert float(clipped) == pytest.approx(expected["total_grad_norm"], rel=1e-7)
    optimizer.step()
    for name, value in expected["after_step"].items():
        assert float(parameters[name].detach().sum()) == pytest.approx(value, rel=1e-7, abs=1e-7), name
    assert all(parameter.grad is None for parameter in network.parameters()), "the frozen network is a constant"


@pytest.fixture
def pair():
    network, _ = released_resnet18("")
    momentum_pair = MomentumPair(network).double()
    shapes = {}
    for prefix in ("resnet.", "encoder_k."):
        shapes |= released_resnet18(prefix)[1]
    for head in ("head_q.", "head_k.", "pred."):
        inputs = 128 if head == "pred." else 512
        shapes |= {f"{head}fc1.weight": (128, inputs), f"{head}fc1.bias": (128,)}
        shapes |= {f"{head}bn1.{kind}": (128,) for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {f"{head}fc2.weight": (128, 128), f"{head}fc2.bias": (128,)}
    state = {name: value for name, value in filled(shapes).items() if not name.startswith("encoder_k.fc")}
    load_renamed(momentum_pair, state, our_name)
    return momentum_pair.train()


def our_name(released):
    """The tensor of a MomentumPair that a released ResNet_BYOL calls `released`."""
    for theirs, ours in (
        (r"^resnet", "online.model"),
        (r"^encoder_k", "target.model"),
        (r"^head_q", "projectors.0.layers"),
        (r"^head_k", "target_projectors.0.layers"),
        (r"^pred", "predictors.0"),
    ):
        if re.match(theirs, released):
            return re.sub(theirs, ours, released)
    raise KeyError(released)


def test_parity_of_byol_features_losses_gradients_and_momentum(pair):
    expected = EXPECTED["byol"]
    day, night = rand((4, 3, 64, 64), 101, 4, -2), rand((4, 3, 64, 64), 102, 4, -2)
    out = pair(day, night)
    for name, value in (
        ("logits_day", out.day_prediction),
        ("logits_night", out.night_prediction),
        ("feat_q", out.q_day),
        ("feat_k", out.k_night),
        ("feat_q2", out.q_night),
        ("feat_k2", out.k_day),
    ):
        assert_summary(value, expected[name])
    labels = torch.tensor(expected["labels"])
    losses = {
        "ce_day": F.cross_entropy(out.day_prediction, labels),
        "ce_night": F.cross_entropy(out.night_prediction, labels),
        "byol_weighted": 0.1 * byol_loss(out),
    }
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(expected[name], rel=TOLERANCE), name
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(expected["total"], rel=TOLERANCE)

    total.backward()
    parameters = dict(pair.named_parameters())
    for name, norm in expected["grad_l2"].items():
        assert float(parameters[our_name(name)].grad.norm()) == pytest.approx(norm, rel=1e-6), name

    pair.update_target()
    for name, summary in expected["key_params_after_one_update"].items():
        if not name.startswith("encoder_k.fc"):  # the authors' target also carries an unused classification layer
            assert float(parameters[our_name(name)].sum()) == pytest.approx(summary["sum"], rel=1e-7), name
    buffers = dict(pair.named_buffers())
    for name, summary in expected["bn_buffers_after_forward"].items():  # float32 in the reference
        assert float(buffers[our_name(name)].sum()) == pytest.approx(summary["sum"], rel=1e-5, abs=1e-5), name
    for name, count in expected["num_batches_tracked_after"].items():
        assert int(buffers[our_name(name)]) == count


def test_parity_of_evaluation_logits(pair):
    logits = pair.online.eval()(rand((4, 3, 64, 64), 101, 4, -2))
    assert_summary(logits, EXPECTED["byol"]["eval_logits"])


def test_parity_settings_are_the_papers():
    assert DarkenerSettings().curve_rounds == 8
    assert DarkenerSettings().min_scale == 0.95
    loss = DarkeningLoss()
    weights = (loss.exposure, loss.colour, loss.total_variation, loss.scale, loss.similarity)
    assert weights == (10.0, 25.0, 1600.0, 5.0, 0.1)

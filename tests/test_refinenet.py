"""Segmentation networks: the authors' numbers, their checkpoints and torchvision's, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from reference_weights import assert_names, assert_numbers, batch_norm, filled, kind_of, linear, rand, tensors_of
from refinenet import from_released_names
from segmenter import (
    SegmenterSettings,
    build_projectors,
    build_segmenter,
    load_segmenter,
    pixel_cross_entropy,
    save_segmenter,
)
from street_labels import VOID

from minmax.byol import ByolConfig, MomentumPair, byol_loss
from minmax.features import InputNormalization
from minmax.runtime.checkpoints import load_strictly
from minmax.runtime.errors import UsageError

EXPECTED = json.loads((Path(__file__).parent / "segmentation_numbers.json").read_text())


def conv(name, outputs, inputs, bias=False):
    return {f"{name}.weight": (outputs, inputs, 3, 3)} | ({f"{name}.bias": (outputs,)} if bias else {})


def released_shapes(adapted):
    """Names and shapes of a released RefineNet-101 without `module.`, with what the adapted one has beside it."""
    backbone = {
        name: tuple(tensor.shape)
        for name, tensor in torchvision.models.resnet101(weights=None).state_dict().items()
        if not name.startswith("fc.")
    }
    shapes = {f"resnet.{name}": shape for name, shape in backbone.items()}
    if adapted:
        shapes |= {f"encoder_k.{name}": shape for name, shape in backbone.items()}
        for level, inputs in enumerate((256, 512, 1024, 2048)):
            for head in ("head_q", "head_k"):
                name = f"{head}.MLPs.{level}"
                shapes |= conv(f"{name}.conv1", 64, inputs, bias=True) | batch_norm(f"{name}.bn1", 64)
                shapes |= linear(f"{name}.fc1", 128, 64) | batch_norm(f"{name}.bn2", 128)
                shapes |= linear(f"{name}.fc2", 128, 128)
            name = f"pred.MLPs.{level}"
            shapes |= linear(f"{name}.fc1", 128, 128) | batch_norm(f"{name}.bn1", 128)
            shapes |= batch_norm(f"{name}.bn2", 128) | linear(f"{name}.fc2", 128, 128)
    for stage, inputs in enumerate((2048, 1024, 512, 256), start=1):
        width = 512 if stage == 1 else 256
        shapes |= conv(f"p_ims1d2_outl{stage}_dimred", width, inputs)
        for part, units in ((f"adapt_stage{stage}_b", 2), (f"mflow_conv_g{stage}_b", 3)):
            for unit in range(1, units + 1):
                shapes |= conv(f"{part}.0.{unit}_conv", width, width, bias=True)
                shapes |= conv(f"{part}.0.{unit}_conv_relu_varout_dimred", width, width)
        if stage > 1:
            shapes |= conv(f"adapt_stage{stage}_b2_joint_varout_dimred", width, width)
        for link in range(1, 5):
            shapes |= conv(f"mflow_conv_g{stage}_pool.0.{link}_outvar_dimred", width, width)
        if stage < 4:
            shapes |= conv(f"mflow_conv_g{stage}_b3_joint_varout_dimred", 256, width)
    return shapes | conv("clf_conv", 20, 256, bias=True)


CHECKPOINTS = {"daytime": (False, "segmentation_daytime_refinenet"), "adapted": (True, "segmentation_refinenet_byol")}


@pytest.fixture(scope="module")
def reference():
    """The weights that the reference numbers were made with, under the authors' names."""
    shapes = released_shapes(adapted=True)
    return filled({name: shape for name, shape in shapes.items() if kind_of(name) == torch.float32})


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_released_file_loads_strictly(case, tmp_path):
    adapted, name = CHECKPOINTS[case]
    assert_names(released_shapes(adapted), EXPECTED["checkpoints"][name])
    tensors = tensors_of(released_shapes(adapted))
    torch.save({"epoch": 100, "model_state_dict": tensors}, tmp_path / "best.pth.tar")
    network, settings = load_segmenter(tmp_path / "best.pth.tar")
    assert settings == SegmenterSettings("refinenet_resnet101", outputs=20, width=256)
    assert all(bool((tensor == 1).all()) for tensor in network.state_dict().values())


def test_parity_of_the_logits_of_a_released_refinenet(reference):
    network = build_segmenter(SegmenterSettings("refinenet_resnet101", outputs=20))
    counter = torch.zeros((), dtype=torch.int64)
    weights = {name: reference.get(name, counter) for name in released_shapes(adapted=False)}
    load_strictly(network.model, from_released_names(weights), "the reference")
    network.normalization = InputNormalization.identity()
    images = rand((1, 3, 64, 128), 201, 4, -2)
    with torch.no_grad():
        logits, features = network.double().eval().with_features(images)
    # The reference gives the maps in float32, the logits in float64.
    for feature, expected in zip(features, EXPECTED["eval"]["stages"], strict=True):
        assert_numbers(feature, expected, tolerance=1e-4)
    assert_numbers(logits, EXPECTED["eval"]["logits"])


def our_name(released):
    """The tensor of a MomentumPair that a released RefineNet_BYOL calls `released`; None for one never used."""
    part, _, rest = released.partition(".")
    if part in ("resnet", "encoder_k"):
        return f"{'online' if part == 'resnet' else 'target'}.model.backbone.{rest}"
    if found := re.match(r"MLPs\.(\d)\.(.*)", rest):
        level, layer = found.groups()
        if part == "pred":
            return None if layer.startswith("bn2") else f"predictors.{level}.{layer}"
        where = "projectors" if part == "head_q" else "target_projectors"
        inside = f"pool.{layer}" if layer.startswith(("conv1", "bn1")) else f"layers.{layer.replace('bn2', 'bn1')}"
        return f"{where}.{level}.{inside}"
    return f"online.model.{next(iter(from_released_names({released: torch.empty(0)})))}"


def test_parity_of_both_views_in_training(reference):
    network = build_segmenter(SegmenterSettings("refinenet_resnet101", outputs=20))
    network.normalization = InputNormalization.identity()
    network.model.decoder.dropout.p = 0.0
    pair = MomentumPair(network, projectors=build_projectors(network, ByolConfig())).double()
    state = {ours: tensor for name, tensor in reference.items() if (ours := our_name(name)) is not None}
    own = {name for name, tensor in pair.state_dict().items() if kind_of(name) == torch.float32 and tensor.numel()}
    assert state.keys() == own
    pair.load_state_dict(state, strict=False)
    contrast = torch.tensor([0.4, 1.0, 1.6, 2.2]).view(4, 1, 1, 1)
    # Scaled in float32 as the reference does.
    day, night = ((rand((4, 3, 64, 128), seed, 4, -2).float() * contrast).double() for seed in (202, 203))
    labels = (20 * rand((4, 64, 128), 204).float()).floor().long()
    out = pair.train()(day, night)
    for case, prediction, online, target in (
        ("day_as_query", out.day_prediction, out.q_day, out.k_night),
        ("night_as_query", out.night_prediction, out.q_night, out.k_day),
    ):
        expected = EXPECTED["train"][case]
        assert_numbers(prediction, expected["logits"])
        for level in range(4):
            assert_numbers(online[:, level], expected["feats_q"][level], tolerance=1e-7)
            assert_numbers(target[:, level], expected["feats_k"][level], tolerance=1e-7)
        assert float(pixel_cross_entropy(prediction, labels).detach()) == pytest.approx(expected["ce"], rel=1e-8)
    weighted = sum(EXPECTED["train"][case]["byol_weighted"] for case in EXPECTED["train"])
    byol = 0.2 * byol_loss(out)
    assert float(byol.detach()) == pytest.approx(weighted, rel=1e-8)
    losses = [pixel_cross_entropy(prediction, labels) for prediction in (out.day_prediction, out.night_prediction)]
    (losses[0] + losses[1] + byol).backward()
    gradients = {name: parameter.grad for name, parameter in pair.named_parameters()}
    for name, norm in EXPECTED["grad_l2_after_both_backwards"].items():
        assert float(gradients[our_name(name)].norm()) == pytest.approx(norm, rel=1e-8), name
    pair.update_target()
    parameters = dict(pair.named_parameters())
    for name, total in EXPECTED["key_params_after_one_update"].items():  # float32 in the reference
        assert float(parameters[our_name(name)].sum()) == pytest.approx(total, rel=1e-6), name


@pytest.mark.parametrize("model", ["refinenet_resnet18", "deeplabv3_resnet50"])
def test_a_network_predicts_at_image_size_and_comes_back_from_its_file(model, tmp_path):
    settings = SegmenterSettings(model, width=8)
    network = build_segmenter(settings).eval()
    save_segmenter(network, settings, tmp_path / "a.pt")
    loaded, found = load_segmenter(tmp_path / "a.pt")
    images = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(loaded.eval()(images), logits)
    assert logits.shape == (1, 19, 50, 70) and found == settings
    assert [feature.shape[1] for feature in network.features(images)] == list(network.widths)


def test_a_backbone_of_timm_without_maps_is_refused():
    with pytest.raises(UsageError, match="vit_tiny_patch16_224: .*; choose another one"):
        build_segmenter(SegmenterSettings("refinenet_timm/vit_tiny_patch16_224", width=8))


@pytest.mark.parametrize("backbone", ["convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"])
def test_backbones_of_timm_with_four_maps(backbone):
    network = build_segmenter(SegmenterSettings(f"refinenet_timm/{backbone}", width=8)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 19, 64, 96)
    assert len(network.widths) == 4


def test_maps_with_channels_last_are_turned_even_where_a_height_equals_the_channels():
    # At a height of 192 the first of its maps has 48 rows of 48 channels.
    network = build_segmenter(SegmenterSettings("refinenet_timm/mambaout_femto", width=8)).eval()
    with torch.no_grad():
        maps = network.features(torch.rand(1, 3, 192, 256))
    assert [tuple(value.shape[1:]) for value in maps][0] == (48, 48, 64)
    assert [value.shape[1] for value in maps] == list(network.widths)


def test_a_deeplab_of_torchvision_predicts_the_same_here(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=19, aux_loss=True
    ).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    ours, settings = load_segmenter(tmp_path / "a.pth")
    assert settings.model == "deeplabv3_resnet50"
    images = torch.rand(1, 3, 64, 64)
    normalization = ours.normalization
    with torch.no_grad():
        expected = theirs(normalization(images))["out"]
        torch.testing.assert_close(ours.eval()(images), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("unet_resnet18", "expected DECODER_BACKBONE"),
        ("refinenet_vgg16", "torchvision has no such ResNet"),
        ("refinenet_timm/nothing", "timm has no model .nothing."),
        ("deeplabv3_resnet18", "cannot be dilated"),
        ("deeplabv3_timm/resnet18", "over ResNets of torchvision only"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        build_segmenter(SegmenterSettings(model))


def test_foreign_checkpoints_are_refused_with_what_was_expected(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="holds none of the networks known here"):
        torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "a.pth")
        load_segmenter(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="best.pt is a checkpoint of another kind, similarity-minmax/classifier"):
        load_segmenter(checkpoint)
    stock = {"backbone.layer1.0.conv1.weight": torch.zeros(1), "classifier.4.weight": torch.zeros(21, 256, 1, 1)}
    blocks = {
        f"backbone.layer{s}.{i}.conv1.weight": torch.zeros(1) for s, n in enumerate((3, 4, 6, 3), 1) for i in range(n)
    }
    with pytest.raises(UsageError, match=r"c.pth: a prediction of 21 channels; expected 19"):
        torch.save(stock | blocks, tmp_path / "c.pth")
        load_segmenter(tmp_path / "c.pth")
    with pytest.raises(UsageError, match=r"c.pth: its backbone has \(1, 0, 0, 0\) blocks"):
        torch.save(stock, tmp_path / "c.pth")
        load_segmenter(tmp_path / "c.pth")
    tensors = tensors_of(released_shapes(adapted=True))
    del tensors["module.clf_conv.bias"]
    torch.save(tensors, tmp_path / "b.pth")
    with pytest.raises(UsageError, match=r"1 missing \(decoder.classifier.bias\)"):
        load_segmenter(tmp_path / "b.pth")


def test_void_pixels_are_not_learned_and_a_batch_of_them_costs_nothing():
    logits = torch.randn(1, 20, 4, 4, requires_grad=True)
    labels = torch.full((1, 4, 4), VOID)
    loss = pixel_cross_entropy(logits, labels)
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    labels[0, 0, 0] = 3
    expected = torch.nn.functional.cross_entropy(logits[:, :, 0, 0], torch.tensor([3]))
    torch.testing.assert_close(pixel_cross_entropy(logits, labels), expected)

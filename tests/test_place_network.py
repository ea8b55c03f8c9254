"""Retrieval networks: the authors' numbers, their checkpoints, other trunks, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from descriptors import describe_images
from place_checkpoints import load_place_network, rebuild_released, save_place_network
from place_network import (
    GeM,
    PlaceNetwork,
    PlaceSettings,
    build_place_network,
    build_projectors,
    parameter_groups,
    settings_for,
    unit_length,
)
from reference_weights import assert_names, filled, kind_of, rand, tensors_of

from minmax.byol import ByolConfig, build_pair, byol_loss
from minmax.features import FeatureModel, InputNormalization
from minmax.runtime.errors import UsageError

EXPECTED = json.loads((Path(__file__).parent / "vpr_numbers.json").read_text())
META = {"architecture": "resnet101", "pooling": "gem", "regional": False, "local_whitening": False, "outputdim": 2048}
POSITIONS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def released_shapes(whitened=False):
    """Names and shapes of a released ResNet-101 with GeM."""
    shapes = {}
    for name, tensor in torchvision.models.resnet101(weights=None).state_dict().items():
        first, _, rest = name.partition(".")
        if first != "fc":
            shapes[f"features.{POSITIONS[first]}.{rest}"] = tuple(tensor.shape)
    shapes["pool.p"] = (1,)
    if whitened:
        shapes |= {"whiten.weight": (2048, 2048), "whiten.bias": (2048,)}
    return shapes


def released_file(folder, whitened=False, **changes):
    """A file as the authors', of tensors that take no room."""
    state = tensors_of(released_shapes(whitened), "") | {"pool.p": torch.tensor([2.5])}
    payload = {"epoch": 3, "meta": {**META, "whitening": whitened}, "state_dict": state, "min_loss": 1.0, **changes}
    torch.save(payload, folder / "model_best.pth.tar")
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("whitened", [False, True])
def test_a_released_checkpoint_rebuilds_its_network_by_its_meta(tmp_path, whitened):
    name = "vpr_resnet101_gem" + ("_whiten" if whitened else "")
    assert_names(released_shapes(whitened), EXPECTED["checkpoints"][name], "")
    network, settings = load_place_network(released_file(tmp_path, whitened))
    assert settings == PlaceSettings("resnet101", whitened)
    assert network.model.pool.p.item() == 2.5


@pytest.mark.parametrize("model", ["vgg11", "alexnet"])
@torch.no_grad()
def test_vgg_and_alexnet_end_before_their_last_pooling_as_in_the_toolbox(tmp_path, model):
    torch.manual_seed(0)
    whole = torchvision.models.get_model(model)
    trunk = whole.features[:-1].eval()
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()} | {
        "pool.p": torch.tensor([2.9])
    }
    torch.save({"meta": {**META, "architecture": model}, "state_dict": state}, tmp_path / "theirs.pth")
    network, _ = load_place_network(tmp_path / "theirs.pth")
    images = torch.rand(2, 3, 96, 128)
    expected = unit_length(GeM(2.9)(trunk(network.normalization(images))))
    torch.testing.assert_close(network.eval()(images), expected)


def test_a_checkpoint_that_carries_its_whitening_is_read(tmp_path):
    meta = {**META, "Lw": {"retrieval-SfM-120k": {"ss": {"m": np.zeros((2048, 1)), "P": np.eye(4)}}}}
    assert load_place_network(released_file(tmp_path, meta=meta))[1] == PlaceSettings("resnet101")


@pytest.mark.parametrize(
    ("model", "mean"), [("resnet18", 0.485), ("timm/tf_efficientnetv2_s", 0.5), ("efficientnet_v2_l", 0.5)]
)
def test_a_trunk_gets_images_as_its_published_weights_expect(model, mean):
    assert settings_for(model, whitened=True).mean[0] == mean and settings_for(model, whitened=True).whitened


@pytest.fixture(scope="module")
def reference():
    """The network with the weights that the reference numbers were made with, in float64 and without normalisation."""
    shapes = {n: s for n, s in released_shapes(whitened=True).items() if kind_of(n) == torch.float32}
    state = filled(shapes)
    state["pool.p"] = torch.tensor([3.0], dtype=torch.float64)
    state |= {n: torch.zeros((), dtype=torch.int64) for n in released_shapes() if kind_of(n) == torch.int64}
    network, _ = rebuild_released({"meta": {**META, "whitening": True}, "state_dict": state}, "reference")
    network.normalization = InputNormalization.identity()
    return network.double().eval()


def assert_vector(value, expected, tolerance=1e-6):
    """Float32 weights were cast to float64 here and there alike, so what is left is the last bits of the draws."""
    flat = value.detach().double().flatten()
    torch.testing.assert_close(flat[:16].tolist(), expected["first16"], rtol=tolerance, atol=tolerance)
    for total in ("sum", "abs_sum"):
        if total in expected:
            assert float((flat if total == "sum" else flat.abs()).sum()) == pytest.approx(
                expected[total], rel=tolerance
            )


@pytest.mark.parametrize("case", ["plain", "whitened", "ms_plain", "ms_whitened"])
@torch.no_grad()
def test_parity_of_descriptors(reference, case):
    expected = EXPECTED["descriptor"]
    images = rand((1, 3, 96, 128), 401, scale=4.0, offset=-2.0)
    if case.endswith("plain"):
        plain = PlaceNetwork(reference.model.features, 2048).double().eval()
        plain.pool = reference.model.pool
        reference = FeatureModel(plain, ["features"], InputNormalization.identity(), images)
    scales = expected["scales"] if case.startswith("ms") else (1.0,)
    assert_vector(describe_images(reference, images, scales), expected[case], 1e-7)


@pytest.mark.parametrize("power", ["1", "3", "2.5"])
def test_parity_of_gem(power):
    pool = GeM(float(power)).double()
    assert_vector(pool(rand((2, 16, 5, 7), 402, scale=2.0, offset=-0.5)), EXPECTED["gem"][power])


def test_parity_of_unit_length():
    assert_vector(unit_length(rand((3, 16, 1, 1), 403, scale=2.0, offset=-1.0).flatten(1)), EXPECTED["unit_length"])


def test_gem_with_power_1_is_the_average_and_a_large_one_nears_the_maximum():
    features = torch.rand(2, 4, 5, 6, dtype=torch.float64) + 0.5
    torch.testing.assert_close(GeM(1.0).double()(features), features.mean(dim=(2, 3)))
    torch.testing.assert_close(GeM(400.0).double()(features), features.amax(dim=(2, 3)), rtol=0.02, atol=0)


def small(whitened=False):
    torch.manual_seed(0)
    return build_place_network(PlaceSettings("resnet18", whitened))


def test_a_checkpoint_of_ours_comes_back_bit_for_bit(tmp_path):
    network = small(whitened=True).eval()
    save_place_network(network, PlaceSettings("resnet18", True), tmp_path / "best.pt")
    again, settings = load_place_network(tmp_path / "best.pt")
    images = torch.rand(2, 3, 40, 64)
    assert settings.whitened
    assert torch.equal(again.eval()(images), network(images))


def test_a_classifier_of_this_project_gives_its_trunk(checkpoint):
    network, settings = load_place_network(checkpoint)
    stored = torch.load(checkpoint, weights_only=True)["network"]
    assert settings.model == "resnet18"
    assert torch.equal(network.model.features[7][1].conv2.weight, stored["layer4.1.conv2.weight"])


def test_bare_weights_need_the_name_of_their_model(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="--model"):
        load_place_network(tmp_path / "bare.pth")
    network, _ = load_place_network(tmp_path / "bare.pth", "resnet18")
    with pytest.raises(UsageError, match="is it a resnet34, as --model says?"):
        load_place_network(tmp_path / "bare.pth", "resnet34")
    with pytest.raises(UsageError, match="of torchvision only"):
        load_place_network(tmp_path / "bare.pth", "timm/resnet18")
    stored = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert torch.equal(network.model.features[0].weight, stored["conv1.weight"])


@pytest.mark.parametrize("model", ["resnet50", "vgg11", "mobilenet_v3_small", "swin_t", "timm/convnext_atto"])
def test_trunks_of_torchvision_and_timm_describe_images_of_any_format(model):
    network = build_place_network(PlaceSettings(model)).eval()
    described = network(torch.rand(2, 3, 64, 96))
    assert described.shape == network(torch.rand(2, 3, 96, 64)).shape == (2, network.widths[0])
    assert network.widths[0] > 200
    torch.testing.assert_close(described.norm(dim=1), torch.ones(2), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet19", "--model resnet19: torchvision has no such network"),
        ("timm/nothing", "--model timm/nothing: timm has no model"),
        ("vit_b_16", "no part that gives a map"),
        ("timm/vit_tiny_patch16_224", "any size|no map of features"),
    ],
)
def test_a_trunk_that_cannot_be_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        build_place_network(PlaceSettings(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": {**META, "regional": True}}, "asks for regional"),
        ({"meta": {**META, "pooling": "rmac"}}, "pooling rmac"),
        ({"meta": {**META, "architecture": "resnet50"}}, "does not fit"),
        ({"meta": None}, "does not say what network"),
        ({"state_dict": {}}, "no weights that can be recognised"),
        ({"meta": {}}, "names no architecture"),
        ({"meta": {**META, "mean": [0.4]}}, "expected three numbers each"),
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        load_place_network(released_file(tmp_path, **changes))


def test_byol_compares_descriptors_and_shares_the_power_of_the_pooling():
    network = small()
    config = ByolConfig(batch_norm="frozen", head_norm="layer")
    pair = build_pair(network, config, build_projectors).train()
    assert pair.projectors[0].pool.gem is network.model.pool
    assert pair.target_projectors[0].pool.gem is not network.model.pool
    day = torch.rand(1, 3, 40, 48)  # one image: no BatchNorm may need a batch
    outputs = pair(day, day * 0.2)
    byol_loss(outputs).backward()
    assert network.model.pool.p.grad is not None
    assert pair.target_projectors[0].pool.gem.p.grad is None
    torch.testing.assert_close(outputs.day_prediction, network(day))


def test_the_power_learns_ten_times_as_fast_without_decay():
    network = small()
    others, power = parameter_groups(network, 1e-5, 1e-6)
    assert power["params"] == [network.model.pool.p]
    assert power["lr"] == pytest.approx(1e-4)
    assert power["weight_decay"] == 0
    assert len(others["params"]) == len(list(network.parameters())) - 1

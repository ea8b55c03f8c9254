"""Weights of other programs: the authors' released files, and a user's own models of torchvision and timm."""

import argparse
import json
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torchvision
from classification_scripts import CLASSES, SIZE, common, start
from classifier import (
    RELEASED_CLASSES,
    ClassifierSettings,
    ForeignFlags,
    build_classifier,
    classifier_settings,
    load_classifier,
    save_classifier,
)
from PIL import Image
from reference_weights import darkener_shapes
from torch import nn
from torchvision.models._api import WeightsEnum

from minmax.pretrained import find_weights
from minmax.runtime.checkpoints import load_checkpoint, load_strictly
from minmax.runtime.errors import UsageError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def assert_same_logits(network, whole, statistics, size=32, **tolerance):
    images = rand(3, 3, size, size)
    with torch.no_grad():
        expected = whole.eval()(torchvision.transforms.functional.normalize(images, *statistics))
        torch.testing.assert_close(network.eval()(images), expected, **tolerance)
    assert expected.std(dim=0).max() > 1e-3, "the images matter"


# --- finding the tensors

WEIGHTS = {"conv1.weight": torch.ones(2), "fc.bias": torch.zeros(3)}


def prefixed(*prefixes):
    return {"".join(prefixes) + name: tensor for name, tensor in WEIGHTS.items()}


PLACES = {
    "bare": WEIGHTS,
    **{
        name: {"epoch": 3, "optimizer": {"state": {}}, name: WEIGHTS}
        for name in ("state_dict", "model_state_dict", "model", "network", "net")
    },
    "data parallel": {"state_dict": prefixed("module.")},
    "compiled": prefixed("_orig_mod."),
    "data parallel of a compiled network": prefixed("module.", "_orig_mod."),
    "compiled data parallel": prefixed("_orig_mod.", "module."),
    "Lightning": {"state_dict": prefixed("model."), "callbacks": {}},
    "data parallel of a wrapped network": prefixed("module.", "model."),
    "an empty wrapper before": {"state_dict": {}, "model": WEIGHTS},
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_in_their_usual_places(place):
    found = find_weights(PLACES[place], "file.pth")
    assert list(found) == list(WEIGHTS)
    assert all(found[name] is tensor for name, tensor in WEIGHTS.items())


def test_a_prefix_that_some_names_lack_is_no_prefix():
    weights = {"module.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    assert find_weights(weights, "file.pth") == weights


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({}, "nothing"),
        ({"epoch": 3, "weights": WEIGHTS}, "epoch, weights"),
        ({"state_dict": {"conv1.weight": 1.0}}, "state_dict"),
        ({"model": torch.ones(1), "epoch": 1}, "model, epoch"),
        ({str(i): i for i in range(9)}, "0, 1, 2, 3, 4, 5"),
    ],
)
def test_a_file_without_weights_is_refused(payload, found):
    with pytest.raises(UsageError, match=f"file.pth holds no weights .* state_dict, .*; found {found}$"):
        find_weights(payload, "file.pth")


def test_a_tensor_of_two_names_is_loaded():
    networks = [nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)) for _ in range(2)]
    for network in networks:
        network[2].weight = network[0].weight
    load_strictly(networks[1], networks[0].state_dict(), "file.pth")
    assert torch.equal(networks[1](torch.ones(1, 3)), networks[0](torch.ones(1, 3)))
    assert networks[1][2].weight is networks[1][0].weight


# --- numbers of numpy in a checkpoint

NUMBERS = [np.float64(78.125), np.float32(0.5), np.float16(-2), np.int64(-7), np.uint8(200), np.bool_(True)]
NUMBERS.append(np.array(0.1, dtype=">f8")[()])
TABLE = np.arange(6.0).reshape(2, 3)
ARRAYS = [TABLE, np.asfortranarray(TABLE), np.arange(3, dtype=">i4"), np.ones((), bool), np.ones((1, 2), "f2")]


@pytest.fixture
def unchanged_globals():
    before = set(torch.serialization.get_safe_globals())
    yield
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("unchanged_globals")
def test_numbers_and_arrays_of_numpy_are_read(zipped, tmp_path):
    file = tmp_path / "file.pth"
    content = {"numbers": NUMBERS, "arrays": {"nested": [1, tuple(ARRAYS)]}, "state_dict": WEIGHTS}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(file)
    for read, number in zip(found["numbers"], NUMBERS, strict=True):
        assert type(read) in (float, int, bool) and read == number.item()
    for read, array in zip(found["arrays"]["nested"][1], ARRAYS, strict=True):
        assert read.dtype == array.dtype.newbyteorder("=") and read.shape == array.shape and np.array_equal(read, array)
    assert found["state_dict"].keys() == WEIGHTS.keys()


def test_the_flags_that_a_training_script_kept_do_not_hinder(tmp_path):
    weights = {"fc.weight": torch.ones(2)}
    torch.save({"state_dict": weights, "args": argparse.Namespace(lr=0.1)}, tmp_path / "theirs.pt")
    found = find_weights(load_checkpoint(tmp_path / "theirs.pt"), "theirs.pt")
    assert found.keys() == weights.keys()


def test_the_name_before_numpy_2_is_understood(tmp_path):
    file = tmp_path / "numbers.pth"
    torch.save({"best_acc": np.float64(78.125)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    assert b"numpy._core.multiarray\n" in content
    file.write_bytes(content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert load_checkpoint(file) == {"best_acc": 78.125}


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def scalar(*arguments):
    return Calls(np._core.multiarray.scalar, *arguments)


@pytest.mark.parametrize(
    "value",
    [
        lambda folder: np.zeros(2, dtype=[("a", "i4")]),
        lambda folder: np.array([Calls((folder / "code-was-run").mkdir)], dtype=object),
        lambda folder: Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), Calls(np.load, "x")),
        lambda folder: np.dtype([("a", "O")]),
        lambda folder: scalar(np.dtype("O"), b"12345678"),
        lambda folder: scalar(np.dtype("f8"), b"short"),
        lambda folder: scalar("f8", b"12345678"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("unchanged_globals")
def test_nothing_else_of_numpy_and_no_code_is_accepted(value, zipped, tmp_path):
    file = tmp_path / "bad.pth"
    torch.save({"state_dict": WEIGHTS, "best_acc": value(tmp_path)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match="refused .* could run code|is not a readable checkpoint"):
        load_checkpoint(file)
    assert list(tmp_path.iterdir()) == [file]


# --- the released files, under the authors' names


def released_resnet18():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if "running_" in name:
                buffer.add_(0.2 * torch.rand_like(buffer))
    return network


def released_head(inputs):
    return nn.Sequential(
        OrderedDict(fc1=nn.Linear(inputs, 128), bn1=nn.BatchNorm1d(128), relu=nn.ReLU(), fc2=nn.Linear(128, 128))
    )


def released_pair():
    """The modules of a ResNet_BYOL; those for training hold other weights than the network."""
    pair = nn.Module()
    pair.resnet, pair.encoder_k = released_resnet18(), torchvision.models.resnet18(num_classes=10)
    pair.head_q, pair.head_k, pair.pred = released_head(512), released_head(512), released_head(128)
    return pair


def released_darkener():
    numbers = {"down_scale": torch.tensor(0.95), "curve_round": torch.tensor(8), "encode_dim": torch.tensor(1)}
    return OrderedDict(numbers | {name: 0.1 * rand(*shape) for name, shape in darkener_shapes().items()})


def adapted_payload(pair):
    """What the authors' train.py saves; the optimiser here knows the small parts only."""
    parameters = [*pair.head_q.parameters(), *pair.pred.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3, weight_decay=1e-5)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    return {
        "epoch": 89,
        "state_dict": pair.state_dict(),
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best_acc": np.float64(78.125),
        "night_best_acc": np.float64(42.5),
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Released classifiers as files: the daytime one in both of its layouts, and an adapted one."""
    folder = tmp_path_factory.mktemp("released")
    daytime = released_resnet18().state_dict()
    payloads = {
        "daytime": {"state_dict": daytime},
        "bare daytime": daytime,
        "adapted": adapted_payload(released_pair()),
    }
    paths = {name: folder / f"{name}.pth" for name in payloads}
    for name, payload in payloads.items():
        torch.save(payload, paths[name])
    yield paths
    for path in paths.values():  # some 180 MB
        path.unlink()


DAYTIME = ["--model", "resnet18", "--classes", "codan"]


def codan_flags():
    return ForeignFlags(model="resnet18", classes=("codan",)).settings("nowhere", "train", 224)


@pytest.mark.parametrize("name", ["daytime", "bare daytime", "adapted"])
def test_a_released_classifier_gives_the_logits_of_a_plain_resnet18(name, released):
    network, settings = load_classifier(released[name], 224, None if name == "adapted" else codan_flags)
    assert settings == ClassifierSettings("resnet18", RELEASED_CLASSES, "imagenet", None)
    assert settings.classes[:3] == ("Bicycle", "Car", "Motorbike") and settings.classes[8] == "Cup"
    assert_same_logits(network, released_resnet18(), IMAGENET, 64)


def test_released_names():
    pair = released_pair().state_dict()
    assert len(pair) == 271 and len(released_resnet18().state_dict()) == 122 and len(released_darkener()) == 35
    assert tuple(pair["encoder_k.fc.weight"].shape) == (10, 512)
    assert tuple(pair["pred.fc1.weight"].shape) == (128, 128)


def test_another_network_under_the_authors_name_needs_its_flags(tmp_path):
    state = {f"resnet.{name}": tensor for name, tensor in released_resnet18().state_dict().items()}
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(UsageError, match="add --model with the architecture and --classes"):
        load_classifier(tmp_path / "mine.pth")


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "resnet.layer3.1.bn2.running_var"), r"1 missing \(layer3.1.bn2.running_var\)"),
        (lambda s: s | {"classifier.weight": torch.zeros(1)}, r"1 unexpected \(classifier.weight\)"),
    ],
)
def test_an_adapted_classifier_that_does_not_fit_is_refused_by_name(change, message, tmp_path):
    file = tmp_path / "adapted.pth"
    torch.save({"state_dict": change(released_pair().state_dict())}, file)
    try:
        with pytest.raises(UsageError, match=message) as caught:
            load_classifier(file)
    finally:
        file.unlink()  # 90 MB
    assert str(file) in str(caught.value)


@pytest.fixture(scope="module")
def codan(tmp_path_factory):
    """Two pictures of each of CODaN's classes, in the layout of its archives."""
    root = tmp_path_factory.mktemp("codan")
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test_day", "test_night"):
        for name in RELEASED_CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_outputs_of_a_released_classifier_are_named_in_the_authors_order(codan, tmp_path):
    network = released_resnet18()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.zero_()[RELEASED_CLASSES.index("Cup")] = 1
    torch.save({"state_dict": network.state_dict()}, tmp_path / "day.pth")
    flags = ["--checkpoint", tmp_path / "day.pth", "--data", codan, "--splits", "val", *SIZE]
    names = {"codan": "Cup", "alphabetical": sorted(RELEASED_CLASSES)[8]}
    for order, expected in names.items():
        start("test", *flags, "--model", "resnet18", "--classes", order, "--output", tmp_path / order)
        results = json.loads((tmp_path / order / "results.json").read_text())
        shares = results["results"]["checkpoint"]["val"]["per_class"]
        assert {name for name, share in shares.items() if share == 1} == {expected}
        assert sum(shares.values()) == 1
    (tmp_path / "day.pth").unlink()


def test_the_scripts_take_released_files(released, codan, tmp_path):
    torch.save(released_darkener(), tmp_path / "Epoch15.pth")
    flags = [*common(codan, tmp_path), "--optim.batch-size", 16]
    adapted = start("train", *flags, "--checkpoint", released["adapted"], "--darkener", tmp_path / "Epoch15.pth")
    assert load_classifier(adapted)[1] == ClassifierSettings("resnet18", RELEASED_CLASSES)
    flags = ["--checkpoint", adapted, "--before", released["daytime"], *DAYTIME, "--data", codan, *SIZE]
    found = start("test", *flags, "--output", tmp_path / "out")
    assert found["before"]["test_night"].confusion.sum() == 20
    for file in tmp_path.rglob("*.pt"):  # some 400 MB
        file.unlink()


SMALL = "timm/test_efficientnet"


# --- a user's own models

# The statistics of its published weights, the side that it remembers, features of images of 32 pixels.
OWN_MODELS = {
    "timm/test_convnext": ("half", None, [(64, 1, 1)]),
    "timm/test_vit": ("half", 32, [(64, 5)]),
}


def own_network(model, classes):
    torch.manual_seed(0)
    sized = {"img_size": 32} if "vit" in model else {}
    network = timm.create_model(model.removeprefix("timm/"), num_classes=classes, **sized)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of ours of the smallest classifier, for the class folders of `data`."""
    path = tmp_path_factory.mktemp("small") / "best.pt"
    settings = classifier_settings(SMALL, CLASSES, 32)
    save_classifier(build_classifier(settings), settings, path)
    return path


@pytest.mark.parametrize("model", OWN_MODELS)
def test_own_weights_give_their_own_logits(model, tmp_path):
    torch.save(own_network(model, 2).state_dict(), tmp_path / "own.pt")
    statistics, remembered, shapes = OWN_MODELS[model]
    network, settings = load_classifier(tmp_path / "own.pt", 32, lambda: classifier_settings(model, CLASSES, 32))
    assert settings == ClassifierSettings(model, CLASSES, statistics, remembered)
    assert_same_logits(network, own_network(model, 2), HALF)
    assert [tuple(feature.shape[1:]) for feature in network.features(rand(2, 3, 32, 32))] == shapes


def test_own_weights_are_adapted_into_a_checkpoint_that_needs_no_flags(data, tmp_path):
    model = "timm/test_vit"
    torch.save(own_network(model, 2).state_dict(), tmp_path / "own.pt")
    described = ["--checkpoint", tmp_path / "own.pt", "--model", model, "--classes", "alphabetical"]
    darkener = start("train_darkener", *common(data, tmp_path), *described)
    adapted = start("train", *common(data, tmp_path), *described, "--darkener", darkener)
    network, settings = load_classifier(adapted)
    assert settings == ClassifierSettings(model, CLASSES, *OWN_MODELS[model][:2])
    before, after = own_network(model, 2).state_dict(), network.model.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[n], after[n]) for n in after if n.endswith("weight"))
    testing = ["--checkpoint", adapted, "--data", data, *SIZE]
    alone = start("test", *testing)
    found = start("test", *testing, "--before", tmp_path / "own.pt", "--model", model, "--classes", *CLASSES)
    assert torch.equal(alone["checkpoint"]["test_night"].confusion, found["checkpoint"]["test_night"].confusion)
    assert found["before"]["test_day"].confusion.sum() == found["checkpoint"]["test_day"].confusion.sum() > 0


def test_a_model_of_one_size_is_trained_by_day_and_adapted(data, tmp_path):
    day = start("train_day", *common(data, tmp_path), "--model", "timm/test_vit", "--normalization", "clip")
    expected = ClassifierSettings("timm/test_vit", CLASSES, "clip", 32)
    assert load_classifier(day)[1] == expected
    adapted = start("train", *common(data, tmp_path), "--checkpoint", day, "--night.source", "gamma")
    assert load_classifier(adapted)[1] == expected


# --- flags that do not fit


@pytest.mark.parametrize(
    "flags", [["--model", SMALL], ["--classes", *CLASSES], ["--normalization", "half"], ["--normalization", "none"]]
)
@pytest.mark.parametrize("script", ["test", "train", "train_darkener"])
def test_flags_that_no_file_needs_are_refused(script, flags, small, data, tmp_path):
    own_flags = ["--data", data, *SIZE] if script == "test" else common(data, tmp_path / "runs")
    own_flags += ["--night.source", "gamma"] if script == "train" else []
    with pytest.raises(UsageError, match="describe foreign weights, but .*best.pt.* drop these flags"):
        start(script, *own_flags, "--checkpoint", small, *flags)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "own.pt"
    state = timm.create_model("test_efficientnet", num_classes=2).state_dict()
    torch.save({"epoch": 3, "model": state}, path)
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            r"own.pt does not say what its tensors \(conv_stem.weight, .*\.\.\.\) belong to; add --model .* --classes",
        ),
        (["--model", SMALL], r"--classes \(not given\): expected the order of the outputs .* scramble silently: alpha"),
        (["--model", SMALL, "--classes", "bus"], r"classifier.weight is \(2, 256\), expected \(1, 256\)"),
        (["--model", SMALL, "--classes", "codan"], r"is \(2, 256\), expected \(10, 256\)"),
        (["--model", SMALL, "--classes", "bus", "bus"], "--classes bus bus: expected every name once"),
        (["--model", SMALL, "--classes", "bus", "tram"], "test_day holds the classes bus, car; expected bus, tram"),
        (["--model", "test_efficientnet", "--classes", *CLASSES], "torchvision has no such .* or timm/NAME"),
        (["--model", "timm/efficientnet_c0", "--classes", *CLASSES], "timm has no model .*; it has .*efficientnet_"),
        (["--model", "timm/", "--classes", *CLASSES], "timm has no model ''$"),
        (["--model", "timm/resnet18.nonsuch", "--classes", *CLASSES], "Invalid pretrained tag .nonsuch. for resnet18"),
        (["--model", "timm/tf_efficientnet_b0_ap", "--classes", *CLASSES], "timm calls it tf_.*_b0.ap_in1k now"),
        (["--model", "resnet18", "--classes", *CLASSES], "does not fit ResNet: .* missing .* unexpected"),
    ],
)
def test_flags_that_do_not_describe_the_file_are_refused(flags, message, foreign, data):
    with pytest.raises(UsageError, match=message):
        start("test", "--checkpoint", foreign, "--data", data, *SIZE, *flags)


def test_classes_are_named_alphabetically_or_one_by_one(data):
    for order, expected in ((("alphabetical",), ("bus", "car")), (("car", "bus"), ("car", "bus"))):
        assert ForeignFlags(model=SMALL, classes=order).settings(str(data), "val", 32).classes == expected


def test_images_of_another_size_are_refused_for_a_model_of_one_size(data, tmp_path):
    model = "timm/test_vit"
    torch.save(own_network(model, 2).state_dict(), tmp_path / "own.pt")
    flags, described = ["--data", data, "--images.size", 64], ["--model", model, "--classes", "alphabetical"]
    with pytest.raises(UsageError, match=r"pos_embed is \(1, 5, 64\), expected \(1, 17, 64\)"):
        start("test", "--checkpoint", tmp_path / "own.pt", *flags, *described)
    settings = classifier_settings(model, CLASSES, 32)
    save_classifier(build_classifier(settings), settings, tmp_path / "ours.pt")
    with pytest.raises(UsageError, match="--images.size 64: the timm/test_vit in .*ours.pt takes images of 32 only"):
        start("test", "--checkpoint", tmp_path / "ours.pt", *flags)


def test_a_size_that_a_model_cannot_have_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match="--model vit_b_16 cannot be built: .*indivisible by patch size"):
        start("train_day", *common(data, tmp_path), "--images.size", 33, "--model", "vit_b_16")
    with pytest.raises(UsageError, match=r"--images.size: the model does not work on images \(3, 32, 32\): .*a larger"):
        start("train_day", *common(data, tmp_path), "--model", "inception_v3")


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        ("resnet18", "imagenet"),
        ("vit_b_16", "imagenet"),
        ("efficientnet_v2_l", "half"),
        ("inception_v3", "half"),  # torchvision's own forward converts, with published weights only
        ("timm/resnet50", "imagenet"),
        ("timm/vit_tiny_patch16_224", "half"),
        ("timm/vit_base_patch16_clip_224.openai", "clip"),
        ("timm/dpn68", "dpn"),
    ],
)
def test_the_statistics_of_published_weights(model, statistics):
    assert classifier_settings(model, CLASSES, 224).normalization == statistics
    assert classifier_settings(model, CLASSES, 224, "none").normalization == "none"


def test_a_published_inception_network_converts_its_input_to_these_statistics():
    torch.manual_seed(0)
    published = torchvision.models.googlenet(num_classes=3, aux_logits=False, init_weights=False, transform_input=True)
    for layer in published.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    published(rand(8, 3, 64, 64))  # statistics with which a signal reaches the end
    network = build_classifier(classifier_settings("googlenet", ("a", "b", "c"), 64))
    load_strictly(network.model, published.state_dict(), "googlenet")
    assert_same_logits(network, published, IMAGENET, 64, rtol=1e-3, atol=1e-3)


# --- published weights


def published_state(model):
    torch.manual_seed(7)
    return torchvision.models.get_model(model).state_dict()


def assert_published_but_for_the_last_layer(network, published, last):
    for name, tensor in network.model.state_dict().items():
        if name.startswith(last):
            assert tensor.shape[0] == 3 and published[name].shape[0] == 1000
        elif name.endswith("num_batches_tracked"):
            assert tensor == 0
        else:
            assert torch.equal(tensor, published[name]), name


def test_published_weights_under_former_names(monkeypatch):
    published = published_state("densenet121")
    former = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.")
        if "denselayer" in name
        else name: tensor
        for name, tensor in published.items()
        if not name.endswith("num_batches_tracked")
    }
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: dict(former))
    # Files from before BatchNorm counted its batches lack the counters, too.
    network = build_classifier(ClassifierSettings("densenet121", ("a", "b", "c")), pretrained=True)
    assert_published_but_for_the_last_layer(network, published, "classifier.")


def test_published_weights_of_timm(monkeypatch):
    torch.manual_seed(7)
    published = timm.create_model("test_efficientnet", num_classes=1000).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(published))
    network = build_classifier(ClassifierSettings(SMALL, ("a", "b", "c")), pretrained=True)
    assert_published_but_for_the_last_layer(network, published, "classifier.")


def test_published_weights_that_lack_more_than_the_last_layer_are_refused(monkeypatch):
    state = without(published_state("resnet18"), "layer4.1.conv2.weight")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: state)
    with pytest.raises(UsageError, match='--model resnet18 cannot be built: .*Missing key.*: "layer4.1.conv2.weight"'):
        build_classifier(ClassifierSettings("resnet18", CLASSES), pretrained=True)


def test_published_weights_for_another_size_are_refused(monkeypatch):
    def tiny(name, weights=None, num_classes=1000, image_size=224):
        return torchvision.models.VisionTransformer(image_size, 16, 1, 2, 16, 16, num_classes=num_classes)

    monkeypatch.setattr(torchvision.models, "get_model", tiny)
    settings = classifier_settings("vit_b_16", CLASSES, 32)
    build_classifier(settings)
    with pytest.raises(UsageError, match=r"encoder.pos_embedding is \(1, 197, 16\), expected \(1, 5, 16\)"):
        build_classifier(settings, pretrained=True)

"""A model with named feature layers predicts as it did alone and gives its features in the same pass."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from fake_devices import replica
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock

from minmax.byol import MomentumPair, byol_loss
from minmax.features import FeatureModel, InputNormalization, freeze, independent_copy, last_feature_layer

CLASSES = 5
models = torchvision.models


def rand(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def wrapped(model, layers=None, size=32, **options):
    example = rand(2, 3, size, size, seed=0)
    layers = layers or [last_feature_layer(model, example)]
    return FeatureModel(model, layers, InputNormalization.imagenet(), example, **options)


def normalised(images):
    return torchvision.transforms.functional.normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resnet():
    torch.manual_seed(0)
    return models.ResNet(BasicBlock, [1, 1, 1, 1], CLASSES)


def swin():
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return models.SwinTransformer(**sizes, dropout=0.1, stochastic_depth_prob=0.3, num_classes=CLASSES)


def vision_transformer():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return models.VisionTransformer(**sizes, dropout=0.2, num_classes=CLASSES)


def convnext():
    return models.ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], 0.5, 1.0, num_classes=CLASSES)


def shufflenet():
    return models.ShuffleNetV2([1, 1, 1], [24, 48, 96, 192, 64], num_classes=CLASSES)


def mobilenet():
    return models.mobilenet_v3_small(num_classes=CLASSES)


def timm_vit():
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, drop_path_rate=0.3, **sizes)


def of_timm(name, **sizes):
    return lambda: timm.create_model(name, num_classes=CLASSES, **sizes)


SWIN = {"img_size": 56, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}

# Maker, side of the images, whether it takes other sizes, the last layer of features, their shape, and the head.
NETWORKS = {
    "resnet": (resnet, 64, True, "layer4", (512, 2, 2), "fc"),
    "mobilenet": (mobilenet, 64, True, "features", (576, 2, 2), "classifier"),
    "shufflenet": (shufflenet, 64, True, "conv5", (64, 2, 2), "fc"),
    "squeezenet": (lambda: models.SqueezeNet("1_1", CLASSES), 64, True, "features", (512, 3, 3), "classifier"),
    "swin": (swin, 64, True, "norm", (32, 8, 8), "head"),
    "convnext": (convnext, 32, True, "features", (24, 4, 4), "classifier"),
    "vit": (vision_transformer, 32, False, "encoder", (32, 17), "heads"),
    "timm resnet": (of_timm("test_resnet", drop_path_rate=0.3), 64, True, "layer4", (96, 2, 2), "fc"),
    "timm convnext": (of_timm("test_convnext", drop_path_rate=0.3), 64, True, "stages", (64, 2, 2), "head"),
    "timm vit": (timm_vit, 32, False, "norm", (48, 5), "head"),
    "timm swin": (of_timm("swin_tiny_patch4_window7_224", **SWIN), 56, False, "norm", (32, 7, 7), "head"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A model with weights and statistics that nothing leaves untouched, a wrapped copy of it, and what to expect."""
    make, size, any_size, layer, shape, head = NETWORKS[request.param]
    torch.manual_seed(0)
    alone = make()
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for part in alone.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        alone.train()(rand(8, 3, size, size, seed=4))
    return alone, wrapped(copy.deepcopy(alone), size=size), size, any_size, layer, shape, head


@torch.no_grad()
def test_predictions_and_features_in_evaluation(case):
    alone, network, size, any_size, layer, shape, _ = case
    alone.eval(), network.eval()
    assert network.layers == (layer,) and network.widths == (shape[0],)
    for side in (size, size + 32) if any_size else (size,):
        images = rand(3, 3, side, side)
        prediction, [feature] = network.with_features(images)
        torch.testing.assert_close(prediction, alone(normalised(images)))
        assert torch.equal(network(images), prediction)
        assert prediction.shape == (3, CLASSES) and prediction.std(dim=0).max() > 1e-3
        [stopped] = network.features(images)
        assert torch.equal(stopped, feature) and (side > size or feature.shape == (3, *shape))
    if any_size:
        wide = network.features(rand(2, 3, size, 2 * size))[0]
        assert wide.shape[3] > wide.shape[2] == shape[1]


def test_predictions_gradients_and_statistics_in_training(case):
    alone, network, size, *_ = (copy.deepcopy(part) for part in case)
    images, labels = rand(4, 3, size, size), torch.arange(4)
    found = []
    for model, predict in (
        (alone, lambda: alone(normalised(images))),
        (network, lambda: network.with_features(images)),
    ):
        model.train()
        torch.manual_seed(5)  # for dropout and dropped paths
        found.append(predict())
        F.cross_entropy(found[-1] if model is alone else found[-1][0], labels).backward()
    torch.testing.assert_close(found[1][0], found[0])
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    torch.testing.assert_close({name: p.grad for name, p in network.model.named_parameters()}, expected)
    torch.testing.assert_close(dict(network.model.state_dict()), dict(alone.state_dict()))
    assert list(network.state_dict()) == [f"model.{name}" for name in alone.state_dict()]


def test_the_features_depend_on_all_parameters_but_the_heads(case):
    *_, network, _, _, _, _, head = case
    names = {name for name, _ in network.model.named_parameters()}
    assert names - network.feature_parameters == {name for name in names if name.startswith(f"{head}.")} != set()


def test_building_changes_nothing_of_the_callers():
    model = resnet()
    model.eval().layer2.train()
    model.conv1.requires_grad_(False)
    modes, state = [part.training for part in model.modules()], copy.deepcopy(model.state_dict())
    learns, draws = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    network = wrapped(model, size=64)
    assert network.model is model
    assert [name for name, part in model.named_modules() if part._forward_hooks] == ["layer4"]
    assert [part.training for part in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learns
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), draws)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_a_model_is_wrapped_where_it_is():
    network = FeatureModel(resnet().to("meta"), ["layer4"], InputNormalization.imagenet())
    assert last_feature_layer(network.model, torch.zeros(1, 3, 64, 64)) == "layer4"
    assert network.widths == (512,) and network(torch.zeros(1, 3, 64, 64, device="meta")).device.type == "meta"


def test_normalisation_comes_first_and_can_be_replaced():
    model = resnet().eval()
    network = FeatureModel(model, ["layer4"], InputNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    images = rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(network(images), model((images - mean) / std))
    assert (network(images) - model(images)).abs().max() > 1e-3
    network.normalization = InputNormalization.identity()
    assert torch.equal(network(images), model(images))


def test_several_features_come_in_the_order_of_their_names():
    network = wrapped(resnet(), ["layer4", "fc", "layer1"], 64)
    shapes = [tuple(feature.shape) for feature in network.features(rand(2, 3, 64, 64))]
    assert shapes == [(2, 512, 2, 2), (2, CLASSES), (2, 64, 16, 16)] and network.widths == (512, CLASSES, 64)
    assert network.feature_parameters == {name for name, _ in network.model.named_parameters()}


# --- hand-written models


class Convolutional(nn.Module):
    """A small model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, CLASSES)

    def trunk(self, x):
        return self.last(self.stem(x))

    def forward(self, x):
        return self.fc(self.trunk(x).mean((2, 3)))


class ScoresEachPosition(Convolutional):
    def forward(self, x):
        return self.fc(self.trunk(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3))


class DependsOnValues(Convolutional):
    def forward(self, x):
        return super().forward(-x if float(x.mean()) > 0 else x)


@pytest.mark.parametrize("kind", [Convolutional, ScoresEachPosition, DependsOnValues])
def test_the_feature_is_the_map_and_not_what_follows_from_it(kind):
    network, images = wrapped(kind()), rand(3, 3, 32, 32)
    (feature,) = network.features(images)
    assert network.layers == ("last",) and feature.shape == (3, 12, 16, 16)
    sign = -1 if kind is DependsOnValues and normalised(images).mean() > 0 else 1
    torch.testing.assert_close(feature, network.model.trunk(sign * normalised(images)))
    torch.testing.assert_close(network(images), network.model(normalised(images)))


@pytest.mark.parametrize(("value", "width"), [(rand(2, 4, 4, 9), 9), (rand(2, 4, 16, 16), 4), (rand(2, 7, 9), 9)])
def test_channels_are_found_by_shape_unless_they_are_declared(value, width):
    model = Convolutional()
    model.last = nn.Identity()
    model.forward = lambda images: model.last(value)
    assert wrapped(model, ["last"]).widths == (width,)
    assert wrapped(model, ["last"], layouts=["channels-first"]).widths == (value.shape[1],)


class HeadRaises(Convolutional):
    def forward(self, x):
        self.trunk(x)
        raise RuntimeError("the head was reached")


def test_a_pass_for_features_stops_at_the_last_of_them():
    network = wrapped(HeadRaises(), ["last", "stem"])
    assert [feature.shape[1] for feature in network.features(rand(1, 3, 32, 32))] == [12, 8]
    with pytest.raises(RuntimeError, match="the head was reached"):
        network.with_features(rand(1, 3, 32, 32))


def test_nothing_is_left_of_a_pass_that_raises():
    network, images = wrapped(Convolutional(), ["stem", "last"]), rand(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match="must match the size"):
        network.features(rand(1, 4, 32, 32))
    assert torch.equal(network(images), network.model(normalised(images))), "a bare pass is not stopped"
    assert [feature.shape[1] for feature in network.features(images)] == [8, 12]


class MeetsOthers(Convolutional):
    meeting = threading.Barrier(1)

    def trunk(self, x):
        value = self.stem(x)
        self.meeting.wait(timeout=30)
        return self.last(value)


@pytest.mark.parametrize("other", [lambda network: network, replica, copy.deepcopy], ids=["same", "replica", "copy"])
def test_passes_at_the_same_time_have_each_their_own_features(other):
    network, images = wrapped(MeetsOthers(), ["stem", "last"]), [rand(1, 3, 32, 32, seed=seed) for seed in (1, 2)]
    expected = [network.features(image) for image in images]
    MeetsOthers.meeting = threading.Barrier(2)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda n, image: n.features(image), (network, other(network)), images))
    finally:
        MeetsOthers.meeting = threading.Barrier(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class CallsALayerTwice(Convolutional):
    def trunk(self, x):
        x = self.last(self.stem(x))
        return self.last(x[:, :8]) + x


class ChangesInPlace(Convolutional):
    def trunk(self, x):
        return self.last(self.stem(x).relu_()).relu_()


@pytest.mark.parametrize("kind", [CallsALayerTwice, ChangesInPlace])
def test_whether_a_pass_stops_or_not_makes_no_difference_to_its_features(kind):
    network, images = wrapped(kind(), ["stem", "last"]), rand(1, 3, 32, 32)
    stem = network.model.stem(normalised(images))
    expected = [stem, network.model.last(stem.relu() if kind is ChangesInPlace else stem)]
    torch.testing.assert_close(network.with_features(images)[1], expected)
    torch.testing.assert_close(network.features(images), expected)


def test_two_networks_over_one_model_have_each_their_own_layers():
    model, images = Convolutional(), rand(1, 3, 32, 32)
    deep, shallow = wrapped(model, ["last"]), wrapped(model, ["stem"])
    assert [network.features(images)[0].shape[1] for network in (deep, shallow)] == [12, 8]


class HasOddLayers(Convolutional):
    def __init__(self):
        super().__init__()
        self.lstm, self.flat, self.spare = nn.LSTM(3, 3), nn.Flatten(0), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.lstm(x.flatten(2).mT)
        return self.flat(super().forward(x))


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (HasOddLayers(), ["lstm"], r"layer lstm gave tuple in a forward pass; expected one tensor \(N, C, ...\)"),
        (HasOddLayers(), ["last", "spare"], "layer spare gave nothing in a forward pass"),
        (HasOddLayers(), ["flat"], r"layer flat gave a tensor \(10,\) in a forward pass"),
        (
            Convolutional(),
            ["last", "layer4"],
            r"no layers \['layer4'\] in Convolutional; at its top are stem, last, fc",
        ),
        (Convolutional(), [""], r"no layers \[''\] in Convolutional"),
        (Convolutional(), [], r"no layers \(\) in Convolutional"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 30), nn.Conv2d(3, 3, 9)),
            ["1"],
            r"the model does not work on images \(3, 32, 32\): ",
        ),
    ],
)
def test_layers_that_give_no_features_are_refused_in_a_line(model, layers, message):
    with pytest.raises(ValueError, match=message) as caught:
        FeatureModel(model, layers, example=rand(2, 3, 32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.Linear(9, 5)), "no layer of Sequential gives a map"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1)), "no layer of Sequential gives a map"),
        (nn.Conv2d(3, 8, 40), "the model does not work on images .*: .* padded input size"),
    ],
)
def test_a_model_without_a_map_is_refused_in_a_line(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        last_feature_layer(model, rand(2, 3, 32, 32))
    assert "\n" not in str(caught.value)


# --- in a momentum pair


@pytest.mark.parametrize("frozen", [False, True])
def test_a_momentum_pair_on_a_vision_transformer_learns(frozen):
    torch.manual_seed(0)
    network = wrapped(vision_transformer())
    pair = MomentumPair(network, hidden=16, outputs=8, batch_norm="frozen" if frozen else "separate").train()
    target = copy.deepcopy(pair.target.state_dict())
    optimizer = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], 1e-3)
    outputs = pair(rand(4, 3, 32, 32), 0.2 * rand(4, 3, 32, 32, seed=2))
    assert outputs.q_day.shape == outputs.k_night.shape == (4, 1, 8)
    loss = byol_loss(outputs)
    assert torch.isfinite(loss) and 0 < loss < 4
    loss.backward()
    for name, parameter in network.model.named_parameters():
        learned = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert learned == (name in network.feature_parameters), name
    assert all(p.grad is None for p in pair.target.parameters())
    optimizer.step()
    torch.testing.assert_close(pair.target.state_dict(), target, rtol=0, atol=0)
    pair.update_target()
    assert not torch.equal(pair.target.model.conv_proj.weight, target["model.conv_proj.weight"])


class SharesATensor(Convolutional):
    """The head scores by the filters that made the features."""

    def __init__(self):
        super().__init__()
        self.last, self.fc = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1)
        self.fc.weight = self.last.weight

    def forward(self, x):
        return self.fc(self.trunk(x)).mean((2, 3))


def test_a_tensor_of_features_and_head_stays_one_and_the_heads_own_are_given_up():
    network = wrapped(SharesATensor(), ["last"])
    assert network.feature_parameters == {"stem.weight", "stem.bias", "last.weight"}
    target = MomentumPair(network, 8, 5).target.model
    assert target.fc.weight is target.last.weight and target.last.weight.numel() == 64
    assert target.fc.bias.numel() == 0 and network.model.fc.bias.numel() == 8


def test_a_frozen_model_cannot_be_adapted():
    with pytest.raises(ValueError, match="all its parameters are frozen"):
        MomentumPair(freeze(wrapped(Convolutional())))


@pytest.mark.parametrize("kind", [resnet, Convolutional, ChangesInPlace, CallsALayerTwice])
def test_a_compiled_pass_is_one_graph_with_the_same_results(kind):
    """`eager` runs what was traced as it is, so that only what tracing got wrong could differ; it is seconds faster."""
    model = kind()
    layers = ["layer3", "layer4"] if kind is resnet else ["stem", "last"]
    network = wrapped(model, layers).train()
    compiled = copy.deepcopy(network)
    torch._dynamo.reset()
    compiled.compile(backend="eager", fullgraph=True)
    for images in (rand(4, 3, 32, 32, seed=seed) for seed in (1, 2)):
        for training in (True, False):
            found = []
            for net in (network.train(training), compiled.train(training)):
                net.zero_grad()
                prediction, features = net.with_features(images)
                sum(value.square().mean() for value in (prediction, *features)).backward()
                with torch.no_grad():
                    alone = net.features(images)
                gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
                found.append([prediction, features, alone, net(images), gradients, net.state_dict()])
            torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_copy_of_a_module_with_a_lambda_computes_with_its_own_weights():
    model = nn.Sequential(nn.Module(), nn.Conv2d(4, 2, 1))
    part = model[0]
    part.inner = nn.Conv2d(3, 4, 1)
    part.forward = lambda images: part.inner(images)
    copied, images = independent_copy(model), torch.rand(1, 3, 8, 8)
    assert torch.equal(copied(images), model(images))
    expected = copied(images)
    with torch.no_grad():
        part.inner.weight.zero_()
    assert torch.equal(copied(images), expected) and not torch.equal(model(images), expected)

"""A network cut into encoder and head computes what it computed whole, by day, in training and after a copy."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from minmax.split_network import split_network
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.convnext import CNBlockConfig, LayerNorm2d
from torchvision.models.resnet import BasicBlock

from minmax.byol import MomentumPair, byol_loss
from minmax.features import InputNormalization

CLASSES = 5
models = torchvision.models
LEAVES = (*get_notrace_modules(), LayerNorm2d, torchvision.ops.StochasticDepth)


def split(network, size=32, normalization=None):
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    normalization = normalization or InputNormalization.imagenet()
    return split_network(network, example, normalization, LEAVES, get_notrace_functions())


def rand(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normalised(images):
    return torchvision.transforms.functional.normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def swin():
    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return models.SwinTransformer(**sizes, dropout=0.1, stochastic_depth_prob=0.3, num_classes=CLASSES)


def vision_transformer():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return models.VisionTransformer(**sizes, dropout=0.2, num_classes=CLASSES)


def convnext():
    return models.ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], 0.5, 1.0, num_classes=CLASSES)


def of_timm(name, **sizes):
    return lambda: timm.create_model(name, num_classes=CLASSES, **sizes)


# Maker, side of the images, whether it takes other sizes, and the features' shapes without the batch.
NETWORKS = {
    "resnet": (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], CLASSES), 64, True, [(512, 2, 2)]),
    "mobilenet": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 64, True, [(576, 2, 2)]),
    "shufflenet": (
        lambda: models.ShuffleNetV2([1, 1, 1], [24, 48, 96, 192, 64], num_classes=CLASSES),
        64,
        True,
        [(64, 2, 2)],
    ),
    "squeezenet": (lambda: models.SqueezeNet("1_1", CLASSES), 64, True, [(512, 3, 3)]),
    "swin": (swin, 64, True, [(32, 8, 8)]),
    "convnext": (convnext, 32, True, [(24, 4, 4)]),
    "vit": (vision_transformer, 32, False, [(32, 4, 4), (32,)]),
    "timm resnet": (of_timm("test_resnet", drop_path_rate=0.3), 64, True, [(96, 2, 2)]),
    "timm convnext": (of_timm("test_convnext", drop_path_rate=0.3), 64, True, [(64, 2, 2)]),
    "timm vit": (
        of_timm("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3, drop_path_rate=0.3),
        32,
        False,
        [(48, 2, 2), (48,)],
    ),
    "timm vit with registers": (
        of_timm("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=48, num_heads=3, reg_tokens=3),
        64,
        False,
        [(48, 4, 4), (48,), (48,), (48,), (48,)],
    ),
    "timm swin": (
        of_timm("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 4), embed_dim=16),
        56,
        False,
        [(32, 7, 7)],
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network with weights and statistics that nothing leaves untouched, a split copy of it, and what to expect."""
    make, size, any_size, shapes = NETWORKS[request.param]
    torch.manual_seed(0)
    whole = make()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in whole.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        whole.train()(rand(8, 3, size, size, seed=4))
    return whole, split(copy.deepcopy(whole), size), size, any_size, shapes


def test_logits_in_evaluation(case):
    whole, halves, size, any_size, _ = case
    whole.eval(), halves.eval()
    for side in (size, size + 32) if any_size else (size,):
        images = rand(3, 3, side, side)
        with torch.no_grad():
            logits = halves(images)
            torch.testing.assert_close(logits, whole(normalised(images)))
        assert logits.shape == (3, CLASSES) and logits.std(dim=0).max() > 1e-3


def test_logits_gradients_and_statistics_in_training(case):
    whole, halves, size, _, _ = (copy.deepcopy(part) for part in case)
    images, labels = rand(4, 3, size, size), torch.arange(4)
    for network, inputs in ((whole, normalised(images)), (halves, images)):
        network.train()
        torch.manual_seed(5)  # for dropout and dropped paths
        network.logits = network(inputs)
        F.cross_entropy(network.logits, labels).backward()
    torch.testing.assert_close(halves.logits, whole.logits)
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    found = {name.partition(".")[2]: parameter.grad for name, parameter in halves.named_parameters()}
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(by_whole_name(halves), dict(whole.state_dict()))


def by_whole_name(halves):
    return {name.partition(".")[2]: tensor for name, tensor in halves.state_dict().items()}


def test_the_halves_share_out_the_tensors_by_their_names(case):
    whole, halves, *_ = case
    names = [name.partition(".")[2] for name in halves.state_dict()]
    assert {name.partition(".")[0] for name in halves.state_dict()} <= {"encoder", "head"}
    assert sorted(names) == sorted(whole.state_dict())
    assert set(dict(halves.named_parameters())) <= set(halves.state_dict())


def test_features(case):
    _, halves, size, any_size, shapes = case
    features = halves.encoder(rand(3, 3, size, size))
    assert [tuple(feature.shape) for feature in features] == [(3, *shape) for shape in shapes]
    assert halves.feature_widths == tuple(shape[0] for shape in shapes)
    if any_size:
        wide = halves.encoder(rand(2, 3, size, 2 * size))
        assert wide[0].shape[3] > wide[0].shape[2] == shapes[0][1]


def test_training_mode_reaches_every_layer(case):
    halves = case[1]
    for mode in (False, True):
        halves.train(mode)
        assert {module.training for module in halves.modules()} == {mode}


def test_a_split_network_starts_in_training_with_the_layers_it_was_given():
    torch.manual_seed(0)
    whole = models.ResNet(BasicBlock, [1, 1, 1, 1], CLASSES)
    halves = split(whole.eval(), 64)
    assert halves.training and whole.layer4[0].bn1.training
    assert halves.encoder.conv1 is whole.conv1 and halves.head.fc is whole.fc


def test_normalisation_comes_first_and_can_be_replaced():
    torch.manual_seed(0)
    whole = models.ResNet(BasicBlock, [1, 1, 1, 1], CLASSES)
    halves = split(copy.deepcopy(whole), 64, InputNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))).eval()
    whole.eval()
    images = rand(2, 3, 64, 64)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(halves(images), whole((images - mean) / std))
    assert (halves(images) - whole(images)).abs().max() > 1e-3
    halves.encoder.normalization = InputNormalization.identity()
    torch.testing.assert_close(halves(images), whole(images))


def test_a_copy_of_the_encoder_is_independent(case):
    encoder, size = case[1].encoder.train(), case[2]
    names, before = list(encoder.state_dict()), {n: t.clone() for n, t in encoder.state_dict().items()}
    twin = copy.deepcopy(encoder)
    assert list(twin.state_dict()) == names
    images = rand(2, 3, size, size)
    with torch.no_grad():
        for ours, theirs in zip(encoder.eval()(images), twin.eval()(images), strict=True):
            assert torch.equal(ours, theirs)
        for parameter in twin.parameters():
            parameter.zero_()
        twin.train()(images)
    torch.testing.assert_close(dict(encoder.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_momentum_pair_on_a_vision_transformer_learns(frozen):
    torch.manual_seed(0)
    network = split(vision_transformer())
    pair = MomentumPair(network, hidden=16, outputs=8, batch_norm="frozen" if frozen else "separate").train()
    assert len(pair.projectors) == 2
    target = {name: tensor.clone() for name, tensor in pair.target_encoder.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in pair.parameters() if p.requires_grad], 1e-3)
    outputs = pair(rand(4, 3, 32, 32), 0.2 * rand(4, 3, 32, 32, seed=2))
    assert outputs.q_day.shape == outputs.k_night.shape == (4, 2, 8)
    loss = byol_loss(outputs)
    assert torch.isfinite(loss) and 0 < loss < 4
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())
    assert all(p.grad is None for p in pair.target_encoder.parameters())
    optimizer.step()
    torch.testing.assert_close(dict(pair.target_encoder.state_dict()), target, rtol=0, atol=0)
    pair.update_target()
    assert not torch.equal(pair.target_encoder.state_dict()["conv_proj.weight"], target["conv_proj.weight"])


def test_as_many_classes_as_channels_change_nothing():
    halves = split(models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=512), 64)
    assert [tuple(feature.shape) for feature in halves.encoder(rand(2, 3, 64, 64))] == [(2, 512, 2, 2)]


# --- hand-written networks


class Convolutional(nn.Module):
    """A small network around a middle part."""

    def __init__(self, middle=None):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.middle, self.fc = middle or nn.Identity(), nn.Linear(12, CLASSES)

    def trunk(self, x):
        return self.last(self.middle(self.stem(x)))

    def forward(self, x):
        return self.fc(self.trunk(x).mean((2, 3)))


class AsksInAFunction(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class AsksBeforeALayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        if self.training:
            x = self.drop(x)
        return x


class ActsInEvaluationOnly(nn.Module):
    def forward(self, x):
        return x if self.training else x.clamp(-0.1, 0.1)


class AsksForAConstant(nn.Module):
    def forward(self, x):
        return x * torch.tensor(2.0 if self.training else 1.0)


@pytest.mark.parametrize("kind", [AsksInAFunction, AsksBeforeALayer, ActsInEvaluationOnly, AsksForAConstant])
def test_a_layer_that_asks_whether_it_is_in_training_stays_whole(kind):
    torch.manual_seed(0)
    whole = Convolutional(nn.Sequential(kind(), nn.ReLU(), kind()))
    halves = split(copy.deepcopy(whole))
    images, found = rand(4, 3, 32, 32), []
    for mode in (True, False):
        for network, inputs in ((whole, normalised(images)), (halves, images)):
            torch.manual_seed(1)
            found.append(network.train(mode)(inputs))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[3], found[2])
    assert not torch.equal(found[0], found[2]), "the modes differ"
    assert isinstance(halves.encoder.middle.get_submodule("0"), kind)
    assert halves.feature_widths == (12,)


class FlattensItsMap(Convolutional):
    def forward(self, x):
        return self.fc(self.trunk(x).flatten(2).mean(2))


class PutsChannelsLast(Convolutional):
    def forward(self, x):
        return self.fc((self.trunk(x).permute(0, 2, 3, 1) * 2).mean((1, 2)))


class ScoresEachPosition(Convolutional):
    def forward(self, x):
        return self.fc(self.trunk(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((2, 3))


@pytest.mark.parametrize("kind", [FlattensItsMap, PutsChannelsLast, ScoresEachPosition])
def test_the_feature_is_the_map_and_not_what_follows_from_it(kind):
    torch.manual_seed(0)
    whole = kind()
    halves = split(copy.deepcopy(whole))
    images = rand(3, 3, 32, 32)
    (feature,) = halves.encoder(images)
    assert feature.shape == (3, 12, 16, 16) and halves.feature_widths == (12,)
    expected = whole.trunk(normalised(images)) * (2 if kind is PutsChannelsLast else 1)
    torch.testing.assert_close(feature, expected)
    torch.testing.assert_close(halves(images), whole(normalised(images)))


class HoldsUnstoredTensors(Convolutional):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((1, 8, 1, 1), 2.0), persistent=False)
        self.register_buffer("shift", torch.full((1, 8, 1, 1), 3.0))

    def forward(self, x):
        x = self.last(self.stem(x) * self.scale + self.shift.abs() + torch.tensor([1.0]))
        return self.fc(x.mean((2, 3))) + torch.arange(CLASSES)


def test_tensors_that_the_whole_does_not_store_do_not_enter_the_state():
    torch.manual_seed(0)
    whole = HoldsUnstoredTensors()
    halves = split(copy.deepcopy(whole))
    assert by_whole_name(halves).keys() == whole.state_dict().keys()
    assert copy.deepcopy(halves.encoder).state_dict().keys() == halves.encoder.state_dict().keys()
    images = rand(3, 3, 32, 32)
    torch.testing.assert_close(halves(images), whole(normalised(images)))
    with torch.no_grad():
        for network, name in ((whole, "shift"), (halves, "encoder.shift")):
            network.get_buffer(name).fill_(-7)  # as loading weights does: nothing computed from it may be left over
    torch.testing.assert_close(halves(images), whole(normalised(images)))
    assert halves.to(torch.float64)(images.double()).dtype == torch.float64


class UsesATensorTwice(Convolutional):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.fc(self.trunk(x * self.gain).mean((2, 3))) * self.gain


def test_a_tensor_of_both_halves_stays_one():
    halves = split(UsesATensorTwice())
    assert halves.encoder.gain is halves.head.gain
    assert halves.state_dict().keys() >= {"encoder.gain", "head.gain"}


class AsksAtTheTop(Convolutional):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=self.training)


class DependsOnValues(Convolutional):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class GivesTwo(Convolutional):
    def forward(self, x):
        x = super().forward(x)
        return x, x


class HasANormalization(Convolutional):
    def __init__(self):
        super().__init__()
        self.normalization = nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.normalization(x))


class HasABypass(Convolutional):
    def forward(self, x):
        return super().forward(x) + x.mean((2, 3)).sum(1, keepdim=True)


class PartsEarly(Convolutional):
    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.last(x.relu()).relu().mean((2, 3)) + self.last(x.tanh()).relu().mean((2, 3)))


class DependsOnTheTracing(Convolutional):
    def forward(self, x):
        return super().forward(x if isinstance(x, torch.Tensor) else -x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (AsksAtTheTop(), "its own forward method asks whether it is in training"),
        (DependsOnValues(), "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.Linear(9, CLASSES)), "no single map of features leads"),
        (HasABypass(), "no single map of features leads to its prediction"),
        (PartsEarly(), "no single map of features leads to its prediction"),
        (GivesTwo(), "its prediction is not one tensor"),
        (HasANormalization(), "it has a part named normalization"),
        (Convolutional(nn.Conv2d(8, 8, 30)), r"does not work on images \(3, 32, 32\): .* padded input size"),
        (DependsOnTheTracing(), "its halves do not compute what the whole computes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_network_that_cannot_be_cut_is_refused_with_the_reason(network, message):
    with pytest.raises(ValueError, match=message):
        split(network)

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from minmax.byol import MomentumPair, Projector, ViewPair, byol_loss
from minmax.features import FeatureModel, InputNormalization, freeze


class Pooled(nn.Sequential):
    """Layers by name, and classes of the average over what they give."""

    def __init__(self, fc=None, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.add_module("average", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", fc or nn.Identity())


def tiny_network():
    torch.manual_seed(0)
    model = Pooled(nn.Linear(6, 4), conv=nn.Conv2d(3, 6, 3, padding=1), bn=nn.BatchNorm2d(6))
    return FeatureModel(model, ["bn"], InputNormalization.imagenet(), torch.zeros(1, 3, 8, 8))


@pytest.fixture
def pair():
    return MomentumPair(tiny_network(), hidden=8, outputs=5, momentum=0.9)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.rand(4, 3, 8, 8, generator=generator)


def targets_and_onlines(pair):
    """What moves: all but the head."""
    features = [
        [parameter for name, parameter in network.model.named_parameters() if not name.startswith("fc")]
        for network in (pair.target, pair.online)
    ]
    return [*features[0], *pair.target_projectors.parameters()], [*features[1], *pair.projectors.parameters()]


def test_target_equals_online_at_the_start_buffers_included_and_has_no_head(pair):
    assert all(map(torch.equal, *targets_and_onlines(pair)))
    ours, target = pair.online.model.state_dict(), pair.target.model.state_dict()
    assert ours.keys() == target.keys()
    for name in ours:
        assert target[name].numel() == 0 if name.startswith("fc.") else torch.equal(ours[name], target[name])
    assert pair.online.model.fc.weight.shape == (4, 6)


def test_target_is_an_exact_moving_average_and_takes_no_gradient(pair, views):
    optimizer = torch.optim.SGD([p for p in pair.parameters() if p.requires_grad], lr=0.5)
    before = [p.clone() for p in targets_and_onlines(pair)[0]]
    byol_loss(pair(*views)).backward()
    optimizer.step()
    pair.update_target()
    targets, onlines = targets_and_onlines(pair)
    for old, online, target in zip(before, onlines, targets, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * online)
        assert target.grad is None
        assert not target.requires_grad
    assert any(not torch.equal(old, target) for old, target in zip(before, targets, strict=True))


def test_running_statistics_of_the_target_are_its_own(pair, views):
    pair(*views)
    online, target = pair.online.model.bn, pair.target.model.bn
    assert int(online.num_batches_tracked) == int(target.num_batches_tracked) == 2
    # The two see the same views in opposite order, so their running means differ slightly; neither is a copy.
    assert not torch.equal(online.running_mean, target.running_mean)
    kept = target.running_mean.clone()
    pair.update_target()
    assert torch.equal(target.running_mean, kept)


def test_separate_batch_norm_sees_each_domain_alone_and_joint_sees_both(views):
    day, night = views[0], views[1] * 0.1
    separate = MomentumPair(tiny_network(), 8, 5, batch_norm="separate")
    joint = MomentumPair(tiny_network(), 8, 5, batch_norm="joint")
    alone = tiny_network().features(night)[0]
    assert torch.allclose(separate._both(separate.online.features, day, night)[1][0], alone)
    together = tiny_network().features(torch.cat([day, night]))[0]
    assert torch.allclose(joint._both(joint.online.features, day, night)[1][0], together[4:])
    assert not torch.allclose(alone, together[4:], atol=0.1)


def test_loss_is_zero_for_equal_and_four_for_opposite_features(pair, views):
    out = pair(*views)
    unit = nn.functional.normalize(torch.randn(4, 1, 5), dim=2)
    equal = out._replace(q_day=unit, k_night=unit, q_night=unit, k_day=unit)
    opposite = out._replace(q_day=unit, k_night=-unit, q_night=unit, k_day=-unit)
    assert byol_loss(equal).item() == pytest.approx(0.0, abs=1e-6)
    assert byol_loss(opposite).item() == pytest.approx(4.0)


def test_features_are_of_unit_length_and_shaped_batch_feature_width(pair, views):
    out = pair(*views)
    for value in (out.q_day, out.k_night, out.q_night, out.k_day):
        assert value.shape == (4, 1, 5)
        torch.testing.assert_close(value.norm(dim=2), torch.ones(4, 1))
    assert not out.k_day.requires_grad
    assert out.q_day.requires_grad


def test_projector_pools_maps_and_clips_and_takes_vectors():
    projector = Projector(6, 8, 5).eval()
    clip = torch.rand(2, 6, 3, 4, 4)
    torch.testing.assert_close(projector(clip), projector(clip.mean(dim=(2, 3, 4))))
    pooled = Projector(6, 8, 5, pool=nn.AdaptiveMaxPool2d(1)).eval()
    pooled.layers.load_state_dict(projector.layers.state_dict())
    torch.testing.assert_close(pooled(clip[:, :, 0]), projector(clip[:, :, 0].amax(dim=(2, 3))))


def test_frozen_stays_frozen(views):
    network = freeze(tiny_network())
    before = copy.deepcopy(network.state_dict())
    images = views[0].requires_grad_(True)
    network.features(images)[0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0, "a frozen network still passes gradients to its input"
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_data_parallel_moves_the_target(pair, views):
    wrapped = nn.DataParallel(pair)  # without CUDA devices it calls the module itself, as on one device
    optimizer = torch.optim.SGD([p for p in pair.parameters() if p.requires_grad], lr=0.5)
    byol_loss(wrapped(*views)).backward()
    optimizer.step()
    before = [p.clone() for p in targets_and_onlines(pair)[0]]
    pair.update_target()
    assert any(not torch.equal(a, b) for a, b in zip(before, targets_and_onlines(pair)[0], strict=True))


def network_of_two_features():
    """Features of different widths, and running statistics that are not those of a new network."""
    torch.manual_seed(0)
    model = Pooled(
        nn.Linear(9, 4),
        conv1=nn.Conv2d(3, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 9, 3, padding=1, stride=2),
        bn2=nn.BatchNorm2d(9),
    )
    network = FeatureModel(model, ["bn1", "bn2"], InputNormalization.imagenet(), torch.zeros(1, 3, 8, 8))
    for _ in range(3):
        network(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)) ** 2)
    return network


def build(kind, batch_norm):
    network = network_of_two_features()
    return ViewPair(network, batch_norm) if kind is ViewPair else kind(network, 8, 5, batch_norm=batch_norm)


KINDS = pytest.mark.parametrize("kind", [ViewPair, MomentumPair])


def test_without_a_target_the_loss_is_the_mean_cosine_of_the_pooled_features(views):
    views = views[0], views[1] * 0.1
    network = network_of_two_features().eval()
    day, night = network.features(views[0]), network.features(views[1])
    cosines = []
    for a, b in zip(day, night, strict=True):
        a, b = a.mean(dim=(2, 3)), b.mean(dim=(2, 3))
        cosines.append(((a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()).mean())
    assert abs(cosines[0] - cosines[1]) > 0.1, "the two features say the same: they could be weighted wrongly"
    out = ViewPair(network_of_two_features()).eval()(*views)
    torch.testing.assert_close(byol_loss(out), 2 - 2 * (cosines[0] + cosines[1]) / 2)
    for value in (out.q_day, out.k_night, out.q_night, out.k_day):
        assert value.shape == (4, 1, 6 + 9)
        torch.testing.assert_close(value.norm(dim=2), torch.ones(4, 1))
    # Both directions compare day with night.
    torch.testing.assert_close((out.q_day * out.k_night).sum(dim=2), (out.q_night * out.k_day).sum(dim=2))
    same = ViewPair(network_of_two_features())(views[0], views[0])
    assert byol_loss(same).item() == pytest.approx(0.0, abs=1e-6)


def test_without_a_target_gradients_reach_both_views_and_nothing_is_moved(views):
    pair = ViewPair(network_of_two_features())
    day, night = (view.clone().requires_grad_(True) for view in views)
    byol_loss(pair(day, night)).backward()
    assert day.grad.abs().sum() > 0 and night.grad.abs().sum() > 0
    network = network_of_two_features()
    pooled = [[feature.mean(dim=(2, 3)) for feature in network.features(view)] for view in (day, night)]
    cosines = [nn.functional.cosine_similarity(a, b).mean() for a, b in zip(*pooled, strict=True)]
    # No side is held constant: these are the gradients of the plain cosine.
    for found, expected in zip((day.grad, night.grad), torch.autograd.grad(-sum(cosines), (day, night)), strict=True):
        torch.testing.assert_close(found, expected)
    before = copy.deepcopy(pair.state_dict())
    assert set(before) == {f"online.{name}" for name in pair.online.state_dict()}, "a projector or target is left"
    pair.update_target()
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())


@KINDS
def test_predictions_are_those_of_the_network(kind, views):
    out = build(kind, "separate")(*views)
    network = network_of_two_features()
    torch.testing.assert_close(out.day_prediction, network(views[0]))
    torch.testing.assert_close(out.night_prediction, network(views[1]))


@KINDS
def test_joint_predictions_are_normalised_by_both_halves(kind, views):
    day, night = views[0], views[1] * 0.1
    joint, separate = build(kind, "joint")(day, night), build(kind, "separate")(day, night)
    together = network_of_two_features()(torch.cat([day, night]))
    torch.testing.assert_close(joint.day_prediction, together[:4])
    torch.testing.assert_close(joint.night_prediction, together[4:])
    assert not torch.allclose(joint.night_prediction, separate.night_prediction, atol=0.01)


def statistics_of(*modules):
    """Running means and variances and counts of batches, which alone are buffers of a state."""
    parameters = {name for module in modules for name, _ in module.named_parameters()}
    return [
        value.clone() for module in modules for name, value in module.state_dict().items() if name not in parameters
    ]


def unchanged(before, *modules):
    return all(map(torch.equal, before, statistics_of(*modules)))


@KINDS
@pytest.mark.parametrize("modes", [(), (True,), (True, False, True)], ids=["new", "train", "after evaluation"])
def test_frozen_batch_norm_uses_and_keeps_the_running_statistics(kind, modes, views):
    pair = build(kind, "frozen")
    for mode in modes:
        assert pair.train(mode) is pair
    assert pair.training and pair.online.training and pair.online.model.training
    before = statistics_of(*pair._parts_with_statistics())
    assert len(before) == 6 * len(pair._parts_with_statistics())
    out = pair(*views)
    pair(views[1], views[0])
    assert unchanged(before, *pair._parts_with_statistics())
    network = network_of_two_features().eval()
    torch.testing.assert_close(out.day_prediction, network(views[0]))
    torch.testing.assert_close(out.night_prediction, network(views[1]))
    assert not torch.allclose(out.day_prediction, network_of_two_features()(views[0]), atol=0.01)


@KINDS
def test_without_freezing_the_running_statistics_follow_the_batches(kind, views):
    for domains in ("separate", "joint"):
        pair = build(kind, domains)
        before = statistics_of(*pair._parts_with_statistics())
        pair.eval()
        pair(*views)
        assert unchanged(before, *pair._parts_with_statistics())
        pair.train()(*views)
        assert not any(map(torch.equal, before, statistics_of(*pair._parts_with_statistics())))


@KINDS
def test_frozen_batch_norm_learns_its_scale_and_shift(kind, views):
    pair = build(kind, "frozen").train()
    out = pair(*views)
    (byol_loss(out) + out.night_prediction.square().mean()).backward()
    for layer in (pair.online.model.bn1, pair.online.model.bn2):
        assert layer.weight.grad.abs().sum() > 0 and layer.bias.grad.abs().sum() > 0


def test_the_target_is_frozen_too_and_the_projectors_are_not(views):
    pair = build(MomentumPair, "frozen").train()
    found = pair._both(pair.target.features, *views)
    expected = network_of_two_features().eval().features
    for features, view in zip(found, views, strict=True):
        for ours, theirs in zip(features, expected(view), strict=True):
            torch.testing.assert_close(ours, theirs)
    trained = [*pair.projectors, *pair.predictors, *pair.target_projectors]
    before = [statistics_of(module) for module in trained]
    pair(*views)
    assert len(trained) == 6
    assert not any(unchanged(then, module) for then, module in zip(before, trained, strict=True))


@KINDS
def test_a_head_with_batch_norm_treats_the_views_as_the_features_do(kind):
    torch.manual_seed(0)
    day, night = torch.rand(4, 3, 8, 8), 0.1 * torch.rand(4, 3, 8, 8)
    found = {}
    for mode in ("separate", "joint", "frozen"):
        model = Pooled(conv=nn.Conv2d(3, 5, 1), norm=nn.BatchNorm2d(5))
        torch.nn.init.constant_(model.conv.weight, 0.3)
        torch.nn.init.zeros_(model.conv.bias)
        out = kind(FeatureModel(model, ["conv"]), batch_norm=mode).train()(day, night)
        found[mode] = (out.day_prediction.mean().item(), out.night_prediction.mean().item(), model.norm)
    # By itself each view has mean 0; together the day lies above it and the night below.
    assert found["separate"][0] == pytest.approx(0, abs=1e-4) == pytest.approx(found["separate"][1], abs=1e-4)
    assert found["joint"][0] > 0.5 and found["joint"][1] < -0.5
    assert [int(norm.num_batches_tracked) for _, _, norm in found.values()] == [2, 1, 0]


class Sums(NamedTuple):
    """As torchvision's GoogLeNet and Inception give."""

    all: torch.Tensor


class PredictsMore(nn.Module):
    """As torchvision's models of segmentation and detection: a prediction by names; it may be told more than images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, images, shift=0):
        value = self.conv(images) + shift
        return {"out": value, "rest": [value.mean((2, 3)), Sums(value.sum((1, 2, 3)))]}


@KINDS
def test_predictions_of_any_kind_are_halved_with_the_joint_batch(kind, views):
    network = FeatureModel(PredictsMore(), ["conv"])
    out = kind(network, batch_norm="joint")(*views)
    for prediction, view in ((out.day_prediction, views[0]), (out.night_prediction, views[1])):
        torch.testing.assert_close(prediction, network(view))


@KINDS
def test_further_inputs_reach_the_model_with_each_view(kind, views):
    network = FeatureModel(PredictsMore(), ["conv"])
    out = kind(network)(*views, 3.0)
    torch.testing.assert_close(out.night_prediction, network(views[1], 3.0))
    with pytest.raises(ValueError, match="batch_norm joint: the model's further inputs belong to one view each"):
        kind(network, batch_norm="joint")(*views, 3.0)
    network.model.forward = lambda images: {"out": network.model.conv(images), "count": 3}
    with pytest.raises(ValueError, match="a prediction that holds int has no halves; use `separate`"):
        kind(network, batch_norm="joint")(*views)

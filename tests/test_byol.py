import copy

import pytest
import torch
from torch import nn

from minmax.byol import MomentumPair, Projector, byol_loss
from minmax.task_network import InputNormalization, LayeredEncoder, TaskNetwork, freeze


def tiny_network(batch_norm=True):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 6, 3, padding=1), "bn": nn.BatchNorm2d(6) if batch_norm else nn.Identity()}

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, features, size):
            return self.fc(features[-1].mean(dim=(2, 3)))

    encoder = LayeredEncoder(InputNormalization.imagenet(), layers, ["bn"])
    return TaskNetwork(encoder, Head(), [6])


@pytest.fixture
def pair():
    return MomentumPair(tiny_network(), hidden=8, outputs=5, momentum=0.9)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.rand(4, 3, 8, 8, generator=generator)


def targets_and_onlines(pair):
    targets = [*pair.target_encoder.parameters(), *pair.target_projectors.parameters()]
    return targets, [*pair.online.encoder.parameters(), *pair.projectors.parameters()]


def test_target_equals_online_at_the_start_buffers_included(pair):
    assert all(map(torch.equal, *targets_and_onlines(pair)))
    ours, target = pair.online.encoder.state_dict(), pair.target_encoder.state_dict()
    assert all(torch.equal(ours[name], target[name]) for name in ours)


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
    online, target = pair.online.encoder.bn, pair.target_encoder.bn
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
    alone = tiny_network().encoder(night)[0]
    assert torch.allclose(separate._encode(separate.online.encoder, day, night)[1][0], alone)
    together = tiny_network().encoder(torch.cat([day, night]))[0]
    assert torch.allclose(joint._encode(joint.online.encoder, day, night)[1][0], together[4:])
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
    encoder = freeze(tiny_network().encoder)
    before = copy.deepcopy(encoder.state_dict())
    images = views[0].requires_grad_(True)
    encoder(images)[0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0, "a frozen encoder still passes gradients to its input"
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_data_parallel_moves_the_target(pair, views):
    wrapped = nn.DataParallel(pair)  # without CUDA devices it calls the module itself, as on one device
    optimizer = torch.optim.SGD([p for p in pair.parameters() if p.requires_grad], lr=0.5)
    byol_loss(wrapped(*views)).backward()
    optimizer.step()
    before = [p.clone() for p in targets_and_onlines(pair)[0]]
    pair.update_target()
    assert any(not torch.equal(a, b) for a, b in zip(before, targets_and_onlines(pair)[0], strict=True))


def test_encoder_refuses_features_it_does_not_have():
    with pytest.raises(ValueError, match="not among the layers"):
        LayeredEncoder(InputNormalization.identity(), {"conv": nn.Conv2d(3, 3, 1)}, ["layer4"])


def test_a_layer_that_is_used_twice_runs_twice():
    relu = nn.ReLU()
    layers = {"down": nn.Conv2d(3, 3, 1), "first": relu, "flip": nn.Conv2d(3, 3, 1), "second": relu}
    encoder = LayeredEncoder(InputNormalization.identity(), layers, ["second"])
    (feature,) = encoder(torch.randn(1, 3, 4, 4))
    assert feature.min() >= 0

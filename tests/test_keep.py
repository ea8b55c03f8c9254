"""What keeps the day: mixtures of weights, and the distance from what the daytime model says."""

import pytest
import torch
from torch import nn

from minmax.features import FeatureModel
from minmax.keep import KeepConfig, choose_mixture, class_divergence, day_losses, descriptor_distance, frozen_copy
from minmax.runtime.errors import SettingError


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return FeatureModel(layers, ["1"])


def test_the_mixture_that_scores_best_is_left_and_of_equal_ones_the_larger_share():
    daytime, adapted = frozen_copy(network(0), KeepConfig(distillation=2.0)), network(1)
    adapted(torch.rand(4, 3, 8, 8))  # moves BatchNorm's statistics and its count of batches
    after = {name: value.clone() for name, value in adapted.state_dict().items()}
    scores = iter([0.2, 0.7, 0.7, 0.1])
    found = choose_mixture(adapted, daytime, (0.25, 0.5, 0.75, 1.0), lambda: {"score": next(scores)})
    assert list(found.items()) == [(0.75, 0.7), (0.5, 0.7), (0.25, 0.2), (1.0, 0.1)]
    before = daytime.state_dict()
    assert choose_mixture(adapted, daytime, (), lambda: {"score": 0.0}) == {}
    for name, value in adapted.state_dict().items():
        mixed = 0.25 * before[name] + 0.75 * after[name] if value.is_floating_point() else after[name]
        torch.testing.assert_close(value, mixed)


def test_divergence_is_that_of_probabilities_and_zero_of_equal_ones():
    said, before = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, torch.tensor(3.0).log()]])
    second = 0.25 * torch.tensor(0.25 / 0.5).log() + 0.75 * torch.tensor(0.75 / 0.5).log()
    torch.testing.assert_close(class_divergence(said, before), second / 2)  # the first image: none
    maps = (value[..., None, None].expand(2, 2, 3, 4) for value in (said, before))
    torch.testing.assert_close(class_divergence(*maps), second / 2)
    maps = torch.rand(2, 5, 3, 4)
    assert class_divergence(maps, maps) == 0
    assert descriptor_distance(torch.eye(2), torch.eye(2).flip(0)) == 2


def test_the_daytime_model_is_a_constant_and_runs_only_when_it_counts():
    online = network(1)
    daytime, day = frozen_copy(network(0), KeepConfig(distillation=2.0)), torch.rand(4, 3, 8, 8)
    before = {name: value.clone() for name, value in daytime.state_dict().items()}
    said = online(day)
    losses = day_losses(KeepConfig(distillation=2.0), daytime, day, said, class_divergence)
    losses["kept"].backward()
    assert losses["kept"] == 2 * class_divergence(said, daytime(day)) > 0
    assert all(parameter.grad is None for parameter in daytime.parameters())
    assert all(parameter.grad is not None for parameter in online.parameters())
    assert all(torch.equal(before[name], value) for name, value in daytime.state_dict().items())
    assert day_losses(KeepConfig(), nn.Identity(), None, day, class_divergence) == {}


@pytest.mark.parametrize("wrong", [{"distillation": -1}, {"shares": (0.5, 1.5)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match="expected"):
        KeepConfig(**wrong)

"""adapt(): any model, loader and loss; a copy comes back adapted, the caller's stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from minmax import FeatureModel, InputNormalization, adapt


def small():
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=2)


def day(count=3):
    """Two classes that a dark image hides from a model that goes by brightness."""
    torch.manual_seed(1)
    batches = []
    for _ in range(count):
        labels = torch.arange(8) % 2
        images = 0.5 + 0.3 * torch.rand(8, 3, 32, 32)
        images[labels == 1, :, :, ::4] = 0.2
        batches.append((images, labels))
    return batches


def dark(images):
    return 0.2 * images


def test_the_callers_model_stays_and_a_copy_under_its_own_names_is_adapted():
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    seen = []
    adapted = adapt(model, day(), F.cross_entropy, dark, epochs=2, progress=lambda *line: seen.append(line))
    assert type(adapted) is type(model) and not adapted.training and model.training
    assert list(adapted.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(before["conv1.weight"], adapted.conv1.weight)
    assert not any(layer._forward_hooks for layer in [*model.modules(), *adapted.modules()])
    assert [epoch for epoch, _ in seen] == [1, 2] and set(seen[0][1]) == {"day", "night", "byol"}


def test_it_learns_the_night():
    # The loss by night falls below that of a model that saw none of it.
    batches = day(6)
    seen = {}
    adapt(
        small(),
        batches,
        F.cross_entropy,
        dark,
        epochs=6,
        lr=1e-3,
        progress=lambda epoch, lines: seen.update({epoch: lines}),
    )
    assert seen[6]["night"] < 0.5 * seen[1]["night"]
    assert seen[6]["byol"] < seen[1]["byol"]


def test_a_feature_model_says_how_its_input_is_normalised_and_comes_back_as_one():
    network = FeatureModel(small(), ["layer3", "layer4"], InputNormalization.imagenet())
    adapted = adapt(network, day(1), F.cross_entropy, dark, epochs=1, byol_weight=0.0)
    assert isinstance(adapted, FeatureModel) and adapted.layers == network.layers
    assert torch.equal(adapted.normalization.get_buffer("mean"), network.normalization.get_buffer("mean"))


class Detector(nn.Module):
    """Takes its targets in training and gives losses, as torchvision's detectors."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, 1)

    def forward(self, images, targets=None):
        found = self.head(self.body(images).mean(dim=(2, 3))).squeeze(1)
        if not self.training:
            return found
        assert targets is not None
        return {"box": F.mse_loss(found, targets["where"]), "score": found.square().mean()}


def test_a_model_that_takes_its_targets_in_training():
    batches = [(images, {"where": labels.float()}) for images, labels in day(2)]
    model = Detector()
    adapted = adapt(
        model,
        batches,
        lambda losses, _: sum(losses.values()),
        dark,
        features=["body"],
        epochs=1,
        batch_norm="separate",
        targets_to_model=True,
    )
    assert not torch.equal(model.body.weight, adapted.body.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected 1 or more, got 0"),
        ({"day": []}, "day: it holds no batch"),
        ({"features": ["layer5"]}, r"no layers \['layer5'\] in ResNet; at its top are conv1, bn1"),
        ({"model": small().requires_grad_(False)}, "all its parameters are frozen"),
        ({"loss": lambda p, t: p.sum() * float("nan")}, "epoch 1: the losses are .*nan"),
        ({"day": (batch for batch in day(3))}, "day: can be gone through only once; expected a DataLoader or a list"),
        ({"model": FeatureModel(small(), ["layer4"]), "features": ["layer4"]}, "the FeatureModel names its own"),
    ],
)
def test_errors_speak_of_arguments(change, message):
    arguments = {"model": small(), "day": day(1), "loss": F.cross_entropy, "night": dark, "epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        adapt(arguments.pop("model"), arguments.pop("day"), arguments.pop("loss"), arguments.pop("night"), **arguments)

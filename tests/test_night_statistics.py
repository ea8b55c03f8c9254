"""BatchNorm statistics estimated anew: from which images, what they replace, and what they leave alone."""

import copy
import json

import pytest
import torch
from class_accuracy import selection_score
from class_folders import ImageConfig, open_split
from classification_scripts import RUNTIME, common, start
from classifier import load_classifier
from image_views import WholeImages
from night_statistics import reestimate_statistics
from torch import nn

from darkening.heuristics import HEURISTICS
from darkening.night_view import NightView
from minmax.runtime.errors import UsageError
from minmax.runtime.seeding import generator_for

IMAGES = ImageConfig(size=32)
GAMMA = NightView(HEURISTICS["gamma"], (0.05, 0.2))


class Recording(nn.Module):
    """Remembers the batches that pass."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        assert not torch.is_grad_enabled()
        self.batches.append(images.clone())
        return images


def recording_network():
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(5, momentum=0.3), nn.BatchNorm2d(4)
    return nn.Sequential(Recording(), nn.Conv2d(3, 5, 3), first, nn.ReLU(), nn.Conv2d(5, 4, 3), second)


@pytest.fixture
def training(data):
    return open_split(str(data), "train", IMAGES)


def reestimated(training, network=None, batch_size=4, **options):
    network = recording_network() if network is None else network
    reestimate_statistics(network, training, IMAGES, GAMMA, RUNTIME, batch_size, **options)
    return network


def test_statistics_are_the_mean_over_the_batches_computed_by_hand(training):
    network = reestimated(training)
    recording, convolution, first, _, _, second = network
    assert len(recording.batches) == 3
    with torch.no_grad():
        shallow = [convolution(batch) for batch in recording.batches]
    means = torch.stack([value.mean(dim=(0, 2, 3)) for value in shallow])
    variances = torch.stack([value.var(dim=(0, 2, 3)) for value in shallow])
    torch.testing.assert_close(first.running_mean, means.mean(dim=0))
    torch.testing.assert_close(first.running_var, variances.mean(dim=0))
    assert (means[0] - means[1]).abs().max() > 1e-3, "equal batches could be averaged in any way"
    # What follows sees batches that are normalised by their own statistics.
    with torch.no_grad():
        deep = [
            network[4](torch.relu(nn.functional.batch_norm(value, None, None, first.weight, first.bias, training=True)))
            for value in shallow
        ]
    torch.testing.assert_close(
        second.running_mean, torch.stack([value.mean(dim=(0, 2, 3)) for value in deep]).mean(dim=0)
    )


def test_each_batch_is_half_day_and_half_the_same_images_darkened(training):
    batches = reestimated(training)[0].batches
    for number, batch in enumerate(batches):
        day, darkened = batch.chunk(2)
        assert len(day) == 4
        assert torch.equal(darkened, GAMMA(day, generator_for("statistics", number)))
        assert darkened.mean() < 0.7 * day.mean()
    seen = torch.cat([batch.chunk(2)[0] for batch in batches])
    whole = [RUNTIME.intensities(image) for image, _ in WholeImages(training, IMAGES)]
    places = [[i for i in range(12) if torch.equal(whole[i], image)] for image in seen]
    assert sorted(place for (place,) in places) == list(range(12)), "each image once"
    # The files are sorted by class; a batch of one class has too small a variance.
    labels = torch.tensor(training.labels)[torch.tensor(places).flatten()].view(3, 4)
    assert training.labels == sorted(training.labels)
    assert not any(len(row.unique()) == 1 for row in labels)


@pytest.mark.parametrize(("batch_size", "batches"), [(5, [10, 10]), (12, [24]), (64, [24])])
def test_a_smaller_last_batch_does_not_count_as_a_whole_one(training, batch_size, batches):
    network = reestimated(training, batch_size=batch_size)
    assert [len(batch) for batch in network[0].batches] == batches


def test_earlier_statistics_are_forgotten(training):
    network = recording_network()
    for layer in (network[2], network[5]):
        layer.running_mean.fill_(7.0)
        layer.running_var.fill_(99.0)
    again, fresh = reestimated(training, network), reestimated(training)
    for place in (2, 5):
        assert torch.equal(again[place].running_mean, fresh[place].running_mean)
        assert torch.equal(again[place].running_var, fresh[place].running_var)


def test_two_calls_give_the_same_statistics_whatever_was_drawn_before(training):
    found = []
    for seed in (1, 2):
        network = recording_network()
        torch.manual_seed(seed)
        found.append(reestimated(training, network))
    assert all(map(torch.equal, found[0][0].batches, found[1][0].batches))
    first, second = (network.state_dict() for network in found)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", [True, False])
def test_only_the_statistics_change(training, mode):
    network = recording_network().train(mode)
    before = copy.deepcopy(network.state_dict())
    reestimated(training, network)
    assert all(module.training == mode for module in network.modules())
    assert (network[2].momentum, network[5].momentum) == (0.3, 0.1)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    changed = {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{kind}" for layer in (2, 5) for kind in kinds}


def test_a_network_without_batch_norm_is_untouched(training):
    network = nn.Sequential(Recording(), nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5)).eval()
    before = copy.deepcopy(network.state_dict())
    reestimated(training, network)
    assert not network[0].batches and not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_night_images_are_refused(data):
    night = open_split(str(data), "test_night", IMAGES)
    network = recording_network()
    with pytest.raises(ValueError, match="'test_night' holds night images"):
        reestimated(night, network)
    assert not network[0].batches
    assert torch.equal(network[2].running_mean, torch.zeros(5))


# ------------------------------------------------------------------------------------------ in train.py


@pytest.fixture
def adapt(data, checkpoint, tmp_path):
    def adapt(name, *flags):
        given = ["--checkpoint", checkpoint, "--night.source", "gamma", "--name", name, *flags]
        path = start("train", *common(data, tmp_path), *given)
        return load_classifier(path)[0].state_dict()

    return adapt


def is_statistic(name):
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("domains", ["separate", "joint"])
def test_estimating_anew_changes_the_statistics_and_nothing_else(adapt, domains, tmp_path):
    flags = ("--byol.batch-norm", domains, "--optim.epochs", 2)
    running = adapt("running", *flags)
    anew = adapt("anew", *flags, "--statistics", "reestimated")
    assert set(running) == set(anew)
    for name, value in running.items():
        if name.endswith("num_batches_tracked"):
            assert int(anew[name]) == 1  # one batch of all twelve images
        else:
            assert torch.equal(value, anew[name]) != is_statistic(name), name
    run = tmp_path / "classification" / "anew"
    best = load_classifier(run / "best.pt")[0].state_dict()
    assert all(int(value) == 1 for name, value in best.items() if name.endswith("num_batches_tracked"))


def test_checkpoints_are_chosen_with_the_statistics_that_they_hold(adapt, data, tmp_path):
    adapt("anew", "--statistics", "reestimated", "--optim.lr", 0.01)
    run = tmp_path / "classification" / "anew"
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    validation = open_split(str(data), "val", IMAGES)
    network = load_classifier(run / "last-epoch.pt")[0]
    found = selection_score(network, validation, IMAGES, RUNTIME)
    assert {name: recorded[name] for name in found} == found


@pytest.mark.parametrize("distance", ["byol", "cosine"])
def test_frozen_statistics_of_the_daytime_model_reach_the_checkpoint(adapt, checkpoint, distance):
    flags = ("--byol.batch-norm", "frozen", "--optim.epochs", 2, "--byol.distance", distance)
    before, after = load_classifier(checkpoint)[0].state_dict(), adapt(distance, *flags)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == is_statistic(name), name


def test_frozen_statistics_cannot_be_estimated_anew(adapt, tmp_path):
    with pytest.raises(UsageError) as caught:
        adapt("both", "--statistics", "reestimated", "--byol.batch-norm", "frozen")
    expected = "--statistics reestimated contradicts --byol.batch-norm frozen; drop one of the two flags"
    assert str(caught.value) == expected
    assert not (tmp_path / "classification").exists()

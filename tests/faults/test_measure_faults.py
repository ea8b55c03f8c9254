"""Networks that measure nonsense, and measurements that are not what the network was trained for."""

import json
import re

import action_scripts as action
import classification_scripts as classification
import place_scripts as places
import pytest
import segmentation_scripts as segmentation
import torch
from faults import SilentlyWrong, fault, refused, start
from place_checkpoints import save_place_network
from place_network import build_place_network, settings_for

TASKS = {"classification": classification, "segmentation": segmentation, "places": places, "actions": action}
DATA = {"classification": "data", "segmentation": "streets", "places": "places", "actions": "videos"}
SIZES = {
    "classification": ("--images.size", 32),
    "segmentation": ("--images.size", 32, 48),
    "places": ("--images.size", 48),
    "actions": ("--clips.length", 4, "--clips.size", 32, "--clips.rounds", 1),
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory, checkpoint, segmenter, recogniser):
    """A checkpoint for each task; that of places, with BatchNorm too."""
    place = tmp_path_factory.mktemp("place") / "best.pt"
    settings = settings_for("resnet18")
    torch.manual_seed(0)
    save_place_network(build_place_network(settings), settings, place)
    return {"classification": checkpoint, "segmentation": segmenter, "places": place, "actions": recogniser}


def scale_all(state):
    """Weights of 1e30: each is finite, the products are not."""
    return {name: 1e30 * t if name.endswith("weight") else t for name, t in state.items()}


def scale_last(state):
    """One layer overflows; behind a normalisation it need not show."""
    last = [name for name, t in state.items() if name.endswith("weight") and t.dim() > 1][-1]
    return {**state, last: torch.full_like(state[last], 3e38)}


def scale_first(state):
    first = next(name for name, t in state.items() if t.dim() > 3)
    return {**state, first: torch.full_like(state[first], -3e38)}


def negative_variance(state):
    """Of which BatchNorm takes the root: NaN."""
    return {name: t - 2 if name.endswith("running_var") else t for name, t in state.items()}


def huge_gain(state):
    """Of BatchNorm: what deviates by more than one is infinite."""
    return {
        name: torch.full_like(t, 3e38) if t.dim() == 1 and name.endswith("weight") else t for name, t in state.items()
    }


DIVERGED = {
    "weights times 1e30": scale_all,
    "the last layer": scale_last,
    "the first layer": scale_first,
    "a negative variance": negative_variance,
    "gains of 3e38": huge_gain,
}


def root_of(task, request):
    root = request.getfixturevalue(DATA[task])
    return root / "Cityscapes" if task == "segmentation" else root


def training_flags(task, request, folder, script):
    flags = TASKS[task].common(request.getfixturevalue(DATA[task]), folder / "runs")
    if (task, script) == ("places", "train_darkener"):
        crops = ("--images.short-side", 48, "--images.crop", 48)
        return [*flags[: flags.index("--images.size")], *crops, "--optim.epochs", 1, "--optim.batch-size", 2]
    return flags


def diverged(task, change, networks, folder):
    payload = torch.load(networks[task], weights_only=True)
    payload["network"] = DIVERGED[change](payload["network"])
    torch.save(payload, folder / "best.pt")
    return folder / "best.pt"


@fault(
    *("measurements", "finite weights whose outputs are not", "ends with exit code 1; checkpoint and data are named"),
    trials=[
        (task, change)
        for task in TASKS
        for change in DIVERGED
        # Place networks end with their last convolution; BatchNorm's mean is within float32 after one layer.
        if (task, change) not in {("places", "the last layer"), ("actions", "the last layer")}
    ],
)
def test_overflow(trial, request, networks, tmp_path):
    task, change = trial
    file = diverged(task, change, networks, tmp_path)
    out = tmp_path / "out"
    flags = ("--data", root_of(task, request), *SIZES[task], "--output", out)
    said = start(TASKS[task].SCRIPTS["test"], "--checkpoint", file, *flags)
    refused(said, file, "NaN or infinity", "images of", code=1)
    if (out / "results.json").exists():
        raise SilentlyWrong((out / "results.json").read_text()[:300])


@fault(
    *("measurements", "a second network, --before, that has diverged", "ends with exit code 1; that file is named"),
    trials=list(TASKS),
)
def test_before(trial, request, networks, tmp_path):
    file = diverged(trial, "a negative variance", networks, tmp_path)
    flags = ("--checkpoint", networks[trial], "--data", root_of(trial, request), *SIZES[trial])
    flags = (*flags, "--output", tmp_path / "out")
    refused(start(TASKS[trial].SCRIPTS["test"], "--before", file, *flags), file, "NaN or infinity", code=1)


@fault(
    *("measurements", "a diverged network on images without labels", "ends with exit code 1; no zip is written"),
    trials=list(DIVERGED),
)
def test_submission(trial, streets, networks, tmp_path):
    file = diverged("segmentation", trial, networks, tmp_path)
    night = streets / "Dark_Zurich_test_anon_withoutGt"
    flags = ("--data", streets / "Cityscapes", "--night", night, *SIZES["segmentation"], "--output", tmp_path / "out")
    refused(start(segmentation.SCRIPTS["test"], "--checkpoint", file, *flags), file, "NaN or infinity", code=1)
    if list((tmp_path / "out").glob("*.zip")):
        raise SilentlyWrong("a zip was written")


@fault(
    *("measurements", "training from a network that has diverged", "stops in one line; no best.pt"),
    trials=[
        (task, script)
        for task in TASKS
        for script in ("train", "train_darkener")
        if (task, script) not in {("places", "train"), ("actions", "train")}
    ],
)
def test_training(trial, request, networks, tmp_path):
    task, script = trial
    # In training, BatchNorm divides by what its own batch gives, which hides all but the last layer.
    file = diverged(task, "the last layer" if script == "train" else "weights times 1e30", networks, tmp_path)
    said = start(TASKS[task].SCRIPTS[script], "--checkpoint", file, *training_flags(task, request, tmp_path, script))
    if said.code == 0:
        raise SilentlyWrong(said.out[-500:])
    assert re.search("finite|NaN", said.error), said.error
    assert not list(tmp_path.glob("runs/*/*/best.pt"))


@fault(
    *("measurements", "validation that overflows while the loss does not", "stops in one line; no best.pt"),
    trials=list(TASKS),
)
def test_validation(trial, request, networks, tmp_path, monkeypatch):
    """BatchNorm's running variance, which evaluation alone reads, is broken after the epoch."""
    train = TASKS[trial].SCRIPTS["train"]
    score = train.selection_score

    def break_first(network, *rest, **more):
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(-1)
        return score(network, *rest, **more)

    monkeypatch.setattr(train, "selection_score", break_first)
    flags = training_flags(trial, request, tmp_path, "train")
    said = start(train, "--checkpoint", networks[trial], *flags, "--night.source", "gamma")
    refused(said, "NaN or infinity", code=1)
    assert not list(tmp_path.glob("runs/*/*/best.pt"))


TRAINED = {
    "classification": ("images", {"size": 64}, "--images.size 64, not 32"),
    "segmentation": ("images", {"size": [64, 96]}, "--images.size 64 96, not 32 48"),
    "places": ("images", {"size": 96}, "--images.size 96, not 48"),
    "actions": ("clips", {"size": 64}, "--clips.size 64, not 32"),
}


@fault(
    *("measurements", "at another size than that of training", "measured; one line tells both sizes"),
    trials=[(task, as_before) for task in TASKS for as_before in (False, True)],
)
def test_another_size(trial, request, networks, tmp_path):
    task, as_before = trial
    payload = torch.load(networks[task], weights_only=True)
    group, values, words = TRAINED[task]
    payload["config"] = {group: values}
    torch.save(payload, tmp_path / "other.pt")
    files = ["--checkpoint", tmp_path / "other.pt"]
    if as_before:
        files = ["--checkpoint", networks[task], "--before", tmp_path / "other.pt"]
    flags = ["--data", root_of(task, request), *SIZES[task], "--output", tmp_path / "out"]
    with capture_warnings() as said:
        done = start(TASKS[task].SCRIPTS["test"], *files, *flags)
    assert done.code == 0, done.out
    told = [line for line in said if "was trained at" in line or "was trained with" in line]
    if len(told) != 1:
        raise SilentlyWrong(f"{told}")
    assert words in told[0] and "other.pt" in told[0]


@fault(
    *("measurements", "at the size of training", "measured; nothing is said of sizes"),
    trials=list(TASKS),
)
def test_same_size(trial, request, networks, tmp_path):
    payload = torch.load(networks[trial], weights_only=True)
    group, values, _ = TRAINED[trial]
    number = SIZES[trial][SIZES[trial].index(f"--{group}.size") + 1 :]
    payload["config"] = {group: {"size": list(number) if isinstance(values["size"], list) else number[0]}}
    torch.save(payload, tmp_path / "same.pt")
    flags = ["--data", root_of(trial, request), *SIZES[trial], "--output", tmp_path / "out"]
    with capture_warnings() as said:
        done = start(TASKS[trial].SCRIPTS["test"], "--checkpoint", tmp_path / "same.pt", *flags)
    assert done.code == 0 and not [line for line in said if "was trained" in line], said


class capture_warnings:  # noqa: N801  (a context manager)
    """The messages of warnings that are logged."""

    def __enter__(self):
        import logging

        self.lines = []
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = lambda record: self.lines.append(record.getMessage())
        logging.getLogger().addHandler(self.handler)
        return self.lines

    def __exit__(self, *_):
        import logging

        logging.getLogger().removeHandler(self.handler)


@fault(
    *("measurements", "RefineNet on sides that are no multiples of 4", "measured, each pixel once"),
    trials=[(33, 47), (34, 50), (35, 33), (45, 61), (63, 65)],
)
def test_odd_sides(trial, streets, segmenter, tmp_path):
    height, width = trial
    flags = ("--data", streets / "Cityscapes", "--images.size", height, width, "--output", tmp_path)
    done = start(segmentation.SCRIPTS["test"], "--checkpoint", segmenter, *flags)
    assert done.code == 0, done.out
    (scores,) = json.loads((tmp_path / "results.json").read_text())["results"].values()
    counted = sum(map(sum, scores["Cityscapes, val"]["confusion"]))
    assert counted == 2 * height * width

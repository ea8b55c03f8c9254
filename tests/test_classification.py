"""The four scripts of classification, end to end on built-in scenes and on class folders, and their bad inputs."""

import dataclasses
import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from class_accuracy import ClassAccuracy, measure, selection_score
from class_folders import ImageConfig, TrainingViews, open_split
from classifier import ClassifierSettings, build_classifier, load_classifier, save_classifier
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from darkening.curve_estimator import Darkener, load_darkener, save_darkener
from darkening.night_view import NightConfig
from minmax.runtime.config import parse_flags, run_script
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "classification"
RUNTIME = Runtime(torch.device("cpu"))
CLASSES = ("bus", "car")
SIZE = ["--images.size", "32"]


def load_script(name):
    """A script as a module under a name of its own: four tasks have a train.py."""
    spec = importlib.util.spec_from_file_location(f"classification_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load_script(name) for name in ("train_day", "train_darkener", "train", "test")}


def start(script, *flags):
    """Call main of a script with flags as typed."""
    module = SCRIPTS[script]
    return module.main(parse_flags(module.Config, None, [str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders of red and blue pictures of several sizes and formats."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test_day", "test_night"):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 120, (40 + i, 44, 3), dtype=np.uint8)
                pixels[..., 2 * label] += 100
                Image.fromarray(pixels // (4 if "night" in split else 1)).save(
                    folder / f"{i}.{'jpg' if i % 2 else 'png'}"
                )
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("day") / "best.pt"
    settings = ClassifierSettings("resnet18", CLASSES)
    save_classifier(build_classifier(settings), settings, path)
    return path


@pytest.fixture(scope="module")
def darkener(tmp_path_factory):
    path = tmp_path_factory.mktemp("darkener") / "best.pt"
    torch.manual_seed(0)
    save_darkener(Darkener(), path)
    return path


def common(data, runs):
    return ["--data", data, "--runs", runs, "--workers", 0, "--optim.epochs", 1, "--optim.batch-size", 4, *SIZE]


# ---------------------------------------------------------------------------------------------- end to end


def test_four_scripts_on_built_in_scenes(tmp_path, capsys):
    scenes = ["--data", "scenes", "--quick", "--runs", tmp_path]
    day = start("train_day", *scenes)
    darkener = start("train_darkener", *scenes, "--checkpoint", day)
    adapted = start("train", *scenes, "--checkpoint", day, "--darkener", darkener)
    flags = ("--checkpoint", adapted, "--before", day, "--data", "scenes", "--quick", *SIZE)
    found = start("test", *flags, "--output", tmp_path / "out")
    assert set(found) == {"before", "checkpoint"}
    assert {"test_day", "test_night"} == set(found["checkpoint"])
    assert "balanced" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["results"]["checkpoint"]["test_night"]["top1"] == found["checkpoint"]["test_night"].top1
    run = adapted.parent
    for name in ("config.yaml", "environment.jsonl", "log.txt", "metrics.jsonl", "last.pt", "best.pt"):
        assert (run / name).is_file(), name
    for name in ("first_batch.png", "curves.png"):
        Image.open(run / "pictures" / name).verify()
    Image.open(darkener.parent / "pictures" / "darkened.png").verify()
    before, after = load_classifier(day)[0].state_dict(), load_classifier(adapted)[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_four_scripts_on_class_folders(data, tmp_path):
    flags = common(data, tmp_path)
    day = start("train_day", *flags)
    assert load_classifier(day)[1].classes == CLASSES
    darkener = start("train_darkener", *flags, "--checkpoint", day, "--init", "scratch")
    assert isinstance(load_darkener(darkener), Darkener)
    adapted = start("train", *flags, "--checkpoint", day, "--darkener", darkener)
    found = start("test", "--checkpoint", adapted, "--data", data, *SIZE)["checkpoint"]
    assert found["test_night"].confusion.sum() == 12
    assert (adapted.parent / "test" / "results.json").is_file()


@pytest.mark.parametrize("source", ["gamma", "brightness", "camera", "day"])
def test_training_with_hand_made_nights_and_the_control(source, data, checkpoint, tmp_path):
    adapted = start("train", *common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", source)
    assert adapted.is_file()


def test_a_config_replays_a_run(data, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--night.source", "gamma"]
    first = start("train", *common(data, tmp_path), *flags)
    again = start("train", "--config", first.parent / "config.yaml", "--name", "again")
    first, again = load_classifier(first)[0].state_dict(), load_classifier(again)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_workers_do_not_change_a_run(data, checkpoint, tmp_path):
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    results = [
        load_classifier(start("train", *flags, "--name", f"w{workers}", "--workers", workers))[0].state_dict()
        for workers in (0, 2)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# ---------------------------------------------------------------------------------------------- processes


def command(script, *flags):
    return [sys.executable, str(FOLDER / f"{script}.py"), *map(str, flags)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_flags(script):
    done = subprocess.run(command(script, "--help"), capture_output=True, text=True, check=True, cwd="/")
    assert "--images.size" in done.stdout
    assert "--checkpoint" in done.stdout or script == "train_day"


def test_killed_twice_and_resumed_equals_uninterrupted(data, checkpoint, darkener, tmp_path):
    flags = [
        *("--data", data, "--runs", tmp_path, "--checkpoint", checkpoint, "--darkener", darkener),
        *("--workers", 1, "--threads", 1, "--save-minutes", 1e-6, "--optim.epochs", 4, "--optim.batch-size", 4, *SIZE),
    ]
    start("train", *flags, "--name", "whole")
    metrics = tmp_path / "classification" / "broken" / "metrics.jsonl"
    for steps, resume in ((4, []), (8, ["--resume"])):  # three steps an epoch: both kills fall inside one
        process = subprocess.Popen(command("train", *flags, "--name", "broken", *resume), stderr=subprocess.DEVNULL)
        while process.poll() is None:
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if any(json.loads(line)["step"] >= steps for line in lines if line.endswith("}")):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command("train", *flags, "--name", "broken", "--resume"), check=True, stderr=subprocess.DEVNULL)
    folder = tmp_path / "classification"
    whole, resumed = (torch.load(folder / name / "last.pt", weights_only=True) for name in ("whole", "broken"))
    assert whole["progress"] == resumed["progress"]
    for part in ("pair",):
        assert all(torch.equal(whole["state"][part][name], value) for name, value in resumed["state"][part].items())
    assert (folder / "whole" / "metrics.jsonl").read_text() == metrics.read_text()


def test_sigterm_saves_and_exits_with_its_code(data, checkpoint, tmp_path):
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma", "--optim.epochs", 1000]
    process = subprocess.Popen(command("train", *flags), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "classification" / "adapt" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "continue with --resume" in errors
    assert (metrics.parent / "last.pt").is_file()


def test_two_processes_train_together(data, checkpoint, tmp_path):
    """Two gloo ranks run the real script; they must agree and write one run."""
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma", "--threads", 1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(command("train", *flags), env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    lines = (tmp_path / "classification" / "adapt" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["train", "validation"]  # 12 images, 2 x 4 a step


# ---------------------------------------------------------------------------------------------- bad input


def break_class(root):
    for file in (root / "train" / "car").iterdir():
        file.unlink()


def break_files(root):
    (root / "train" / "bus" / "1.jpg").write_bytes((root / "train" / "bus" / "1.jpg").read_bytes()[:200])
    (root / "train" / "car" / "zero.png").write_bytes(b"")
    (root / "train" / "car" / "text.jpg").write_text("not a picture")


@pytest.fixture
def own_data(data, tmp_path):
    root = tmp_path / "own"
    for file in data.rglob("*.*"):
        target = root / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return root


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: None, None),
        (break_class, r"the class folder .*train/car holds no images"),
        (
            lambda root: (root / "train").rename(root / "training"),
            r"no folder .*train; expected .*<Class>.*found .*training",
        ),
        (
            lambda root: (root / "val" / "car").rename(root / "val" / "tram"),
            r"holds the classes bus, tram; expected bus, car",
        ),
        (break_files, r"3 of 14 images .*\n(.*\n)*.*bus/1\.jpg.*\n.*car/text\.jpg.*\n.*car/zero\.png"),
    ],
)
def test_bad_folders_are_refused_before_work(harm, message, own_data, checkpoint, tmp_path):
    harm(own_data)
    flags = [*common(own_data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    if message is None:
        start("train", *flags)
        return
    with pytest.raises(UsageError, match=message):
        start("train", *flags)
    assert not (tmp_path / "classification").exists(), "nothing was written"


def test_corrupt_files_are_left_out_only_up_to_the_share_allowed(own_data, checkpoint, tmp_path):
    break_files(own_data)
    flags = [*common(own_data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma"]
    with pytest.raises(UsageError, match="3 of 14"):
        start("train", *flags, "--images.skip-corrupt", 0.2)
    start("train", *flags, "--images.skip-corrupt", 0.25)


def foreign(path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)


def truncated(path):
    settings = ClassifierSettings("resnet18", CLASSES)
    save_classifier(build_classifier(settings), settings, path)
    path.write_bytes(path.read_bytes()[:100_000])


def other_architecture(path):
    settings = ClassifierSettings("resnet34", CLASSES)
    save_classifier(build_classifier(dataclasses.replace(settings, model="resnet18")), settings, path)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code-was-run",)


def with_code(path):
    path.write_bytes(pickle.dumps(RunsCode()))


def zipped_code(path):
    torch.save({"format": RunsCode()}, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "not a classifier checkpoint of this project: found entries named state_dict"),
        (truncated, "not a readable checkpoint"),
        (other_architecture, r"does not fit TaskNetwork: tensors \d+ missing .*layer1\.2"),
        (with_code, "refused .* could run code"),
        (zipped_code, "refused .* could run code"),
        (lambda path: None, "no checkpoint at"),
    ],
)
def test_bad_checkpoints_are_refused(make, message, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    make(path)
    with pytest.raises(UsageError, match=message):
        start("train", *common(data, tmp_path), "--checkpoint", path, "--night.source", "gamma")
    assert not (tmp_path / "code-was-run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--night.exposure", "0.5", "0.2"], "--night.exposure 0.5 0.2: expected two numbers"),
        (["--night.exposure", "0", "1.5"], "--night.exposure 0.0 1.5: expected"),
        (["--nigth.exposure", "0", "0.1"], "nigth"),
        (["--night.source", "learned"], "needs --darkener"),
        (["--night.source", "gamma", "--darkener", "some.pt"], "no checkpoint at"),
        (["--data", "nowhere"], "no data at "),
        (["--name", "a/b"], "expected a plain folder name"),
        (["--device", "tpu"], "--device tpu: expected"),
        (["--optim.lr", "0"], "--optim.lr 0.0: expected more than 0"),
        (["--optim.epochs", "many"], "many"),
    ],
)
def test_bad_flags_end_with_exit_code_2(flags, message, data, checkpoint, tmp_path, capfd, monkeypatch):
    module = SCRIPTS["train"]
    own = [*common(data, tmp_path), "--checkpoint", checkpoint]
    if "--night.source" not in flags:
        own += ["--night.source", "gamma"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, own), *flags])
    with pytest.raises(SystemExit) as stop:
        run_script(module.Config, module.main, module.__doc__)
    assert stop.value.code == 2
    assert message in " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "classification").exists()


def test_a_loss_that_is_not_finite_ends_with_the_last_good_checkpoint(data, checkpoint, tmp_path):
    flags = [*common(data, tmp_path), "--checkpoint", checkpoint, "--night.source", "gamma", "--optim.lr", 1e30]
    with pytest.raises(RunError, match="non-finite loss at step"):
        start("train", *flags, "--optim.epochs", 3)


# ---------------------------------------------------------------------------------------------- parts


def test_night_images_are_never_trained_or_selected_on(data):
    night = open_split(str(data), "test_night", ImageConfig(size=32))
    with pytest.raises(ValueError, match="holds night images"):
        TrainingViews(night, 32, 0)
    with pytest.raises(ValueError, match="holds night images"):
        selection_score(torch.nn.Identity(), night, ImageConfig(size=32), NightConfig(), RUNTIME)


def test_metrics_agree_with_an_independent_library():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (200,), generator=generator)
    predicted = torch.where(
        torch.rand(200, generator=generator) < 0.5, truth, torch.randint(0, 5, (200,), generator=generator)
    )
    confusion = multiclass_confusion_matrix(predicted, truth, num_classes=5)
    ours = ClassAccuracy(torch.bincount(truth * 5 + predicted, minlength=25).view(5, 5), predicted)
    assert torch.equal(ours.confusion, confusion)
    assert ours.top1 == pytest.approx(float(multiclass_accuracy(predicted, truth, 5, average="micro")))
    assert ours.balanced == pytest.approx(float(multiclass_accuracy(predicted, truth, 5, average="macro")))


def test_balanced_accuracy_counts_only_classes_that_occur():
    assert ClassAccuracy(torch.tensor([[3, 1], [0, 0]]), torch.zeros(4)).balanced == pytest.approx(0.75)


class AlwaysSecond(torch.nn.Module):
    def forward(self, images):
        return torch.tensor([0.0, 1.0]).expand(len(images), 2)


def test_measure_fills_the_confusion_matrix_row_by_truth(data):
    images = open_split(str(data), "test_day", ImageConfig(size=32))
    found = measure(AlwaysSecond(), images, ImageConfig(size=32), RUNTIME, batch_size=5)
    assert found.confusion.tolist() == [[0, 6], [0, 6]]
    assert found.predictions.tolist() == [1] * 12


def test_native_evaluation_of_mixed_sizes_is_refused_clearly(data):
    images = open_split(str(data), "test_day", ImageConfig(size=32))
    with pytest.raises(UsageError, match="needs images of one size"):
        measure(AlwaysSecond(), images, ImageConfig(size=32, evaluation="native"), RUNTIME)


def test_views_depend_on_seed_epoch_and_image_alone(data):
    images = open_split(str(data), "train", ImageConfig(size=32))
    views = TrainingViews(images, 32, seed=3)
    first = views[2, 5]
    views[2, 6], views[0, 5]
    torch.manual_seed(99)
    assert torch.equal(views[2, 5].day, first.day)
    assert not torch.equal(first.day, first.to_darken)
    assert not torch.equal(views[3, 5].day, first.day)
    assert not torch.equal(TrainingViews(images, 32, seed=4)[2, 5].day, first.day)
    assert first.day.shape == (3, 32, 32)
    assert 0 <= first.day.min() <= first.day.max() <= 1

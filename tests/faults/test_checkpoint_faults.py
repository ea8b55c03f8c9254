"""Checkpoints that are cut, changed, hostile, diverged or of another kind."""

import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import action_scripts as action
import classification_scripts as classification
import numpy as np
import place_scripts as places
import pytest
import segmentation_scripts as segmentation
import torch
from classifier import ClassifierSettings, build_classifier
from faults import CodeRun, SilentlyWrong, fault, refused, start
from PIL import Image
from place_checkpoints import save_place_network
from place_network import build_place_network, settings_for
from safetensors.torch import save_file

from darkening import preview
from darkening.darkener_files import load_darkener
from minmax import export
from minmax.runtime.checkpoints import load_checkpoint, save_checkpoint
from minmax.runtime.errors import UsageError

KINDS = ("classifier", "segmenter", "place network", "recogniser", "darkener")
READERS = {
    "classifier": classification.SCRIPTS["test"],
    "segmenter": segmentation.SCRIPTS["test"],
    "place network": places.SCRIPTS["test"],
    "recogniser": action.SCRIPTS["test"],
}


@pytest.fixture(scope="session")
def networks(tmp_path_factory, checkpoint, segmenter, recogniser, darkener):
    """A checkpoint of each kind."""
    place = tmp_path_factory.mktemp("place") / "best.pt"
    settings = settings_for("resnet18")
    save_place_network(build_place_network(settings), settings, place)
    return dict(zip(KINDS, (checkpoint, segmenter, place, recogniser, darkener), strict=True))


def read(kind, file, out):
    """Start what reads a checkpoint of a kind."""
    if kind == "darkener":
        picture = out / "day.png"
        out.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), "teal").save(picture)
        return start(preview, "--input", picture, "--darkener", file, "--output", out / "sheet.png")
    return start(READERS[kind], "--checkpoint", file, "--data", "scenes", "--quick", "--output", out)


def copy_of(file, folder):
    copy = folder / file.name
    copy.write_bytes(file.read_bytes())
    return copy


ENDS = ("best.pt", "old.pth", "weights.safetensors", "last.pt")


def write_as(name, folder):
    """A small checkpoint in one of the ways in which torch and safetensors write."""
    torch.manual_seed(0)
    state = {"fc.weight": torch.randn(4, 8), "fc.bias": torch.randn(4)}
    file = folder / name
    if name.endswith(".safetensors"):
        save_file(state, file)
    elif name == "old.pth":
        torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint({"state": state, "progress": {"epoch": 1}}, file)
    return file


@fault(
    *("checkpoints", "a file that ends too early, cut at any byte", "refused, the file named"),
    trials=[(name, seed) for name in ENDS for seed in range(25)],
)
def test_cut(trial, tmp_path):
    name, seed = trial
    file = write_as(name, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: random.Random(seed).randrange(len(whole))])
    with pytest.raises(UsageError, match="is not a readable checkpoint|holds a |refused "):
        load_checkpoint(file, resuming=True)


@fault(
    *("checkpoints", "one byte is another", "refused in one line, or read as data; no code runs"),
    trials=[(name, seed) for name in ENDS for seed in range(40)],
)
def test_changed(trial, tmp_path):
    name, seed = trial
    file = write_as(name, tmp_path)
    content = bytearray(file.read_bytes())
    where = random.Random(seed).randrange(len(content))
    content[where] ^= 1 + random.Random(-seed).randrange(255)
    file.write_bytes(content)
    try:
        found = load_checkpoint(file, resuming=True)
    except UsageError as error:
        assert str(file) in str(error) and "\n" not in str(error)
    else:
        assert isinstance(found, dict)


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_objects(canary):
    """Objects of which each writes the file `canary` if it is unpickled as pickle does."""
    line = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch '{canary}'"),
        "exec": Calls(exec, line),
        "eval": Calls(eval, line),
        "Path.touch": Calls(Path.touch, canary),
        "numpy.savetxt": Calls(np.savetxt, str(canary), [1]),
        "torch.save": Calls(torch.save, [1], str(canary)),
        "__import__": Calls(__import__, "antigravity"),
        "open": Calls(open, str(canary), "w"),
    }


WRITERS = {
    "torch": lambda content, file: torch.save(content, file),
    "torch, as it once wrote": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    "pickle": lambda content, file: file.write_bytes(pickle.dumps(content)),
}


@fault(
    *("checkpoints", "objects that would run code when they are unpickled", "refused as such; no code runs"),
    trials=[(name, writer) for writer in WRITERS for name in hostile_objects(Path("x"))],
)
def test_code(trial, tmp_path):
    name, writer = trial
    canary, file = tmp_path / "canary", tmp_path / "best.pt"
    WRITERS[writer]({"state_dict": {"fc.weight": hostile_objects(canary)[name]}}, file)
    told = f"refused {file}: it holds Python objects that could run code"
    if writer == "pickle":  # of a protocol that torch never writes
        told += "|is not a readable checkpoint"
    with pytest.raises(UsageError, match=told):
        load_checkpoint(file)
    if canary.exists():
        raise CodeRun(name)


def spoil(state, seed):
    """Make one number of one tensor, drawn by seed, NaN or infinite."""
    drawn = random.Random(seed)
    name = drawn.choice([name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel()])
    tensor = state[name].clone()
    tensor.view(-1)[drawn.randrange(tensor.numel())] = drawn.choice([float("nan"), float("inf"), -float("inf")])
    return {**state, name: tensor}, name


@fault(
    *("checkpoints", "a number of a weight is NaN or infinite", "refused, the tensor named"),
    trials=[(kind, seed) for kind in KINDS for seed in range(8)],
)
def test_diverged(trial, networks, tmp_path):
    kind, seed = trial
    payload = torch.load(networks[kind], weights_only=True)
    entry = "darkener" if kind == "darkener" else "network"
    payload[entry], name = spoil(payload[entry], seed)
    file = tmp_path / "best.pt"
    torch.save(payload, file)
    refused(read(kind, file, tmp_path), file, "NaN or infinity", name)


@fault(
    *("checkpoints", "a foreign file with a NaN, by --model", "refused, the tensor named"),
    trials=10,
)
def test_diverged_foreign(trial, tmp_path, data):
    network = build_classifier(ClassifierSettings("resnet18", ("bus", "car"))).model
    state, name = spoil(network.state_dict(), trial)
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": state}, file)
    flags = ("--data", data, "--model", "resnet18", "--classes", "bus", "car", "--output", tmp_path / "out")
    refused(start(READERS["classifier"], "--checkpoint", file, *flags), file, "NaN or infinity", name)


@fault(
    *("checkpoints", "of another kind than the script reads", "refused, the file named"),
    # A classifier is a place network's trunk.
    trials=[(a, b) for a in KINDS for b in KINDS if a != b and (a, b) != ("classifier", "place network")],
)
def test_another_kind(trial, networks, tmp_path):
    given, reader = trial
    refused(read(reader, networks[given], tmp_path), networks[given])


@fault(*("checkpoints", "the folder of a run", "refused; the files in it that can be taken are named"), trials=KINDS)
def test_folder(trial, networks, tmp_path):
    file = copy_of(networks[trial], tmp_path)
    refused(read(trial, tmp_path, tmp_path / "out"), "is a folder", file.name)


@fault(*("checkpoints", "the last.pt that --resume goes on from", "refused; best.pt is named"), trials=KINDS)
def test_last(trial, tmp_path):
    save_checkpoint({"progress": {}, "state": {}}, tmp_path / "last.pt")
    refused(read(trial, tmp_path / "last.pt", tmp_path / "out"), "last.pt", "take best.pt")


@fault(
    *("checkpoints", "settings of a network of a million channels", "refused before memory is taken"),
    trials=[(kind, width) for kind in ("segmenter", "recogniser", "darkener") for width in (10**6, 10**9)],
)
def test_absurd(trial, networks, tmp_path):
    kind, width = trial
    payload = torch.load(networks[kind], weights_only=True)
    payload["settings"]["width"] = width
    torch.save(payload, tmp_path / "best.pt")
    refused(read(kind, tmp_path / "best.pt", tmp_path / "out"), "best.pt", f"width {width}")


def nested(depth):
    content = []
    for _ in range(depth):
        content = [content, content]
    return content


@fault(
    *("checkpoints", "lists that hold each other, for 2 to the power of 60 members", "refused at once"),
    trials=WRITERS,
)
def test_nested(trial, tmp_path):
    WRITERS[trial]({"a": nested(60)}, tmp_path / "best.pt")
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path / "best.pt")


@fault(*("checkpoints", "an archive that unpacks to 1,000 times its size", "refused at once"), trials=3)
def test_compressed(trial, tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(10**6 * (trial + 1))}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(tmp_path / "best.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.infolist():
            small.writestr(member.filename, whole.read(member))
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "best.pt")


@fault(
    *("checkpoints", "a file to export of a kind that is not ours, or broken", "refused; no file appears"),
    trials=["foreign", "cut", "folder"],
)
def test_export(trial, tmp_path, checkpoint):
    file = tmp_path / "best.pt"
    if trial == "foreign":
        torch.save({"fc.weight": torch.zeros(2)}, file)
    elif trial == "cut":
        file.write_bytes(checkpoint.read_bytes()[:-1000])
    else:
        file.mkdir()
    refused(start(export, "--checkpoint", file, "--output", tmp_path / "out.pth"), file)
    if (tmp_path / "out.pth").exists():
        raise SilentlyWrong("a file was written")


@fault(*("checkpoints", "a darkener in safetensors whose settings are no settings", "refused"), trials=6)
def test_metadata(trial, tmp_path):
    texts = ["", "[]", "null", "{", json.dumps({"view": "moon"}), json.dumps({"width": "wide"})]
    save_file({"x": torch.zeros(1)}, tmp_path / "d.safetensors", {"settings": texts[trial]})
    with pytest.raises(UsageError, match=r"d\.safetensors"):
        load_darkener(tmp_path / "d.safetensors")

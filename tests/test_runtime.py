"""What all scripts stand on: seeds, files, checkpoints, devices, flags, exit codes, tables and grids."""

import errno
import io
import os
import pickle
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minmax.runtime.checkpoints import load_checkpoint, load_strictly, save_checkpoint, write_atomically
from minmax.runtime.config import (
    CommonFlags,
    from_plain,
    parse_flags,
    replaced,
    require_range,
    run_script,
    to_plain,
    write_yaml,
)
from minmax.runtime.devices import open_runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import draw_curves, markdown_table, picture_grid, save_picture, write_json
from minmax.runtime.seeding import derive_seed, generator_for, seed_globally

# --- seeding


def test_a_derived_seed_is_the_same_on_every_machine():
    assert derive_seed(0, "night", 7) == 8800276892263283867
    assert derive_seed(0, "night", 7) == derive_seed(0, "night", 7)


def test_derived_seeds_are_distinct():
    keys = [(seed, word, step) for seed in range(5) for word in ("night", "jitter", "1") for step in range(50)]
    keys += [(1, 23), (12, 3), (1, "23"), ("1", 23), (123,), ("123",), ()]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_equal_keys_draw_alike():
    first, again, other = (torch.rand(4, generator=generator_for(0, key)) for key in ("a", "a", "b"))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_global_seeding_covers_python_numpy_and_torch():
    drawn = []
    for key in ("a", "a", "b"):
        seed_globally(3, key)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


# --- files and checkpoints


def fails_half_way(error):
    def write(file):
        file.write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(error, tmp_path):
    file = tmp_path / "run" / "best.pt"
    write_atomically(file, lambda temporary: temporary.write_bytes(b"old"))
    with pytest.raises(RunError, match=f"could not write {file}"):
        write_atomically(file, fails_half_way(error))
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {"best.pt": b"old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_an_interrupted_write_keeps_the_old_file_and_passes_the_error_on(error, tmp_path):
    file = tmp_path / "best.pt"
    file.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_atomically(file, fails_half_way(error))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"best.pt": b"old"}


def test_the_final_name_appears_only_when_the_file_is_whole(tmp_path):
    file = tmp_path / "new.txt"

    def write(temporary):
        temporary.write_text("half")
        assert not file.exists() and temporary.parent == file.parent
        temporary.write_text("whole")

    write_atomically(file, write)
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(RunError, match="could not write"):
        write_atomically(tmp_path / "taken" / "x.txt", lambda temporary: temporary.write_text("x"))


def test_a_checkpoint_comes_back(tmp_path):
    payload = {"weights": {"a": torch.randn(2, 3)}, "config": {"lr": 0.1, "milestones": [1, 2]}, "epoch": 3}
    save_checkpoint(payload, tmp_path / "c.pt")
    found = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(found["weights"].pop("a"), payload["weights"].pop("a")) and found == payload


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("save", "load_carelessly"),
    [
        (torch.save, lambda file: torch.load(file, weights_only=False)),
        (
            lambda payload, file: file.write_bytes(pickle.dumps(payload, 2)),
            lambda file: pickle.loads(file.read_bytes()),
        ),
    ],
    ids=["torch", "pickle"],
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(save, load_carelessly, tmp_path):
    file, ran = tmp_path / "code.pt", tmp_path / "ran"
    save({"weights": torch.zeros(1), "x": RunsCode(ran)}, file)
    with pytest.raises(UsageError, match=f"refused {file}: it holds Python objects that could run code"):
        load_checkpoint(file)
    assert not ran.exists()
    load_carelessly(file)  # the trap is armed
    assert ran.exists()


def whole_checkpoint():
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(100.0)}, buffer)
    return buffer.getvalue()


UNREADABLE = {
    "empty": lambda: b"",
    "truncated": lambda: whole_checkpoint()[:-300],
    "a head only": lambda: whole_checkpoint()[:100],
    "text": lambda: b"hello, this is not a checkpoint\n",
    "a web page": lambda: b"<!DOCTYPE html><html>404</html>",
    "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "zeros": lambda: bytes(64),
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(64),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_checkpoint_is_refused_as_unreadable(case, tmp_path):
    file = tmp_path / "c.pt"
    file.write_bytes(UNREADABLE[case]())
    with pytest.raises(UsageError, match=f"{file} is not a readable checkpoint"):
        load_checkpoint(file)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(content=st.one_of(st.binary(max_size=60), st.text(st.characters(codec="ascii"), max_size=60)))
def test_whatever_a_file_holds_it_is_read_or_refused(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.pt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        load_checkpoint(file)
    except UsageError as error:
        assert str(file) in str(error)


def test_missing_files_folders_and_other_payloads_are_refused(tmp_path):
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(UsageError, match=f"no checkpoint at {path}; expected a .pt or .pth file"):
            load_checkpoint(path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="holds a list; expected a mapping"):
        load_checkpoint(tmp_path / "list.pt")


def test_loading_strictly_says_what_does_not_fit():
    layer = nn.Linear(2, 3)
    state = {"weight": torch.zeros(3, 4), **{f"extra{i}": torch.zeros(1) for i in range(4)}}
    with pytest.raises(UsageError) as caught:
        load_strictly(layer, state, "file.pt")
    assert str(caught.value) == (
        "file.pt does not fit Linear: tensors 1 missing (bias); 4 unexpected (extra0, extra1, extra2, ...); "
        "1 of another shape (weight is (3, 4), expected (3, 2))"
    )
    load_strictly(layer, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "file.pt")
    assert torch.equal(layer.weight.detach(), torch.ones(3, 2))


# --- devices


@pytest.fixture
def without_torchrun(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_cpu_is_always_there(without_torchrun):
    with open_runtime("cpu") as runtime:
        assert runtime.device == torch.device("cpu") and runtime.is_main and runtime.device_ids == ()
        module = nn.Conv2d(3, 4, 3)
        assert runtime.parallel(runtime.place(module)) is module


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "mps:1", "", "CUDA", "0", "cuda0"])
def test_names_that_are_no_device_are_refused(device, without_torchrun):
    with pytest.raises(UsageError, match=f"--device {device}: expected auto, cpu, mps"), open_runtime(device):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:0,1", "cuda:x"])
def test_cuda_is_refused_where_there_is_none(device, without_torchrun):
    with pytest.raises(UsageError, match=f"--device {device}: torch sees no CUDA device"), open_runtime(device):
        pass


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:x", "expected numbers"), ("cuda:0,y", "expected numbers"), ("cuda:0,5", "no CUDA device 5, torch sees 2")],
)
def test_devices_are_counted(device, message, without_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=message), open_runtime(device):
        pass


def test_half_precision_needs_cuda(without_torchrun):
    with pytest.raises(UsageError, match="--precision fp16 needs a CUDA device, this is cpu"):
        open_runtime("cpu", "fp16").__enter__()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_is_that_of_the_forward_pass(precision, dtype, without_torchrun):
    with open_runtime("cpu", precision) as runtime, runtime.autocast():
        assert nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == dtype


# --- flags and YAML


@dataclass(frozen=True)
class Group:
    rate: float = 0.1
    """A number."""
    span: tuple[float, float] = (0.0, 0.2)
    """Two numbers."""

    def __post_init__(self):
        require_range("--group.span", self.span, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags of a test."""

    count: int = 3
    """A whole number."""
    folder: Path | None = None
    """A path."""
    steps: tuple[int, ...] = (1, 2)
    """Several numbers."""
    group: Group = field(default_factory=Group)


def test_flags_survive_the_way_through_yaml(tmp_path):
    config = Flags(
        name="x", seed=5, folder=Path("a/b"), steps=(), group=Group(1e-5, (0.1, 0.3)), runs=tmp_path, precision="bf16"
    )
    write_yaml(config, tmp_path / "config.yaml")
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert from_plain(Flags, plain, "config.yaml") == config
    assert plain == to_plain(config)


WRONG = [
    ({"colour": 1}, "colour"),
    ({"group": {"ratio": 1}}, "ratio"),
    ({"count": "many"}, "count"),
    ({"count": 2.7}, "count"),
    ({"quick": "nope"}, "quick"),
    ({"group": {"rate": "fast"}}, "rate"),
    ({"group": 3}, "group"),
    ({"group": {"span": [0.1]}}, "span"),
    ({"group": {"span": [0.3, 0.1]}}, "--group.span 0.3 0.1: expected two numbers"),
    ({"steps": 3}, "steps"),
    ({"precision": "fp64"}, "precision"),
    ({"workers": -1}, "--workers -1: expected 0 or more"),
]


@pytest.mark.parametrize(("change", "named"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_unknown_names_and_wrong_types_are_refused_by_name(change, named):
    with pytest.raises(UsageError, match="old.yaml") as caught:
        from_plain(Flags, {"name": "x"} | change, "old.yaml")
    assert named in str(caught.value)


def test_numbers_may_be_written_by_hand(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\ngroup: {rate: 1e-4, span: [0, 1]}\n")  # YAML 1.1 reads 1e-4 as a word
    assert parse_flags(Flags, None, ["--config", str(file)]).group == Group(1e-4, (0.0, 1.0))


@pytest.mark.parametrize("plain", [None, [], "name", 3, {}])
def test_what_is_no_config_is_refused(plain):
    with pytest.raises(UsageError, match="old.yaml does not fit"):
        from_plain(Flags, plain, "old.yaml")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a", "a/"])
def test_a_run_has_a_plain_name(name):
    with pytest.raises(UsageError, match="--name .*: expected a plain folder name"):
        Flags(name=name)


def test_a_config_file_gives_the_defaults_and_flags_override_them(tmp_path):
    file = tmp_path / "config.yaml"
    write_yaml(Flags(name="old", seed=4, count=9, steps=(7,), resume=True, group=Group(0.5, (0.1, 0.3))), file)
    found = parse_flags(Flags, None, ["--config", str(file), "--name", "new", "--group.rate", "0.25"])
    assert (found.name, found.seed, found.count, found.steps) == ("new", 4, 9, (7,))
    assert found.group == Group(0.25, (0.1, 0.3))
    assert found.resume is False  # asked anew each time
    assert parse_flags(Flags, None, [f"--config={file}", "--count", "1"]).count == 1


def test_replaced_changes_values_inside_groups():
    config = Flags(name="x")
    changed = replaced(config, count=1, group={"rate": 2.0})
    assert (changed.count, changed.group.rate, changed.group.span) == (1, 2.0, (0.0, 0.2))
    assert config == Flags(name="x")


def end_of_script(monkeypatch, capsys, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    monkeypatch.setattr("logging.root.handlers", [])
    with pytest.raises(SystemExit) as caught:
        run_script(Flags, main, "A script.")
    printed = capsys.readouterr()
    assert printed.out == ""
    return caught.value.code, printed.err.splitlines()


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (RunError, 1)])
def test_errors_of_input_are_one_line_and_an_exit_code(error, code, monkeypatch, capsys):
    def main(config):
        raise error(f"no folder {config.name}")

    assert end_of_script(monkeypatch, capsys, main, "--name", "x") == (code, ["error: no folder x"])


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--name", "x"])
    with pytest.raises(ZeroDivisionError):
        run_script(Flags, lambda config: 1 // 0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "-2"], "error: --workers -2: expected 0 or more"),
        (
            ["--group.span", "0.5", "0.1"],
            "error: --group.span 0.5 0.1: expected two numbers, 0.0 <= LOW <= HIGH <= 1.0",
        ),
        (["--config", "nothing.yaml"], "error: --config nothing.yaml: [Errno 2] No such file"),
    ],
)
def test_bad_flags_are_refused_in_one_line(arguments, message, monkeypatch, capsys):
    code, lines = end_of_script(monkeypatch, capsys, pytest.fail, "--name", "x", *arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith(message)


@pytest.mark.parametrize("content", ["colour: 3\nname: x", "a: [", "- 1", "just words", "\x00", ""])
def test_bad_config_files_are_refused_in_one_line(content, tmp_path, monkeypatch, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    code, lines = end_of_script(monkeypatch, capsys, pytest.fail, "--config", str(file))
    assert code == 2 and len(lines) == 1 and str(file) in lines[0]


# --- reports


def test_a_table_is_aligned_markdown():
    assert markdown_table(["model", "day"], [["before", "91.0"], ["x", "7"]]) == (
        "| model  |  day |\n| ------ | ---: |\n| before | 91.0 |\n| x      |    7 |"
    )


def test_a_grid_places_rows_and_columns_with_white_gaps():
    red, black = torch.zeros(2, 3, 2, 3), torch.zeros(1, 3, 2, 3)
    red[:, 0] = 1.5  # clamped, not wrapped around
    pixels = np.asarray(picture_grid([red, black], gap=1))
    assert pixels.shape == (5, 7, 3)
    assert (pixels[:2, :3] == (255, 0, 0)).all() and (pixels[:2, 4:] == (255, 0, 0)).all()
    assert (pixels[3:, :3] == 0).all()
    assert (pixels[2] == 255).all() and (pixels[:, 3] == 255).all() and (pixels[3:, 4:] == 255).all()


def test_reports_are_written_whole(tmp_path):
    write_json({"accuracy": 0.5}, tmp_path / "a.json")
    save_picture(picture_grid([torch.rand(1, 3, 4, 4)]), tmp_path / "sub" / "b.png")
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"kind": "train", "epoch": 0, "step": {step}, "loss": 1.0}}\n' for step in range(50))
    )
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "c.png")
    assert (tmp_path / "a.json").read_text() == '{\n  "accuracy": 0.5\n}\n'
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("sub/b.png", "c.png"))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".tmp")]

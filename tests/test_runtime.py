"""What all scripts stand on: seeds, files, checkpoints, devices, flags, exit codes, tables and grids."""

import errno
import os
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minmax.runtime.checkpoints import load_checkpoint, load_strictly, save_checkpoint, write_atomically
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import (
    Cell,
    draw_curves,
    draw_sheet,
    markdown_table,
    picture_grid,
    save_picture,
    write_json,
)
from minmax.runtime.seeding import derive_seed, generator_for, seed_globally
from minmax.runtime.splits import evenly_spaced

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


TORCH_SAYS = "PytorchStreamWriter failed writing file data/0: file write failed"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError(TORCH_SAYS)])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(error, tmp_path):
    file = tmp_path / "run" / "best.pt"
    write_atomically(file, lambda temporary: temporary.write_bytes(b"old"))
    with pytest.raises(RunError, match=f"could not write {file}"):
        write_atomically(file, fails_half_way(error))
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {"best.pt": b"old"}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("a bug"), RuntimeError("a bug"), torch.OutOfMemoryError()]
)
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


def test_a_checkpoint_comes_back(tmp_path):
    payload = {"weights": {"a": torch.randn(2, 3)}, "config": {"lr": 0.1, "milestones": [1, 2]}, "epoch": 3}
    save_checkpoint(payload, tmp_path / "c.pt")
    found = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(found["weights"].pop("a"), payload["weights"].pop("a")) and found == payload


UNREADABLE = {
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "zeros": bytes(64),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_checkpoint_is_refused_as_unreadable(case, tmp_path):
    file = tmp_path / "c.pt"
    file.write_bytes(UNREADABLE[case])
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
    with pytest.raises(UsageError, match=f"no checkpoint at {tmp_path / 'nothing.pt'}; expected a .pt, .pth or"):
        load_checkpoint(tmp_path / "nothing.pt")
    save_checkpoint({}, tmp_path / "best.pt")
    with pytest.raises(UsageError, match=f"{tmp_path} is a folder; expected a file, such as best.pt in it"):
        load_checkpoint(tmp_path)
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


def test_a_sheet_has_its_pictures_frames_and_empty_places(tmp_path):
    grey = [torch.full((3, 8, 8), level) for level in (0.2, 0.4, 0.6)]
    rows = [
        ("$a_b$", [Cell(grey[0]), Cell(grey[1], "$c\\frac$", frame="#ff0000")]),
        ("", [None, Cell(grey[2])]),
    ]
    draw_sheet("two rows", ["first"], rows, tmp_path / "sub" / "a.png", legend={"road": "#00ff00"})
    pixels = np.asarray(Image.open(tmp_path / "sub" / "a.png").convert("RGB"))
    places = [np.argwhere((pixels == round(255 * float(one[0, 0, 0]))).all(axis=2)) for one in grey]
    assert min(map(len, places)) > 5000
    (top, left), (_, right), (bottom, below) = (place.mean(axis=0) for place in places)
    assert left < right == pytest.approx(below, abs=2) and top < bottom
    for colour in ((255, 0, 0), (0, 255, 0)):
        assert (pixels == colour).all(axis=2).sum() > 100


def test_items_are_spread_evenly():
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced("ab", 3) == ["a", "b"] and evenly_spaced([], 3) == []


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


def test_data_parallel_refuses_bf16_and_compiling(without_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="bf16 .*use torchrun instead of DataParallel"):
        open_runtime("cuda:0,1", "bf16").__enter__()
    with pytest.raises(UsageError, match="--compile .*use torchrun instead of DataParallel"):
        open_runtime("cuda:0,1", compiles=True).__enter__()


@pytest.mark.parametrize(("batch_size", "shares"), [(1, "1"), (4, "1 + 1 + 1 + 1"), (7, "2 + 2 + 2 + 1")])
def test_a_batch_must_leave_two_images_for_each_device(batch_size, shares):
    devices = (0, 1, 2, 3) if batch_size > 1 else ()
    with pytest.raises(UsageError, match=re.escape(f"--optim.batch-size {batch_size} leaves {shares} images")):
        Runtime(torch.device("cpu"), devices).require_pairs(batch_size)
    Runtime(torch.device("cpu"), devices).require_pairs(8)

"""Unpacking CODaN: parts, layouts, missing and broken archives, interrupted and repeated runs."""

import bz2
import sys
import zlib

import class_folders
import codan
import pytest
from archive_files import files_below, member, tar_of

from minmax.runtime.archives import unpacking_folder
from minmax.runtime.config import run_script
from minmax.runtime.errors import RunError, UsageError


def pictures(split, prefix=""):
    """Names and contents of a tiny split, all of them different."""
    names = [f"{name}/{i}.{'JPEG' if i % 2 else 'jpg'}" for name in codan.CODAN_CLASSES for i in range(3)]
    return {f"{prefix}{split}/{name}": zlib.crc32(f"{split}{name}".encode()).to_bytes(4, "big") * 20 for name in names}


def packed_split(split, *members, prefix=""):
    return bz2.compress(tar_of(*members, files=pictures(split, prefix)))


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "Downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "deep" / "data"


def put(archives, split, packed):
    (archives / f"codan_{split}.tar.bz2").write_bytes(packed)


def put_parts(archives, packed, count, split="train"):
    edges = [len(packed) * i // count for i in range(count + 1)]
    for i in range(count):
        (archives / f"codan_{split}.tar.bz2.part{i}").write_bytes(packed[edges[i] : edges[i + 1]])


def unpack(archives, output):
    codan.main(codan.Config(archives=archives, output=output))


def test_all_splits_are_unpacked_into_class_folders(archives, output):
    put_parts(archives, packed_split("train"), 12)  # part10 follows part9
    for split in ("val", "test_day", "test_night"):
        put(archives, split, packed_split(split))
    before = files_below(archives)
    unpack(archives, output)
    assert files_below(archives) == before
    assert files_below(output) == {name: content for split in codan.SPLITS for name, content in pictures(split).items()}
    assert list(codan.CODAN_CLASSES) == sorted(codan.CODAN_CLASSES)


@pytest.mark.parametrize("prefix", ["", "./", "data/", "home/me/CODaN/data/"])
def test_what_stands_before_the_split_and_what_is_no_picture_is_left_away(prefix, archives, output):
    names = ("val/Car/._0.jpg", "._val", "val/.DS_Store", "val/Car/Thumbs.db", "val/0.jpg", "train/Car/0.jpg", "a.jpg")
    odd = [member(f"{prefix}{name}", b"abc") for name in (*names, "val/Car/line\nend.jpg", "val/Car/\x1b[2J.jpg")]
    put(archives, "val", packed_split("val", *odd, prefix=prefix))
    unpack(archives, output)
    assert files_below(output) == pictures("val")


def test_what_differs_from_the_published_archives_is_said(archives, output, caplog, monkeypatch):
    put(archives, "val", packed_split("val"))
    put(
        archives, "test_night", bz2.compress(tar_of(files={"test_night/Cat/0.jpg": b"x", "test_night/Dog/0.jpg": b"x"}))
    )
    monkeypatch.setattr(codan, "CODAN_IMAGES", {**codan.CODAN_IMAGES, "val": 30})
    unpack(archives, output)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [message.split(":")[0] for message in said[:2]] == ["no train", "no test_day"]
    (different,) = said[2:]
    assert f"{output}/test_night holds 2 images of Cat, Dog; CODaN as published has 2500 of Bicycle" in different


def folder_without_archives(archives):
    for name in ("train.zip", "codan_train.tar.bz2.part", "codan_val.tar.bz2.part0~"):
        (archives / name).write_bytes(b"BZh")


def without_part(number, count=3):
    def prepare(archives):
        put_parts(archives, packed_split("train"), count)
        (archives / f"codan_train.tar.bz2.part{number}").unlink()

    return prepare


def parts_of_two_archives(archives):
    put_parts(archives, packed_split("train"), 2)
    (archives / "codan_train.tar.bz2.part1").write_bytes(packed_split("val")[300:])


REFUSED = {
    "no archive": (folder_without_archives, UsageError, f"no archive of CODaN.*test_night.*{codan.SOURCE}"),
    "no folder": (lambda archives: archives.rmdir(), UsageError, "no such folder"),
    "first part missing": (without_part(0), UsageError, "part0 is missing; there are 2 other parts"),
    "part between missing": (without_part(1), UsageError, "part1 is missing"),
    "last part missing": (
        without_part(2),
        RunError,
        "could not unpack .*part0, codan_train.tar.bz2.part1 to",
    ),
    "parts of two": (parts_of_two_archives, RunError, "could not unpack codan_train"),
    "another split": (
        lambda archives: put(archives, "val", packed_split("train")),
        RunError,
        "holds no files that belong",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_unpacked_ends_in_one_line_and_leaves_nothing(case, archives, output, monkeypatch, capsys):
    prepare, error, message = REFUSED[case]
    prepare(archives)
    with pytest.raises(error, match=message) as caught:
        unpack(archives, output)
    assert "\n" not in str(caught.value)
    assert not output.exists() or not list(output.iterdir())
    monkeypatch.setattr(sys, "argv", ["codan", "--archives", str(archives), "--output", str(output)])
    monkeypatch.setattr("logging.root.handlers", [])
    with pytest.raises(SystemExit) as exit:
        run_script(codan.Config, codan.main, None)
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == (2 if error is UsageError else 1)
    assert [line[:7] for line in lines if not line.startswith("no train: ")] == ["error: "]


def test_a_broken_archive_keeps_what_others_gave_and_a_second_run_goes_on(archives, output, caplog):
    caplog.set_level("INFO")
    put(archives, "train", packed_split("train"))
    put(archives, "val", packed_split("val")[:-1])
    with pytest.raises(RunError, match="codan_val"):
        unpack(archives, output)
    assert files_below(output) == pictures("train")
    (output / "train/Car/mine.jpg").write_bytes(b"the user's")
    put(archives, "train", b"not looked at any more")
    put(archives, "val", packed_split("val"))
    unpack(archives, output)
    assert f"{output}/train is there already" in caplog.text
    assert files_below(output) == {**pictures("train"), **pictures("val"), "train/Car/mine.jpg": b"the user's"}


def test_the_loader_notices_a_half_unpacked_split(tmp_path):
    unpacking_folder(tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match=r"only .*\.train\.unpacking, which an interrupted run of .*codan\.py.*run it"):
        class_folders.has_split(str(tmp_path), "train")
    with pytest.raises(UsageError, match=r"only .*\.train\.unpacking"):
        class_folders.open_split(str(tmp_path), "train", class_folders.ImageConfig())

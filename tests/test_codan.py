"""Unpacking CODaN: parts, layouts, damaged and hostile archives, full disks, interrupted and repeated runs."""

import bz2
import errno
import io
import os
import shutil
import sys
import tarfile
import zlib
from collections import namedtuple
from pathlib import Path

import class_folders
import codan
import numpy as np
import pytest
from PIL import Image

from minmax.runtime.config import parse_flags, run_script
from minmax.runtime.errors import RunError, UsageError

PER_CLASS = 3
Usage = namedtuple("Usage", "total used free")


def jpeg(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "jpeg", quality=95)
    return file.getvalue()


def pictures(split, prefix=""):
    """Names and contents of a tiny split, all of them different."""
    return {
        f"{prefix}{split}/{name}/{i}.{'JPEG' if i % 2 else 'jpg'}": jpeg(zlib.crc32(f"{split}{name}{i}".encode()))
        for name in codan.CODAN_CLASSES
        for i in range(PER_CLASS)
    }


def header(name, kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(files, extra=(), tar_format=tarfile.GNU_FORMAT):
    """Bytes of a tar archive; `extra` are (header, contents) in its middle."""
    buffer = io.BytesIO()
    entries = [(header(name, size=len(content)), content) for name, content in files.items()]
    middle = len(entries) // 2
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for info, content in [*entries[:middle], *extra, *entries[middle:]]:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return buffer.getvalue()


def tree(folder):
    """Everything below a folder, hidden or not, but for the records of what was unpacked."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != codan.RECORD)
    return [name for name in found if (folder / name).is_file() or not any((folder / name).iterdir())]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def put_parts(archives, packed, cuts, split="train"):
    edges = [0, *cuts, len(packed)]
    for i, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        (archives / f"codan_{split}.tar.bz2.part{i}").write_bytes(packed[start:stop])


def packed_split(split, **options):
    return bz2.compress(tar_of(pictures(split), **options))


def unpack(archives, output):
    flags = ["--archives", str(archives), "--output", str(output)]
    codan.main(parse_flags(codan.Config, None, flags))


def refuse(archives, output, error, message):
    """Unpack, expect an error, and that the archives are untouched and nothing is left in the output."""
    before = contents(archives)
    with pytest.raises(error, match=message) as caught:
        unpack(archives, output)
    assert contents(archives) == before
    assert not output.exists() or not list(output.iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_splits_are_unpacked_and_open_as_class_folders(archives, output, tmp_path):
    packed = packed_split("train")
    put_parts(archives, packed, [1, len(packed) // 3])  # the first part is a single byte
    for split in ("val", "test_day", "test_night"):
        put(archives, split, packed_split(split))
    before = contents(archives)
    unpack(archives, output)
    assert contents(archives) == before
    assert sorted(path.name for path in output.iterdir()) == sorted(codan.SPLITS)
    for split in codan.SPLITS:
        opened = class_folders.open_split(str(output), split, class_folders.ImageConfig(size=16), cache=tmp_path)
        assert opened.classes == codan.CODAN_CLASSES and len(opened) == 10 * PER_CLASS
        assert {opened.name(i): (output / opened.name(i)).read_bytes() for i in range(len(opened))} == pictures(split)
        assert opened.labels == [label for label in range(10) for _ in range(PER_CLASS)]


@pytest.mark.parametrize("count", [1, 2, 12])
def test_parts_are_joined_in_the_order_of_their_numbers(count, archives, output):
    packed = packed_split("train")
    put_parts(archives, packed, [len(packed) * i // count for i in range(1, count)])  # of 12, part10 follows part9
    unpack(archives, output)
    assert tree(output) == sorted(pictures("train"))


def test_the_joined_archive_of_train_is_taken_too(archives, output):
    put(archives, "train", packed_split("train"))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("train"))


def test_bzip2_of_several_streams_is_read_to_its_end(archives, output):
    plain = tar_of(pictures("val"))
    put(archives, "val", b"".join(bz2.compress(plain[i : i + 4096]) for i in range(0, len(plain), 4096)))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))


@pytest.mark.parametrize("prefix", ["./", "data/", "./data/", "codan_val/", "home/me/CODaN/data/"])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_stands_before_the_split_in_a_path_is_left_away(prefix, tar_format, archives, output):
    folders = [(header(f"{prefix}val", tarfile.DIRTYPE), b""), (header(f"{prefix}val/Car/", tarfile.DIRTYPE), b"")]
    put(archives, "val", bz2.compress(tar_of(pictures("val", prefix), folders, tar_format)))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))
    assert (output / "val/Cup/0.jpg").read_bytes() == pictures("val")["val/Cup/0.jpg"]


def test_system_files_and_other_splits_are_left_out_with_a_message(archives, output, caplog):
    caplog.set_level("INFO")
    names = ("val/Car/._0.jpg", "._val", "val/.DS_Store", "val/Car/Thumbs.db", "val/0.jpg", "train/Car/0.jpg", "a.jpg")
    extra = [(header(name, size=3), b"abc") for name in names]
    put(archives, "val", packed_split("val", extra=extra))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))
    assert f"left out {len(names)} files" in caplog.text and "'val/Car/._0.jpg'" in caplog.text


def test_permissions_of_the_archive_are_not_taken_over(archives, output):
    extra = [(header("val/Car/x.jpg", size=1, mode=0o6000), b"x")]
    put(archives, "val", packed_split("val", extra=extra))
    unpack(archives, output)
    assert (output / "val/Car/x.jpg").stat().st_mode == (output / "val/Car/0.jpg").stat().st_mode


def test_a_split_that_is_not_the_published_one_is_reported(archives, output, caplog, monkeypatch):
    for split in ("val", "test_day"):
        put(archives, split, packed_split(split))
    put(archives, "test_night", bz2.compress(tar_of({"test_night/Cat/0.jpg": jpeg(0), "test_night/Dog/0.jpg": b"x"})))
    monkeypatch.setattr(codan, "CODAN_IMAGES", {"val": 10 * PER_CLASS, "test_day": 2500, "test_night": 2})
    unpack(archives, output)
    assert [
        record.message for record in caplog.records if "CODaN" in record.message and "no " not in record.message
    ] == [
        f"{output / 'test_day'} holds 30 images; CODaN as published has 2500",
        f"{output / 'test_night'} holds the classes Cat, Dog; CODaN has {', '.join(codan.CODAN_CLASSES)}",
    ]
    assert list(codan.CODAN_CLASSES) == sorted(codan.CODAN_CLASSES)


def test_splits_without_an_archive_are_named_and_the_others_unpacked(archives, output, caplog):
    put(archives, "test_day", packed_split("test_day"))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("test_day"))
    missing = [record.message for record in caplog.records if record.message.startswith("no ")]
    assert [message.split(":")[0] for message in missing] == ["no train", "no val", "no test_night"]


@pytest.mark.parametrize("there", [(), ("train.zip", "codan_train.tar.bz2.part", "codan_val.tar.bz2.part0~")])
def test_a_folder_without_any_archive_is_refused(there, archives, output):
    for name in there:
        (archives / name).write_bytes(b"BZh")
    message = refuse(archives, output, UsageError, f"no archive of CODaN.*{codan.SOURCE}")
    assert str(archives) in message and "codan_SPLIT.tar.bz2" in message and "test_night" in message
    refuse(archives / "nowhere", output, UsageError, "nowhere: no such folder")


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_part_is_refused_before_work(gone, archives, output):
    packed = packed_split("train")
    put_parts(archives, packed, [len(packed) // 3, len(packed) // 2])
    (archives / f"codan_train.tar.bz2.part{gone}").unlink()
    put(archives, "val", packed_split("val"))  # not unpacked either
    message = refuse(archives, output, UsageError, rf"codan_train\.tar\.bz2\.part{gone} is missing")
    assert f"codan_train.tar.bz2.part{1 - gone}, codan_train.tar.bz2.part2" in message


def test_a_missing_last_part_is_reported_with_the_parts_used(archives, output):
    packed = packed_split("train")
    put_parts(archives, packed, [len(packed) // 3, len(packed) // 2])
    (archives / "codan_train.tar.bz2.part2").unlink()
    message = refuse(archives, output, RunError, "ends too early: a part is missing or a download incomplete")
    assert "codan_train.tar.bz2.part0, codan_train.tar.bz2.part1 " in message


@pytest.mark.parametrize("kept", [3, 4, 200, -4000, -20, -1])
def test_a_truncated_archive_is_refused(kept, archives, output):
    put(archives, "val", packed_split("val")[:kept])
    refuse(archives, output, RunError, r"codan_val\.tar\.bz2 .*ends too early")


@pytest.mark.parametrize("behind", [0, 512, 700])
def test_a_tar_archive_cut_within_or_between_its_members_is_refused(behind, archives, output):
    files = {name: content.ljust(2048) for name, content in pictures("val").items()}  # with its header, 5 blocks
    cut = 5 * tarfile.BLOCKSIZE * 7 + behind
    put(archives, "val", bz2.compress(tar_of(files)[:cut]))
    refuse(archives, output, RunError, "ends too early")


@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
def test_damaged_bytes_are_refused(place, archives, output):
    packed = bytearray(packed_split("val"))
    packed[int(place * len(packed))] ^= 0x10
    put(archives, "val", packed)
    refuse(archives, output, RunError, f"is damaged.*{codan.SOURCE}")


def test_parts_of_another_archive_are_refused(archives, output):
    packed, other = packed_split("train"), packed_split("val")
    put_parts(archives, packed, [len(packed) // 2])
    (archives / "codan_train.tar.bz2.part1").write_bytes(other[len(other) // 2 :])
    refuse(archives, output, RunError, "is damaged")


@pytest.mark.parametrize("block", [0, 5 * 7])
def test_a_damaged_header_is_not_taken_for_the_end(block, archives, output):
    files = {name: content.ljust(2048) for name, content in pictures("val").items()}
    plain = bytearray(tar_of(files))
    plain[block * tarfile.BLOCKSIZE + 3] ^= 0x10
    put(archives, "val", bz2.compress(plain))
    refuse(archives, output, RunError, "is damaged")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_bzip2_archive_is_refused_before_work(content, archives, output):
    put(archives, "train", packed_split("train"))
    put(archives, "val", content)
    refuse(archives, output, UsageError, r"codan_val\.tar\.bz2 is not a bzip2 archive")


def test_an_archive_that_cannot_be_read_is_refused_before_work(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(codan, "_first_bytes", fail)
    refuse(archives, output, UsageError, r"cannot read codan_val\.tar\.bz2 .*Input/output error")


def test_bzip2_of_something_else_than_tar_is_refused(archives, output):
    put(archives, "val", bz2.compress(b"not a tar archive" * 1000))
    refuse(archives, output, RunError, "is damaged")


def test_an_archive_without_the_folder_of_its_split_is_refused(archives, output):
    put(archives, "val", packed_split("train"))
    refuse(archives, output, RunError, "holds no pictures in val/<Class>/; it holds 'train/Bicycle/0.jpg'")
    put(archives, "val", bz2.compress(tar_of({})))
    refuse(archives, output, RunError, "it holds no files")


HOSTILE = {
    "parent": (header("val/../../escaped.jpg", size=1), "leads out"),
    "parent of everything": (header("../val/Car/escaped.jpg", size=1), "leads out"),
    "parent elsewhere": (header("notes/../../escaped.txt", size=1), "leads out"),
    "parent folder": (header("val/Car/..", tarfile.DIRTYPE), "leads out"),
    "absolute": (header("/val/Car/escaped.jpg", size=1), "leads out"),
    "backslash": (header("val/Car/..\\..\\escaped.jpg", size=1), "on Windows"),
    "drive": (header("C:escaped.jpg", size=1), "on Windows"),
    "symbolic link": (header("val/Car/x.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
    "inner symbolic link": (header("val/Car/x.jpg", tarfile.SYMTYPE, linkname="0.jpg"), "a symbolic link"),
    "hard link": (header("val/Car/x.jpg", tarfile.LNKTYPE, linkname="val/Bicycle/0.jpg"), "a hard link"),
    "link elsewhere": (header("notes", tarfile.SYMTYPE, linkname=".."), "a symbolic link"),
    "device": (header("val/Car/x.jpg", tarfile.CHRTYPE), "neither a plain file nor a folder"),
    "pipe": (header("val/Car/x.jpg", tarfile.FIFOTYPE), "neither a plain file nor a folder"),
    "unknown type": (header("val/Car/x.jpg", b"Z", size=0), "neither a plain file nor a folder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_members_that_could_reach_outside_are_refused(case, archives, output, tmp_path):
    member, why = HOSTILE[case]
    put(archives, "val", packed_split("val", extra=[(member, b"x" * member.size)]))
    message = refuse(archives, output, RunError, f"refused codan_val.*unsafe member.*{why}")
    assert repr(member.name) in message
    assert not list(tmp_path.rglob("*escaped*")) and not list(tmp_path.rglob("notes*"))


def test_a_link_does_not_lead_a_later_file_outside(archives, output, tmp_path):
    (tmp_path / "outside").mkdir()
    link = header("val/Car", tarfile.SYMTYPE, linkname=str(tmp_path / "outside"))
    files = {"val/Bus/0.jpg": b"x", "val/Car/escaped.jpg": b"x"}
    put(archives, "val", bz2.compress(tar_of(files, [(link, b"")])))
    refuse(archives, output, RunError, "a symbolic link")
    assert not list((tmp_path / "outside").iterdir())


def test_names_that_cannot_be_written_or_shown_are_left_out(archives, output, caplog):
    caplog.set_level("INFO")
    names = ("val/Car/line\nend.jpg", "val/Car/\x1b[2J.jpg", "val/Car/zero\0byte.jpg")
    extra = [(header("short", size=1, pax_headers={"path": name}), b"x") for name in names]
    put(archives, "val", packed_split("val", extra=extra, tar_format=tarfile.PAX_FORMAT))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))
    (message,) = (record.message for record in caplog.records if "left out" in record.message)
    assert "left out 3 files" in message and message.isprintable()


def test_more_members_than_images_are_refused(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))
    monkeypatch.setattr(codan, "MAX_MEMBERS", 10 * PER_CLASS - 1)
    refuse(archives, output, RunError, "holds more than 29 members")
    monkeypatch.setattr(codan, "MAX_MEMBERS", 10 * PER_CLASS)
    unpack(archives, output)


@pytest.mark.parametrize("name", ["val/Car/x.jpg", "elsewhere/x.bin"])
def test_a_file_larger_than_any_image_is_refused(name, archives, output):
    zeros = bytes(codan.MAX_FILE_BYTES + 1)
    put(archives, "val", packed_split("val", extra=[(header(name, size=len(zeros)), zeros)]))
    refuse(archives, output, RunError, f"unsafe member '{name}', it has {len(zeros)} bytes")


def test_the_largest_file_may_be_as_large_as_the_limit(archives, output, monkeypatch):
    largest = max(map(len, pictures("val").values()))
    put(archives, "val", packed_split("val"))
    monkeypatch.setattr(codan, "MAX_FILE_BYTES", largest - 1)
    refuse(archives, output, RunError, f"it has {largest} bytes")
    monkeypatch.setattr(codan, "MAX_FILE_BYTES", largest)
    unpack(archives, output)


def test_a_bomb_of_files_that_are_small_enough_is_refused(archives, output):
    megabyte = bytes(2**20)
    bomb = packed_split("val", extra=[(header(f"val/Car/x{i}.jpg", size=2**20), megabyte) for i in range(17)])
    assert codan.MAX_RATIO * len(bomb) < codan.HARMLESS_BYTES < 17 * 2**20
    put(archives, "val", bomb)
    refuse(archives, output, RunError, "unpacks to far more than images do.*bomb")


def test_the_limits_follow_the_size_of_the_archive(archives, output, monkeypatch):
    packed = packed_split("val")
    put(archives, "val", packed)
    plain = len(bz2.decompress(packed))
    monkeypatch.setattr(codan, "HARMLESS_BYTES", 0)
    monkeypatch.setattr(codan, "MAX_RATIO", 0.9 * plain / len(packed))
    refuse(archives, output, RunError, "bomb")
    monkeypatch.setattr(codan, "MAX_RATIO", 1.1 * plain / len(packed))
    monkeypatch.setattr(codan, "MAX_BYTES", plain - 1)
    refuse(archives, output, RunError, f"more than {plain - 1} bytes")
    monkeypatch.setattr(codan, "MAX_BYTES", plain)
    unpack(archives, output)


@pytest.mark.parametrize("others", [{}, pictures("val")])
def test_a_bomb_in_a_header_is_refused_before_it_fills_the_memory(others, archives, output):
    member = header("val/Car/x.jpg", size=1, pax_headers={"comment": "x" * 2 * codan.MAX_HEADER_BYTES})
    put(archives, "val", bz2.compress(tar_of(others, [(member, b"x")], tarfile.PAX_FORMAT)))
    refuse(archives, output, RunError, "bomb")


def test_headers_without_end_are_refused(archives, output):
    headers = [(header(f"x{i}", tarfile.XHDTYPE), b"") for i in range(500)]  # tarfile reads them recursively
    put(archives, "val", packed_split("val", extra=headers))
    refuse(archives, output, RunError, "is damaged.*recursion")


def test_a_bomb_behind_the_end_of_the_archive_is_refused(archives, output):
    plain = tar_of(pictures("val")) + bytes(2 * codan.MAX_HEADER_BYTES)
    put(archives, "val", bz2.compress(plain))
    refuse(archives, output, RunError, "bomb")


def test_a_sparse_file_is_refused(archives, output):
    fields = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "10", "GNU.sparse.map": "0,1"}
    member = header("val/Car/x.jpg", size=1, pax_headers=fields)
    put(archives, "val", packed_split("val", extra=[(member, b"x")], tar_format=tarfile.PAX_FORMAT))
    refuse(archives, output, RunError, "unsafe member .* neither a plain file")


def test_a_disk_that_is_too_small_is_refused_before_work(archives, output, tmp_path, monkeypatch):
    put(archives, "train", packed_split("train"))
    put(archives, "val", packed_split("val"))
    needed = codan.SPACE_RATIO * sum(len(packed) for packed in contents(archives).values())
    asked = []

    def usage(folder):
        asked.append(folder)
        return Usage(2**40, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    free = needed - 1
    message = refuse(
        archives, output, UsageError, r"needs about \d+\.\d\d GiB, but .* has \d+\.\d\d GiB free; free some"
    )
    assert not output.exists() and str(output) in message
    assert asked == [tmp_path]  # the nearest folder that is there already
    free = needed
    unpack(archives, output)


def test_the_message_about_space_gives_gibibytes(archives, output, tmp_path, monkeypatch):
    put(archives, "val", packed_split("val"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**40, 0, 2**29))
    monkeypatch.setattr(codan.Archive, "size", 2 * 2**30)
    refuse(archives, output, UsageError, rf"needs about 3\.00 GiB, but {tmp_path} has 0\.50 GiB free")


def test_an_output_that_is_a_file_is_refused(archives, tmp_path):
    put(archives, "val", packed_split("val"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is not a folder"):
        unpack(archives, tmp_path / "file" / "data")
    assert (tmp_path / "file").read_bytes() == b""


def copy_then(action, after):
    """A copyfileobj that does something instead of the copy number `after`."""
    copy, done = shutil.copyfileobj, []

    def copy_or_act(source, target, *rest):
        if len(done) == after:
            target.write(b"half")
            action(Path(target.name))
        done.append(target.name)
        return copy(source, target, *rest)

    return copy_or_act


def no_space(target):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(target):
    raise KeyboardInterrupt


def test_a_full_disk_leaves_finished_splits_and_nothing_else(archives, output, monkeypatch):
    put(archives, "train", packed_split("train"))
    put(archives, "val", packed_split("val"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", copy_then(no_space, 10 * PER_CLASS + 2))
        with pytest.raises(
            RunError, match=f"could not unpack codan_val.* to {output / 'val'}: .*No space left"
        ) as caught:
            unpack(archives, output)
    assert "\n" not in str(caught.value) and "free some space" in str(caught.value)
    assert [path.name for path in output.iterdir()] == ["train"]
    unpack(archives, output)
    assert tree(output) == sorted({**pictures("train"), **pictures("val")})


def test_a_disk_that_is_full_for_the_record_leaves_nothing(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))

    def no_record(path, text, **options):
        no_space(path)

    monkeypatch.setattr(Path, "write_text", no_record)
    refuse(archives, output, RunError, "No space left")


def test_ctrl_c_leaves_nothing(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))
    monkeypatch.setattr(shutil, "copyfileobj", copy_then(interrupt, 5))
    with pytest.raises(KeyboardInterrupt):
        unpack(archives, output)
    assert not list(output.iterdir())


def test_what_a_killed_run_left_behind_is_removed(archives, output, caplog):
    put(archives, "val", packed_split("val"))
    leftover = codan.unpacking_folder(output, "val")
    (leftover / "Car").mkdir(parents=True)
    (leftover / "Car" / "half.jpg").write_bytes(b"half")
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))
    assert f"removing {leftover}" in caplog.text


def test_a_leftover_is_removed_before_space_is_measured(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))
    leftover = codan.unpacking_folder(output, "val")
    leftover.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**40, 0, 0 if leftover.exists() else 2**30))
    unpack(archives, output)
    assert tree(output) == sorted(pictures("val"))


def test_a_link_in_the_place_of_a_leftover_is_not_followed(archives, output, tmp_path):
    put(archives, "val", packed_split("val"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    output.mkdir(parents=True)
    codan.unpacking_folder(output, "val").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="cannot remove"):
        unpack(archives, output)
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_a_folder_that_somebody_else_changes_is_not_put_in_place(archives, output, monkeypatch):
    put(archives, "val", packed_split("val"))
    monkeypatch.setattr(
        shutil, "copyfileobj", copy_then(lambda target: (target.parents[1] / "Bicycle/0.jpg").unlink(), 5)
    )
    refuse(archives, output, RunError, "changed by somebody else")


def test_a_second_run_skips_what_is_complete(archives, output, caplog):
    put(archives, "val", packed_split("val"))
    unpack(archives, output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    (output / "val/.DS_Store").touch()
    times[output / "val"] = (output / "val").stat().st_mtime_ns
    put(archives, "test_day", packed_split("test_day"))
    caplog.clear()
    caplog.set_level("INFO")
    unpack(archives, output)
    assert f"{output / 'val'} is complete already" in caplog.text and "no val" not in caplog.text
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert tree(output / "test_day")
    for file in archives.iterdir():
        file.write_bytes(b"not looked at any more: BZh")
    unpack(archives, output)


def test_pictures_added_by_the_user_do_not_matter(archives, output):
    put(archives, "val", packed_split("val"))
    unpack(archives, output)
    (output / "val/Car/mine.jpg").write_bytes(jpeg(0))
    unpack(archives, output)
    assert (output / "val/Car/mine.jpg").exists()


DAMAGE = {
    "a file is gone": (lambda split: (split / "Car/0.jpg").unlink(), "is incomplete: 29 files .* where 30 of"),
    "a file is gone and another longer": (
        lambda split: (split / "Car/0.jpg").unlink() or (split / "Car/2.jpg").write_bytes(bytes(10_000)),
        "is incomplete: 29 files",
    ),
    "a file is shorter": (lambda split: (split / "Car/0.jpg").write_bytes(b""), "is incomplete: 30 files"),
    "no record": (lambda split: (split / codan.RECORD).unlink(), "not made by this command, or not completely"),
    "a broken record": (lambda split: (split / codan.RECORD).write_text("[{"), "no valid record"),
    "a foreign record": (lambda split: (split / codan.RECORD).write_text('{"files": null}'), "no valid record"),
    "another's record": (lambda split: (split / codan.RECORD).write_text("[1]"), "no valid record"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_an_incomplete_split_is_refused_and_never_deleted(case, archives, output):
    put(archives, "val", packed_split("val"))
    unpack(archives, output)
    put(archives, "test_day", packed_split("test_day"))
    damage, message = DAMAGE[case]
    damage(output / "val")
    before = contents(output)
    with pytest.raises(UsageError, match=f"{output / 'val'} .*{message}.*remove or rename it and run"):
        unpack(archives, output)
    assert contents(output) == before


def test_a_folder_of_the_user_is_refused_and_never_deleted(archives, output):
    put(archives, "val", packed_split("val"))
    (output / "val" / "Car").mkdir(parents=True)
    (output / "val" / "Car" / "mine.jpg").write_bytes(jpeg(0))
    with pytest.raises(UsageError, match="was not made by this command"):
        unpack(archives, output)
    assert tree(output) == ["val/Car/mine.jpg"]


def test_a_home_folder_may_be_abbreviated(archives, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(archives, "val", packed_split("val"))
    unpack("~/Downloads", "~/data")
    assert tree(tmp_path / "data") == sorted(pictures("val"))


@pytest.mark.parametrize(("packed", "code"), [(b"", 2), (packed_split("val")[:-1], 1)])
def test_the_command_ends_with_one_line_and_an_exit_code(packed, code, archives, output, monkeypatch, capsys):
    put(archives, "val", packed)
    monkeypatch.setattr(sys, "argv", ["codan", "--archives", str(archives), "--output", str(output)])
    monkeypatch.setattr("logging.root.handlers", [])
    with pytest.raises(SystemExit) as caught:
        run_script(codan.Config, codan.main, None)
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == code and len(lines) == 1 and lines[0].startswith("error: ")


def test_the_loader_notices_a_half_unpacked_split(tmp_path):
    codan.unpacking_folder(tmp_path, "train").mkdir()
    with pytest.raises(UsageError, match=r"only .*\.train\.unpacking, which an interrupted run of .*codan\.py.*run it"):
        class_folders.has_split(str(tmp_path), "train")
    with pytest.raises(UsageError, match=r"only .*\.train\.unpacking"):
        class_folders.open_split(str(tmp_path), "train", class_folders.ImageConfig())

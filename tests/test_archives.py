"""Unpacking archives: whole or not at all, inside the folder, whatever the archive holds."""

import bz2
import errno
import gzip
import io
import tarfile

import pytest
from archive_files import FILES, files_below, member, tar_of

from minmax.runtime.archives import unpack_archive, unpacking_folder
from minmax.runtime.errors import RunError, UsageError


def unpack(packed, folder, mode="r:gz", place=lambda name: name):
    return unpack_archive(io.BytesIO(packed), mode, folder, place, "x.tar")


@pytest.mark.parametrize(("mode", "compress"), [("r:gz", gzip.compress), ("r:bz2", bz2.compress)])
def test_files_come_to_their_places_and_others_are_left_out(mode, compress, tmp_path):
    odd = [member("notes.txt", b"x"), member("a", kind=tarfile.DIRTYPE), member("a/x.jpg", b"1", mode=0o6777)]
    packed, folder = compress(tar_of(*odd)), tmp_path / "new" / "data"
    place = lambda name: f"b/{name[2:]}" if name.endswith("jpg") else None  # noqa: E731
    assert unpack(packed, folder, mode, place) == 10
    assert files_below(tmp_path / "new") == {f"data/b/{i}.jpg": FILES[f"a/{i}.jpg"] for i in range(9)} | {
        "data/b/x.jpg": b"1"
    }
    assert (folder / "b/x.jpg").stat().st_mode & 0o7022 == 0
    with pytest.raises(RunError, match="could not unpack"):
        unpack(packed, folder, mode, place)
    assert len(files_below(tmp_path)) == 10  # what was there stays


HOSTILE = {
    "parent further in": ([member("a/../../escaped", b"x")], "outside the destination"),
    "inner symbolic link": ([member("a/x", kind=tarfile.SYMTYPE, linkname="0.jpg")], "a link or a device"),
    "unknown kind": ([member("a/x", kind=b"Z")], "a link or a device"),
    "a name that no disk takes": ([member("x", b"x", pax_headers={"path": "a/zero\0byte"})], "null"),
    "a place refused": ([member("refuse me", b"x")], "could not unpack x.tar .*no place for it"),
    "a bomb of zeros": ([member(f"a/{i}", bytes(2**15)) for i in range(60)], "decompression bomb"),
    "a bomb of empty files": ([member(f"a/{i}") for i in range(5000)], "decompression bomb"),
}


def place_or_refuse(name):
    if name == "refuse me":
        raise UsageError("no place for it")
    return name


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing(case, tmp_path, monkeypatch):
    monkeypatch.setattr("minmax.runtime.archives._HARMLESS", 2**18)
    members, message = HOSTILE[case]
    with pytest.raises(RunError, match=message) as caught:
        unpack(gzip.compress(tar_of(*members)), tmp_path / "deep" / "data", place=place_or_refuse)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_an_absolute_path_becomes_one_inside(tmp_path):
    unpack(gzip.compress(tar_of(member(f"{tmp_path}/escaped", b"x"))), tmp_path / "data")
    assert not (tmp_path / "escaped").exists() and (tmp_path / "data" / f"{tmp_path}/escaped"[1:]).exists()


WHOLE = {"r:gz": gzip.compress(tar_of()), "r:bz2": bz2.compress(tar_of())}


def flipped(packed, place):
    return packed[:place] + bytes([packed[place] ^ 0x10]) + packed[place + 1 :]


BROKEN = {
    "a web page": lambda packed: b"<!DOCTYPE html>",
    "without its last byte": lambda packed: packed[:-1],
    "damaged in its checksum": lambda packed: flipped(packed, -6),
}


@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives_leave_nothing(case, mode, tmp_path):
    with pytest.raises(RunError, match=f"could not unpack x.tar to {tmp_path}/data: .*; download it again") as caught:
        unpack(BROKEN[case](WHOLE[mode]), tmp_path / "data", mode)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"no tar archive" * 999, tar_of(files={}), tar_of()[:9000]], ids=["text", "empty", "half"]
)
def test_what_is_no_whole_tar_archive_inside_is_refused(content, tmp_path):
    with pytest.raises(RunError):
        unpack(gzip.compress(content), tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(error, tmp_path, monkeypatch):
    makefile, folder = tarfile.TarFile.makefile, tmp_path / "data"

    def fail_later(tar, info, path):
        assert not folder.exists()
        if info.name == "a/5.jpg":
            raise error
        makefile(tar, info, path)

    monkeypatch.setattr(tarfile.TarFile, "makefile", fail_later)
    with pytest.raises(RunError if isinstance(error, OSError) else KeyboardInterrupt, match="No space|^$"):
        unpack(WHOLE["r:gz"], folder)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_but_no_link_is_followed(tmp_path):
    folder, mine = tmp_path / "data", tmp_path / "mine"
    (unpacking_folder(folder) / "half").mkdir(parents=True)
    unpack(WHOLE["r:gz"], folder)
    assert files_below(folder) == FILES
    mine.mkdir()
    (mine / "photo.jpg").touch()
    unpacking_folder(tmp_path / "other").symlink_to(mine)
    with pytest.raises(RunError, match="symbolic link"):
        unpack(WHOLE["r:gz"], tmp_path / "other")
    assert (mine / "photo.jpg").exists() and not (tmp_path / "other").exists()


def test_a_folder_that_somebody_else_changes_is_not_put_in_place(tmp_path):
    folder = tmp_path / "data"

    def place(name):
        (unpacking_folder(folder) / "a/0.jpg").unlink(missing_ok=True)
        return name

    with pytest.raises(RunError, match="changed by somebody else"):
        unpack(WHOLE["r:gz"], folder, place=place)
    assert not list(tmp_path.iterdir())

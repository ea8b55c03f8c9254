"""Downloading retrieval-SfM-120k: resumed, checked, unpacked safely; from a server on this machine."""

import io
import pickle
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sfm120k import ARCHIVE, LISTS, Config, download, main, unpack

from minmax.runtime.errors import RunError, UsageError


def tar_of(files, *special):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in special:
            archive.addfile(member)
    return content.getvalue()


@pytest.fixture
def host():
    """A server of the three files; `breaks` stops it after so many bytes, `asked` lists what it was asked for."""
    lists = pickle.dumps({"train": {}, "val": {}}, 2)
    files = {f"/dbs/{name}": lists for name in LISTS}
    files[f"/ims/{ARCHIVE}"] = tar_of({f"ef/cd/ab/{i}abcdef": bytes([i]) * 5000 for i in range(3)})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            server.asked.append((self.path, start))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : server.breaks])

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.breaks = files, [], None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_lists_and_images_come_into_their_layout(host, tmp_path):
    main(Config(output=tmp_path, host=host.address))
    folder = tmp_path / "train" / "retrieval-SfM-120k"
    assert (folder / "ims/ef/cd/ab/1abcdef").read_bytes() == bytes([1]) * 5000
    assert (folder / f"{LISTS[0]}.sha256").read_text().endswith(f"  {LISTS[0]}\n")
    before = len(host.asked)
    main(Config(output=tmp_path, host=host.address))
    assert len(host.asked) == before


def test_a_download_that_broke_off_goes_on(host, tmp_path):
    host.breaks = 40
    with pytest.raises(RunError, match="broke off.*go on from"):
        download(f"{host.address}/ims/{ARCHIVE}", tmp_path / "x")
    assert not (tmp_path / "x").exists() and (tmp_path / "x.part").stat().st_size == 40
    host.breaks = None
    download(f"{host.address}/ims/{ARCHIVE}", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == host.files[f"/ims/{ARCHIVE}"]
    assert [start for _, start in host.asked] == [0, 40]
    # Killed between the last byte and the rename.
    (tmp_path / "x").rename(tmp_path / "x.part")
    download(f"{host.address}/ims/{ARCHIVE}", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == host.files[f"/ims/{ARCHIVE}"]


def test_another_digest_is_refused(host, tmp_path):
    with pytest.raises(RunError, match="SHA-256 .*, expected 00"):
        main(Config(output=tmp_path, host=host.address, sha256=("0" * 64,)))
    main(Config(output=tmp_path, host=host.address))
    (tmp_path / "train/retrieval-SfM-120k" / LISTS[1]).write_bytes(b"changed")
    with pytest.raises(RunError, match="expected"):
        main(Config(output=tmp_path, host=host.address))


def test_lists_with_code_are_refused(host, tmp_path):
    host.files[f"/dbs/{LISTS[0]}"] = b"cos\nsystem\n(S'true'\ntR."
    with pytest.raises(UsageError, match="it names os.system"):
        main(Config(output=tmp_path, host=host.address))


def test_a_missing_file_or_host_is_one_message(host, tmp_path):
    del host.files[f"/dbs/{LISTS[1]}"]
    with pytest.raises(RunError, match="cannot download .*whiten.pkl: HTTP Error 404"):
        main(Config(output=tmp_path, host=host.address))
    with pytest.raises(UsageError, match="--host file:///etc"):
        Config(output=tmp_path, host="file:///etc")
    with pytest.raises(UsageError, match="--sha256 12"):
        Config(sha256=("12",))
    host.shutdown()
    host.server_close()
    with pytest.raises(RunError, match="cannot download .*nothing was downloaded"):
        download(f"{host.address}/dbs/{LISTS[0]}", tmp_path / "new" / "x")


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


ARCHIVES = {
    "link": (tar_of({}, link("ab/0123456")), "holds 'ab/0123456', which is no image"),
    "short name": (tar_of({"../x": b"1"}), "no id of an image"),
    "dots": (tar_of({"x/pwned......": b"1"}), "no id of an image"),
    "empty": (tar_of({}), "holds no images"),
    "truncated": (tar_of({f"{i}abcdef": bytes(range(256)) * 400 for i in range(9)})[:-300], "cannot unpack"),
    "foreign": (b"<html>not found</html>", "cannot unpack"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(tmp_path, case):
    content, message = ARCHIVES[case]
    (tmp_path / ARCHIVE).write_bytes(content)
    with pytest.raises(RunError, match=message):
        unpack(tmp_path / ARCHIVE, tmp_path / "ims")
    assert [file.name for file in tmp_path.iterdir()] == [ARCHIVE]


def test_a_name_that_leads_out_is_written_inside(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(tar_of({"../../0abcdef": b"1"}))
    unpack(tmp_path / ARCHIVE, tmp_path / "ims")
    assert [f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*abcdef")] == ["ims/ef/cd/ab/0abcdef"]

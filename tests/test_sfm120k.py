"""Downloading retrieval-SfM-120k: resumed, checked, unpacked safely; from a server on this machine."""

import gzip
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from archive_files import files_below, tar_of
from sfm120k import ARCHIVE, LISTS, Config, download, main, unpack

from minmax.runtime.checkpoints import file_digest
from minmax.runtime.errors import RunError, UsageError


@pytest.fixture
def host():
    """A server of the three files.

    `breaks` stops it after so many bytes, `asked` lists what it was asked for, `resumes` whether it can go on.
    """
    lists = pickle.dumps({"train": {}, "val": {}}, 2)
    files = {f"/dbs/{name}": lists for name in LISTS}
    files[f"/ims/{ARCHIVE}"] = gzip.compress(tar_of(files={f"ef/cd/ab/{i}abcdef": bytes([i]) * 5000 for i in range(3)}))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-")) if server.resumes else 0
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
    server.files, server.asked, server.breaks, server.resumes = files, [], None, True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_lists_and_images_come_into_their_layout(host, tmp_path, caplog):
    caplog.set_level("INFO")
    main(Config(output=tmp_path, host=host.address))
    folder = tmp_path / "train" / "retrieval-SfM-120k"
    assert (folder / "ims/ef/cd/ab/1abcdef").read_bytes() == bytes([1]) * 5000
    assert f"{file_digest(folder / LISTS[0])}  {folder / LISTS[0]}" in caplog.text
    before = len(host.asked)
    main(Config(output=tmp_path, host=host.address))
    assert len(host.asked) == before


def test_a_download_that_broke_off_is_never_the_file_and_goes_on(host, tmp_path):
    address, whole = f"{host.address}/ims/{ARCHIVE}", host.files[f"/ims/{ARCHIVE}"]
    host.breaks = 40
    with pytest.raises(RunError, match=f"broke off at 40 of {len(whole)} bytes; give the command again to go on from"):
        download(address, tmp_path / "x")
    assert files_below(tmp_path) == {"x.part": whole[:40]}
    host.breaks = None
    download(address, tmp_path / "x")
    assert [start for _, start in host.asked] == [0, 40]
    assert files_below(tmp_path) == {"x": whole}
    (tmp_path / "x").rename(tmp_path / "x.part")  # as if killed between the last byte and the renaming
    download(address, tmp_path / "x")
    assert files_below(tmp_path) == {"x": whole}


def test_a_host_that_starts_from_the_beginning_and_a_part_that_is_too_long(host, tmp_path):
    address, whole = f"{host.address}/ims/{ARCHIVE}", host.files[f"/ims/{ARCHIVE}"]
    (tmp_path / "x.part").write_bytes(whole + b"more")
    with pytest.raises(RunError, match="Error 416.*or remove it to start again"):
        download(address, tmp_path / "x")
    host.resumes = False
    (tmp_path / "x.part").write_bytes(b"something else")
    download(address, tmp_path / "x")
    assert files_below(tmp_path) == {"x": whole}


def test_another_digest_is_refused(host, tmp_path):
    with pytest.raises(RunError, match="SHA-256 .*, expected 00"):
        main(Config(output=tmp_path, host=host.address, sha256=("0" * 64,)))
    main(Config(output=tmp_path, host=host.address))
    file = tmp_path / "train/retrieval-SfM-120k" / LISTS[0]
    digest = file_digest(file)
    main(Config(output=tmp_path, host=host.address, sha256=(digest.upper(),)))
    file.write_bytes(b"changed")
    with pytest.raises(RunError, match=f"expected {digest}; remove it"):
        main(Config(output=tmp_path, host=host.address, sha256=(digest,)))


def test_lists_with_code_are_refused(host, tmp_path):
    host.files[f"/dbs/{LISTS[0]}"] = b"cos\nsystem\n(S'true'\ntR."
    with pytest.raises(UsageError, match="unsupported global os.system"):
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


def test_images_are_written_where_their_ids_say_and_other_files_refused(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(tar_of(files={"../../0abcdef": b"1"})))
    unpack(tmp_path / ARCHIVE, tmp_path / "ims")
    assert files_below(tmp_path / "ims") == {"ef/cd/ab/0abcdef": b"1"}
    for name in ("../x", "x/pwned......"):
        (tmp_path / ARCHIVE).write_bytes(gzip.compress(tar_of(files={name: b"1"})))
        with pytest.raises(RunError, match="could not unpack .*not an image id"):
            unpack(tmp_path / ARCHIVE, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ims", ARCHIVE]

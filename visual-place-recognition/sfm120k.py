"""Download retrieval-SfM-120k from its authors' host into the layout that training reads.

    python visual-place-recognition/sfm120k.py --output visual-place-recognition/dataset

Three files: the lists of pairs (retrieval-SfM-120k.pkl, -whiten.pkl) and all images in one archive of tens of
gigabytes. A download that was cut off goes on where it stopped when the command is given again. The host publishes no
checksums: sizes are compared with what it announces, and the SHA-256 of each file is kept beside it and shown, to be
compared with somebody else's or given as --sha256 the next time. The lists are read without running code.
"""

import http.client
import logging
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from place_images import DEFAULT_DATA
from place_pairs import SFM, image_file
from plain_pickle import read_plain_pickle
from tqdm import tqdm

from minmax.runtime.checkpoints import file_digest, write_atomically
from minmax.runtime.config import require, run_script
from minmax.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)

HOST = "http://cmp.felk.cvut.cz/cnnimageretrieval/data/train"
LISTS = (f"{SFM.name}.pkl", f"{SFM.name}-whiten.pkl")
ARCHIVE = "ims.tar.gz"
_CHUNK = 2**20
_TIMEOUT = 60.0  # seconds without a byte
_MAX_IMAGE = 64 * 2**20  # bytes; the largest photos of the set have a few hundred kilobytes


@dataclass(frozen=True, kw_only=True)
class Config:
    """Download retrieval-SfM-120k."""

    output: Path = DEFAULT_DATA
    """Folder that gets train/retrieval-SfM-120k/."""
    host: str = HOST
    """Where dbs/ and ims/ are; a mirror may stand in."""
    images: bool = True
    """Download and unpack the images too, not only the lists."""
    sha256: tuple[str, ...] = ()
    """Digests that the two lists and the archive must have, in this order, as far as given."""

    def __post_init__(self) -> None:
        """Refuse values that can be none."""
        fits = len(self.sha256) <= 3 and all(re.fullmatch(r"[0-9A-Fa-f]{64}", digest) for digest in self.sha256)
        require(fits, "--sha256", self.sha256, "at most three digests of 64 hexadecimal digits")
        require(self.host.startswith(("http://", "https://")), "--host", self.host, "a http:// or https:// address")


def main(config: Config) -> None:
    """Download what is missing, check it, and unpack the images."""
    folder = config.output.expanduser() / SFM
    places = {name: f"{config.host}/dbs/{name}" for name in LISTS}
    if (folder / "ims").is_dir():
        log.info("%s is there already", folder / "ims")
    elif config.images:
        places[ARCHIVE] = f"{config.host}/ims/{ARCHIVE}"
    for number, (name, address) in enumerate(places.items()):
        download(address, folder / name)
        check_digest(folder / name, config.sha256[number] if number < len(config.sha256) else None)
    for name in LISTS:
        read_plain_pickle(folder / name)
    if ARCHIVE in places:
        unpack(folder / ARCHIVE, folder / "ims")
        log.info("%s is not needed any more", folder / ARCHIVE)


def download(address: str, file: Path) -> None:
    """Download a file, going on with what an earlier try left; nothing is done when it is there.

    Raises:
        RunError: when the host cannot be reached, breaks off or sends another size than announced; a part stays.
    """
    if file.is_file():
        return
    part = file.with_name(f"{file.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        done = part.stat().st_size if part.is_file() else 0
        request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            # A host that sends another part than the one asked for starts from the beginning.
            start = f"bytes {done}-"
            resumed = done > 0 and answer.headers.get("Content-Range", "").startswith(start)
            if done and not resumed and answer.status == http.HTTPStatus.PARTIAL_CONTENT:
                raise RunError(f"{address} sent another part than the one asked for; remove {part} and start again")
            done = done if resumed else 0
            announced = answer.headers.get("Content-Length")
            total = done + int(announced) if announced else None
            bar = tqdm(total=total, initial=done, desc=file.name, unit="B", unit_scale=True, disable=None)
            with part.open("ab" if resumed else "wb") as stream, bar:
                while block := answer.read(_CHUNK):
                    stream.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{done}":  # stopped between the last byte and the rename
                part.replace(file)
                return
            raise RunError(f"{part} is longer than {address}; remove it and start again") from error
        raise RunError(f"cannot download {address}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        where = f"give the command again to go on from {part}" if part.is_file() else "nothing was downloaded"
        raise RunError(f"cannot download {address} ({error}); {where}") from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise RunError(f"{address} broke off at {size} of {total} bytes; give the command again to go on from {part}")
    part.replace(file)


def check_digest(file: Path, expected: str | None) -> None:
    """Compare a file's SHA-256 with what was expected or recorded when it came, and record it.

    Raises:
        RunError: when it is another one.
    """
    record = file.with_name(f"{file.name}.sha256")
    digest = file_digest(file)
    if expected is None and record.is_file():
        expected = record.read_text(encoding="utf-8").split()[0]
    if expected is not None and digest != expected.lower():
        raise RunError(f"{file} has SHA-256 {digest}, expected {expected}; remove it and download it again")
    write_atomically(record, lambda temporary: temporary.write_text(f"{digest}  {file.name}\n", encoding="utf-8"))
    log.info("%s  %s", digest, file)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the images of the archive; the folder appears when it is complete.

    Only regular files named by an id are written, each where its id says; links and the like are refused.

    Raises:
        RunError: when the archive is broken or holds something else, or the disk is full.
    """
    growing = folder.with_name(f"{folder.name}.unpacking")
    shutil.rmtree(growing, ignore_errors=True)
    try:
        with tarfile.open(archive, "r|gz") as members:
            count = 0
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=None):
                if member.isdir():
                    continue
                name = PurePosixPath(member.name).name
                if not member.isreg() or member.size > _MAX_IMAGE:
                    raise RunError(f"{archive} holds {member.name!r}, which is no image; nothing was unpacked")
                content = members.extractfile(member)
                assert content is not None  # a regular file
                target = image_file(growing, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as stream:
                    shutil.copyfileobj(content, stream)
                count += 1
        if not count:
            raise RunError(f"{archive} holds no images")
        growing.replace(folder)
    except (tarfile.TarError, EOFError, OSError, UsageError) as error:
        raise RunError(f"cannot unpack {archive}: {error}; remove it and download it again") from error
    finally:
        shutil.rmtree(growing, ignore_errors=True)


if __name__ == "__main__":
    run_script(Config, main, __doc__)

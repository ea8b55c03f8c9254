"""Download retrieval-SfM-120k from its authors' host into the layout that training reads.

    python visual-place-recognition/sfm120k.py --output visual-place-recognition/dataset

Three files: the lists of pairs (retrieval-SfM-120k.pkl, -whiten.pkl) and all images in one archive of tens of
gigabytes. To continue a download that was cut off, give the command again. The host publishes no checksums: sizes are
compared with what it announces, and the SHA-256 of each file is shown, to compare with somebody else's or to give as
--sha256 next time. The lists are read without running code.
"""

import http.client
import logging
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from place_images import DEFAULT_DATA
from place_pairs import SFM, image_file
from tqdm import tqdm

from minmax.runtime.archives import unpack_archive
from minmax.runtime.checkpoints import file_digest
from minmax.runtime.config import require, run_script
from minmax.runtime.errors import RunError
from minmax.runtime.plain_pickle import read_plain_pickle

log = logging.getLogger(__name__)

HOST = "http://cmp.felk.cvut.cz/cnnimageretrieval/data/train"
LISTS = (f"{SFM.name}.pkl", f"{SFM.name}-whiten.pkl")
ARCHIVE = "ims.tar.gz"
_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Config:
    """Download retrieval-SfM-120k."""

    output: Path = DEFAULT_DATA
    """Folder that gets train/retrieval-SfM-120k/."""
    host: str = HOST
    """Address that holds dbs/ and ims/; may be a mirror."""
    sha256: tuple[str, ...] = ()
    """Expected digests of the two lists and the archive, in this order; the last ones may be left out."""

    def __post_init__(self) -> None:
        """Refuse what is no digest or no address."""
        fits = len(self.sha256) <= 3 and all(re.fullmatch(r"[0-9A-Fa-f]{64}", digest) for digest in self.sha256)
        require(fits, "--sha256", self.sha256, "at most three digests of 64 hexadecimal digits")
        require(self.host.startswith(("http://", "https://")), "--host", self.host, "a http:// or https:// address")


def main(config: Config) -> None:
    """Download what is missing, check it, and unpack the images."""
    folder = config.output.expanduser() / SFM
    places = {name: f"{config.host}/dbs/{name}" for name in LISTS}
    if (folder / "ims").is_dir():
        log.info("%s is there already", folder / "ims")
    else:
        places[ARCHIVE] = f"{config.host}/ims/{ARCHIVE}"
    for number, (name, address) in enumerate(places.items()):
        download(address, folder / name, config.sha256[number].lower() if number < len(config.sha256) else None)
    for name in LISTS:
        read_plain_pickle(folder / name)
    if ARCHIVE in places:
        unpack(folder / ARCHIVE, folder / "ims")
        log.info("%s is not needed any more", folder / ARCHIVE)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the images of the archive, each to the place that its id names; the folder appears when it is complete.

    Raises:
        RunError: when it is broken or holds anything else, or the disk is full.
    """
    with archive.open("rb") as opened:
        unpack_archive(opened, "r:gz", folder, lambda path: str(image_file(Path(), Path(path).name)), str(archive))


def download(address: str, file: Path, sha256: str | None = None) -> None:
    """Download a file unless it is there, continuing what an earlier try left, and check it.

    Raises:
        RunError: when the host cannot be reached, breaks off or sends other bytes than expected; what came is kept.
    """
    part = file.with_name(f"{file.name}.part")
    if not file.is_file():
        try:
            _fetch(address, part)
        except (OSError, ValueError, http.client.HTTPException) as error:
            then = f"give the command again to go on from {part}, or remove it to start again"
            raise RunError(
                f"cannot download {address}: {error}; {then if part.is_file() else 'nothing was downloaded'}"
            ) from error
    arrived = file if file.is_file() else part
    digest = file_digest(arrived)
    if sha256 not in (None, digest):
        raise RunError(f"{arrived} has SHA-256 {digest}, expected {sha256}; remove it and download it again")
    log.info("%s  %s", digest, file)
    arrived.replace(file)


# torch.hub and torchvision take a download that broke off for a whole file, and neither continues one.
def _fetch(address: str, part: Path) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = 0  # the host starts from the beginning
            announced = answer.headers.get("Content-Length")
            total = done + int(announced) if announced else None
            bar: dict[str, Any] = {"total": total, "initial": done, "desc": part.stem, "disable": None}
            with part.open("ab" if done else "wb") as stream, tqdm.wrapattr(stream, "write", **bar) as counted:
                shutil.copyfileobj(answer, counted, 2**20)
    except urllib.error.HTTPError as error:
        if error.headers.get("Content-Range") != f"bytes */{done}":
            raise
        return  # an earlier try had come to the end
    if total not in (None, part.stat().st_size):
        raise OSError(f"it broke off at {part.stat().st_size} of {total} bytes")


if __name__ == "__main__":
    run_script(Config, main, __doc__)

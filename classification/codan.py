"""Unpack CODaN, Common Objects Day and Night, as it is distributed, into class folders.

    python classification/codan.py --archives ~/Downloads --output classification/data

https://github.com/Attila94/CODaN holds one archive per split: codan_val.tar.bz2, codan_test_day.tar.bz2,
codan_test_night.tar.bz2, and codan_train.tar.bz2 cut into .part0, .part1 and .part2. Inside are
SPLIT/<Class>/*.jpg and *.JPEG, 224x224. The archives are only read. A split appears in the output when it is complete.
"""

import logging
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

from class_folders import DEFAULT_DATA

from media.pictures import PICTURE_SUFFIXES
from minmax.runtime.archives import unpack_archive
from minmax.runtime.config import run_script
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.splits import Split

log = logging.getLogger(__name__)

SOURCE = "https://github.com/Attila94/CODaN"
SPLITS: tuple[Split, ...] = get_args(Split)
CODAN_CLASSES = ("Bicycle", "Boat", "Bottle", "Bus", "Car", "Cat", "Chair", "Cup", "Dog", "Motorbike")
CODAN_IMAGES: dict[Split, int] = {"train": 10_000, "val": 500, "test_day": 2_500, "test_night": 2_500}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Unpack the archives of CODaN into class folders."""

    archives: Path
    """Folder with the downloaded codan_*.tar.bz2 and codan_train.tar.bz2.part*; they are only read."""
    output: Path = DEFAULT_DATA
    """Folder that gets train/, val/, test_day/ and test_night/."""


def main(config: Config) -> None:
    """Unpack the splits whose archives are there, except those that are unpacked already."""
    source, output = config.archives.expanduser(), config.output.expanduser()
    archives = find_archives(source)
    for split in SPLITS:
        if (output / split).exists():
            log.info("%s is there already", output / split)
        elif split in archives:
            unpack(archives[split], output, split)
        else:
            log.warning("no %s: there is no codan_%s.tar.bz2 in %s; it comes from %s", split, split, source, SOURCE)


def find_archives(folder: Path) -> dict[Split, list[Path]]:
    """The archives of CODaN in a folder: of each split the file, or the parts that make it up, in order.

    Raises:
        UsageError: when there is none, or a part in between is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"--archives {folder}: no such folder")
    found: dict[Split, list[Path]] = {}
    for split in SPLITS:
        whole = folder / f"codan_{split}.tar.bz2"
        parts = [file for file in folder.glob(f"{whole.name}.part*") if re.fullmatch(r"\.part\d+", file.suffix)]
        files = [whole] if whole.is_file() else [folder / f"{whole.name}.part{i}" for i in range(len(parts))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UsageError(f"--archives {folder}: {missing[0]} is missing; there are {len(parts)} other parts")
        if files:
            found[split] = files
    if not found:
        raise UsageError(
            f"--archives {folder}: no archive of CODaN there; expected codan_SPLIT.tar.bz2 for one or more of "
            f"{', '.join(SPLITS)}, or its parts codan_SPLIT.tar.bz2.part0, .part1, ...; download them from {SOURCE}"
        )
    return found


def unpack(files: list[Path], output: Path, split: Split) -> None:
    """Unpack the archive of a split, in one file or several, to OUTPUT/SPLIT.

    Raises:
        RunError: when it is truncated, damaged or unsafe, or the disk is full.
    """
    name = ", ".join(file.name for file in files)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as joined:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, joined)
            count = unpack_archive(joined, "r:bz2", output / split, lambda path: place_in_split(path, split), name)
    except OSError as error:
        raise RunError(f"could not unpack {name} to {output / split}: {error}") from error
    classes = sorted(folder.name for folder in (output / split).iterdir())
    log.info("%s: %d images in %d classes", output / split, count, len(classes))
    if count != CODAN_IMAGES[split] or classes != list(CODAN_CLASSES):
        log.warning(
            "%s holds %d images of %s; CODaN as published has %d of %s",
            *(output / split, count, ", ".join(classes), CODAN_IMAGES[split], ", ".join(CODAN_CLASSES)),
        )


def place_in_split(path: str, split: Split) -> str | None:
    """The part <Class>/<file> of a picture's path .../SPLIT/<Class>/<file>, or None for anything else."""
    parts = PurePosixPath(path).parts
    if split not in parts[:-2] or not path.isprintable() or Path(path).suffix.lower() not in PICTURE_SUFFIXES:
        return None
    inside = parts[parts.index(split) + 1 :]
    return None if inside[-1].startswith(".") else "/".join(inside)  # macOS puts ._NAME beside NAME


if __name__ == "__main__":
    run_script(Config, main, __doc__)

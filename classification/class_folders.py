"""Images in class folders: CODaN's layout, or any tree ROOT/{train,val,test_day,test_night}/<Class>/*.

The built-in scenes have the same interface.
"""

import hashlib
import logging
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from media.pictures import (
    DECODING_ERRORS,
    PICTURE_SUFFIXES,
    decode_picture,
    files_below,
    listed_below,
    orientation,
)
from minmax.runtime.archives import unpacking_folder
from minmax.runtime.config import DEFAULT_RUNS, require
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.file_checks import find_problems
from minmax.runtime.splits import NIGHT_SPLITS, Labelled, check_split, evenly_spaced
from minmax.runtime.splits import Split as Split
from scenes import CLASSES, HELD_OUT_NIGHT, render_labelled

log = logging.getLogger(__name__)

DEFAULT_DATA = Path(__file__).resolve().parent / "data"

SCENES = "scenes"
SCENE_SEEDS: dict[Split, int] = {"train": 1, "val": 2, "test_day": 3, "test_night": 4}
SCENE_COUNTS: dict[Split, int] = {"train": 1536, "val": 400, "test_day": 800, "test_night": 800}
QUICK_SCENES = 64


@dataclass(frozen=True)
class ImageConfig:
    """How images are read."""

    size: int = 224
    """Side of the training crops and of the images in evaluation, in pixels."""
    evaluation: Literal["resize", "native"] = "resize"
    """resize: shorter side to size, then the central square; native: images as they are (the paper's CODaN)."""
    skip_corrupt: float = 0.0
    """Largest share of unreadable files that may be left out, in [0, 1]; by default none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.size >= 16, "--images.size", self.size, "16 or more")
        require(0 <= self.skip_corrupt <= 1, "--images.skip-corrupt", self.skip_corrupt, "a share in [0, 1]")


class LabelledImages(Labelled):
    """A split: images with class labels."""

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """One image as uint8 RGB `(3, H, W)`."""


class FolderImages(LabelledImages):
    """Image files under ROOT/SPLIT/<Class>/, classes and files in alphabetical order."""

    def __init__(
        self, root: Path, split: Split, classes: tuple[str, ...], files: list[Path], labels: list[int]
    ) -> None:
        super().__init__(split, classes, labels)
        self.root, self.files = root, files

    def load(self, index: int) -> Tensor:
        """One image as uint8 RGB `(3, H, W)`; raises RunError when the file has vanished or broken since the check."""
        try:
            return decode_picture(self.files[index])
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {self.files[index]} any more: {error}") from error

    def name(self, index: int) -> str:
        """Path below the root."""
        return self.files[index].relative_to(self.root).as_posix()

    def fingerprint(self) -> str:
        """Hash of names, sizes and modification times."""
        digest = hashlib.sha256(str(self.root).encode())
        for file in self.files:
            status = file.stat()
            digest.update(f"{file.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


class SceneImages(LabelledImages):
    """Built-in scenes, rendered once and kept in memory."""

    def __init__(self, split: Split, count: int, size: int, cache: Path) -> None:
        night = split in NIGHT_SPLITS
        # The held-out lamps and cameras: nothing about the scenes' nights was tuned on them.
        settings = HELD_OUT_NIGHT if night else None
        domain: Literal["day", "night"] = "night" if night else "day"
        self.images, labels = render_labelled(domain, count, size, SCENE_SEEDS[split], settings, cache)
        super().__init__(split, CLASSES, labels.tolist())

    def load(self, index: int) -> Tensor:
        """One image as uint8 RGB `(3, H, W)`."""
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)

    def name(self, index: int) -> str:
        """Split and number."""
        return f"scenes/{self.split}/{index:04d}"

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.images.tobytes()).hexdigest()[:16]


def open_split(
    data: str,
    split: Split,
    config: ImageConfig,
    classes: tuple[str, ...] | None = None,
    quick: bool = False,
    cache: Path = DEFAULT_RUNS,
) -> LabelledImages:
    """Open one split of a data set, or of the built-in scenes when `data` is `scenes`.

    Args:
        data: folder that holds the splits, or `scenes`.
        split: which.
        config: size of scenes; share of corrupt files to leave out.
        classes: the classes that a network knows, in its order; None takes them from the folders.
        quick: only a few images.
        cache: folder for rendered scenes and for the record of which files were checked.

    Raises:
        UsageError: when a folder is missing, empty or laid out otherwise, classes differ, or files are corrupt.
    """
    if data == SCENES:
        count = min(QUICK_SCENES, SCENE_COUNTS[split]) if quick else SCENE_COUNTS[split]
        images: LabelledImages = SceneImages(split, count, config.size, cache / "scenes")
        if classes is not None and classes != images.classes:
            raise UsageError(f"the network knows {_listed(classes)}, the scenes show {_listed(images.classes)}")
        return check_split(images, split)
    root = Path(data)
    found, files, labels = _scan(root, split, classes)
    if quick:
        files, labels = evenly_spaced(files, QUICK_SCENES), evenly_spaced(labels, QUICK_SCENES)
    images = FolderImages(root, split, found, files, labels)
    bad = _find_unreadable(images, cache / "checked")
    if len(bad) > config.skip_corrupt * len(images):
        problems = [f"{name}: {why}" for name, why in bad.items()]
        raise UsageError(
            f"{len(bad)} of {len(images)} images in {root / split} cannot be read (mend or remove them, or leave out "
            f"up to a share of them with --images.skip-corrupt):{listed_below(problems)}"
        )
    if bad:
        log.warning("left out %d unreadable images of %s: %s", len(bad), root / split, ", ".join(bad))
    kept = [i for i in range(len(images)) if images.name(i) not in bad]
    readable = FolderImages(root, split, found, [files[i] for i in kept], [labels[i] for i in kept])
    if config.evaluation == "native":
        _require_one_size(readable)
    return check_split(readable, split)


def class_names(data: str, split: Split) -> tuple[str, ...]:
    """The classes of a split: its folders in alphabetical order, or those of the built-in scenes.

    Raises:
        UsageError: when there is no such folder, or it holds no class folders.
    """
    return CLASSES if data == SCENES else _class_folders(Path(data), split)


def has_split(data: str, split: Split) -> bool:
    """Whether a data set has a split.

    Raises:
        UsageError: when unpacking the split was interrupted.
    """
    if data == SCENES:
        return True
    _refuse_half_unpacked(Path(data), split)
    return (Path(data) / split).is_dir()


def _refuse_half_unpacked(root: Path, split: Split) -> None:
    half = unpacking_folder(root / split)
    if half.exists() and not (root / split).exists():
        raise UsageError(
            f"no folder {root / split}, only {half}, which an interrupted run of classification/codan.py left behind; "
            "run it again"
        )


def _class_folders(root: Path, split: Split) -> tuple[str, ...]:
    layout = f"{root}/{{train,val,test_day,test_night}}/<Class>/*.jpg"
    if not root.is_dir():
        raise UsageError(f"no data at {root}; expected {layout}, or --data scenes for the built-in data")
    _refuse_half_unpacked(root, split)
    folder = root / split
    if not folder.is_dir():
        there = sorted(entry.name for entry in root.iterdir())[:6]
        raise UsageError(f"no folder {folder}; expected {layout}, found {_listed(there)}")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise UsageError(f"no class folders in {folder}; expected {layout}")
    return names


def _scan(root: Path, split: Split, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], list[Path], list[int]]:
    names, folder = _class_folders(root, split), root / split
    if classes is not None and set(names) != set(classes):
        raise UsageError(f"{folder} holds the classes {_listed(names)}; expected {_listed(classes)}")
    classes = classes or names
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = files_below(folder / name, tuple(PICTURE_SUFFIXES))
        if not members:
            raise UsageError(f"the class folder {folder / name} holds no images ({_listed(sorted(PICTURE_SUFFIXES))})")
        files += members
        labels += [label] * len(members)
    return classes, files, labels


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "nothing"


def _require_one_size(images: FolderImages) -> None:
    sizes: dict[tuple[int, int], Path] = {}
    for file in images.files:
        with Image.open(file) as image:  # reads the header only
            # It is decoded upright.
            sizes.setdefault(image.size[::-1] if orientation(image) >= 5 else image.size, file)
    if len(sizes) > 1:
        examples = ", ".join(f"{file.name} is {width}x{height}" for (width, height), file in list(sizes.items())[:2])
        raise UsageError(
            f"--images.evaluation native: {images.root / images.split} holds images of {len(sizes)} sizes "
            f"({examples}); use --images.evaluation resize"
        )


def _find_unreadable(images: FolderImages, records: Path) -> dict[str, str]:
    """Decode every file; gives the names of those that are broken, with the reason."""

    def problem(file: Path) -> str | None:
        try:
            decode_picture(file)
        except DECODING_ERRORS as error:
            return str(error) or type(error).__name__
        return None

    bad = find_problems(images.files, problem, records / images.fingerprint(), f"checking {images.split}")
    return {images.name(i): why for i, why in bad.items()}

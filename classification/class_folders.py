"""Images in class folders, or built-in scenes of the same interface, and what training and evaluation see of them.

Folders are laid out as CODaN, or any tree ROOT/{train,val,test_day,test_night}/<Class>/*.
"""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from media.data_files import data_files, refuse_shared, refuse_two_labels, subfolders
from media.pictures import (
    DECODING_ERRORS,
    PICTURE_SUFFIXES,
    check_picture,
    count_of,
    decode_picture,
    files_below,
    listed_below,
    orientation,
    told_skipped,
)
from minmax.runtime.archives import unpacking_folder
from minmax.runtime.config import DEFAULT_RUNS, require
from minmax.runtime.errors import RunError, UsageError, printable
from minmax.runtime.file_checks import find_problems, fingerprint_files, taken_once
from minmax.runtime.seeding import derive_seed
from minmax.runtime.splits import (
    NIGHT_SPLITS,
    Labelled,
    OnePerExample,
    Split,
    Views,
    check_split,
    evenly_spaced,
    refuse_night,
)
from scenes import CLASSES, render_labelled
from scenes.night import Domain

log = logging.getLogger(__name__)

DEFAULT_DATA = Path(__file__).resolve().parent / "data"

SCENES = "scenes"
SCENE_SEEDS: dict[Split, int] = {"train": 1, "val": 2, "test_day": 3, "test_night": 4}
SCENE_COUNTS: dict[Split, int] = {"train": 1536, "val": 400, "test_day": 800, "test_night": 800}
QUICK_IMAGES = 64
_ENDINGS = tuple(PICTURE_SUFFIXES)


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
    """Image files below ROOT/SPLIT/<Class>/, each with the position of its class in `classes`."""

    def __init__(
        self, root: Path, split: Split, classes: tuple[str, ...], files: Sequence[Path], labels: Sequence[int]
    ) -> None:
        super().__init__(split, classes, labels)
        self.root, self.files = root, files

    def load(self, index: int) -> Tensor:
        """One image as uint8 RGB `(3, H, W)`; raises RunError when the file has vanished or broken since the check."""
        try:
            return decode_picture(self.files[index])
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {printable(self.files[index])} any more: {error}") from error

    def name(self, index: int) -> str:
        """Path below the root."""
        return printable(self.files[index].relative_to(self.root).as_posix())

    @taken_once
    def fingerprint(self) -> str:
        """Hash of the files and their labels."""
        return fingerprint_files(self.files, self.root, self.labels)

    def subset(self, chosen: Sequence[int]) -> "FolderImages":
        """Some of the images, by position."""
        files, labels = [self.files[i] for i in chosen], [self.labels[i] for i in chosen]
        return FolderImages(self.root, self.split, self.classes, files, labels)


class SceneImages(LabelledImages):
    """Built-in scenes, rendered once and kept in memory."""

    def __init__(self, split: Split, count: int, size: int, cache: Path, classes: tuple[str, ...] = CLASSES) -> None:
        domain: Domain = "night" if split in NIGHT_SPLITS else "day"
        self.images, labels = render_labelled(domain, count, size, SCENE_SEEDS[split], cache)
        super().__init__(split, classes, [classes.index(CLASSES[label]) for label in labels])

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
    """Open one split of the data set in the folder `data`, or of the built-in scenes when it is `scenes`.

    Labels are positions in `classes`, those that a network knows in the order of its outputs; by default those of the
    data. With `quick` there are only a few images. Rendered scenes, and the record of which files were checked, are
    kept in `cache`.

    Raises:
        UsageError: when a folder is missing, empty or laid out otherwise, classes differ, or files are corrupt.
    """
    found = class_names(data, split)
    classes = classes or found
    if set(classes) != set(found):
        raise UsageError(f"{Path(data, split)} holds the classes {_listed(found)}; expected {_listed(classes)}")
    if data == SCENES:
        count = min(QUICK_IMAGES, SCENE_COUNTS[split]) if quick else SCENE_COUNTS[split]
        return check_split(SceneImages(split, count, config.size, cache / "scenes", classes), split)
    root = Path(data).expanduser()
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / split / name
        members = data_files(folder, _ENDINGS)
        if not members:
            raise UsageError(f"the class folder {folder} holds no images ({_listed(sorted(PICTURE_SUFFIXES))})")
        files += members
        labels += [label] * len(members)
    log.info("%s: %s of %s", split, count_of(len(files), "image"), count_of(len(classes), "class", "classes"))
    if skipped := told_skipped(root / split, files):
        log.warning("%s: %s", root / split, skipped)
    refuse_two_labels(files, labels, classes)
    if split in ("train", "val"):
        refuse_shared(files, _night_files(root), split)
    images = FolderImages(root, split, classes, files, labels)
    if quick:
        images = images.subset(evenly_spaced(range(len(images)), QUICK_IMAGES))
    record = cache / "checked" / images.fingerprint()
    bad = find_problems(images.files, _problem, record, f"checking {split}")
    if len(bad) > config.skip_corrupt * len(images) or len(bad) == len(images):
        problems = [f"{images.name(i)}: {why}" for i, why in bad.items()]
        raise UsageError(
            f"{len(bad)} of {len(images)} images in {root / split} cannot be read (mend or remove them, or leave out "
            f"up to a share of them with --images.skip-corrupt):{listed_below(problems)}"
        )
    if bad:
        log.warning("left out %d unreadable images of %s: %s", len(bad), root / split, ", ".join(map(images.name, bad)))
        images = images.subset([i for i in range(len(images)) if i not in bad])
    if config.evaluation == "native":
        _require_one_size(images)
    return check_split(images, split)


def has_split(data: str, split: Split) -> bool:
    """Whether a data set has a split.

    Raises:
        UsageError: when unpacking the split was interrupted.
    """
    if data == SCENES:
        return True
    folder = Path(data, split).expanduser()
    half = unpacking_folder(folder)
    if half.exists() and not folder.exists():
        raise UsageError(
            f"no folder {folder}, only {half}, which an interrupted run of classification/codan.py left behind; "
            "run it again"
        )
    return folder.is_dir()


def class_names(data: str, split: Split) -> tuple[str, ...]:
    """The classes of a split: its folders in alphabetical order, or those of the built-in scenes.

    Raises:
        UsageError: when there is no such folder, or it holds no class folders.
    """
    if data == SCENES:
        return CLASSES
    root = Path(data).expanduser()
    folder = root / split
    layout = f"{root}/{{train,val,test_day,test_night}}/<Class>/*.jpg"
    if not root.is_dir():
        raise UsageError(f"no data at {root}; expected {layout}, or --data scenes for the built-in data")
    if not has_split(data, split):
        there = sorted(entry.name for entry in root.iterdir())[:6]
        raise UsageError(f"no folder {folder}; expected {layout}, found {_listed(there)}")
    names = tuple(subfolders(folder))
    if not names:
        raise UsageError(f"no class folders in {folder}; expected {layout}")
    return names


def _night_files(root: Path) -> list[Path]:
    return [file for split in NIGHT_SPLITS if (root / split).is_dir() for file in files_below(root / split, _ENDINGS)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _problem(file: Path) -> str | None:
    """Why a file cannot be decoded; None when it can."""
    try:
        check_picture(file)
    except DECODING_ERRORS as error:
        return str(error) or type(error).__name__
    return None


def _require_one_size(images: FolderImages) -> None:
    sizes: dict[tuple[int, int], Path] = {}
    for file in images.files:
        try:
            with Image.open(file) as image:  # reads the header only
                # It is decoded upright.
                sizes.setdefault(image.size[::-1] if orientation(image) >= 5 else image.size, file)
        except DECODING_ERRORS as error:
            raise RunError(f"cannot read {printable(file)} any more: {error}") from error
    if len(sizes) > 1:
        examples = ", ".join(
            f"{printable(file.name)} is {width}x{height}" for (width, height), file in list(sizes.items())[:2]
        )
        raise UsageError(
            f"--images.evaluation native: {images.root / images.split} holds images of {len(sizes)} sizes "
            f"({examples}); use --images.evaluation resize"
        )


class TrainingViews(OnePerExample[Views]):
    """Views `(3, size, size)` of day images for training, indexed by (epoch, image).

    Each view is a RandomResizedCrop (area 0.5 to 1), mirrored or not. The draws of an image in an epoch depend on
    (seed, epoch, image) alone, so the number of workers and restarts change nothing; the crops do not depend on `flip`,
    by which half of the views are mirrored.

    Raises:
        ValueError: for a night split; nothing is ever trained on one.
    """

    def __init__(self, images: LabelledImages, size: int, seed: int, flip: bool = True) -> None:
        from torchvision.transforms import v2

        refuse_night(images)
        super().__init__(images)
        self.images, self.seed = images, seed
        self.geometry = v2.Compose(
            [v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(0.5 * flip)]
        )

    def __getitem__(self, position: tuple[int, int]) -> Views:
        """The views of image `position[1]` in epoch `position[0]`."""
        epoch, index = position
        image = self.images.load(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(derive_seed(self.seed, "views", epoch, index))
            day, night = self.geometry(image), self.geometry(image)
        return Views(day, night, torch.tensor(self.images.labels[index]))


class WholeImages(OnePerExample[tuple[Tensor, Tensor]]):
    """Whole images without augmentation, uint8 RGB `(3, H, W)`, with their labels."""

    def __init__(self, images: LabelledImages, config: ImageConfig) -> None:
        from torchvision.transforms import v2

        super().__init__(images)
        self.images = images
        self.geometry = (
            v2.Compose([v2.Resize(config.size, antialias=True), v2.CenterCrop(config.size)])
            if config.evaluation == "resize"
            else v2.Identity()
        )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its label."""
        return self.geometry(self.images.load(index)), torch.tensor(self.images.labels[index])

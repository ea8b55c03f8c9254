"""Cityscapes, or any data in its layout: ROOT/{leftImg8bit,gtFine}/{train,val}/CITY/*; and the built-in scenes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from street_images import (
    QUICK_IMAGES,
    SCENE_COUNTS,
    SCENES,
    SceneStreets,
    Size,
    StreetFile,
    StreetFiles,
    StreetImages,
    check_files,
)

from media.pictures import PICTURE_SUFFIXES, files_below
from minmax.runtime.config import DEFAULT_RUNS, require
from minmax.runtime.errors import UsageError
from minmax.runtime.splits import Split, check_split

DEFAULT_DATA = Path(__file__).resolve().parent / "data" / "Cityscapes"
LAYOUT = "{leftImg8bit,gtFine}/{train,val}/CITY/NAME{_leftImg8bit,_gtFine_labelIds}.png"


@dataclass(frozen=True)
class StreetConfig:
    """How images are read."""

    size: Size = (512, 1024)
    """Height and width in pixels that whole images are resized to; scenes must be square, such as 96 96."""
    crop: Size | None = None
    """Height and width of the crops in training, in pixels; by default three quarters of the size, as in the paper."""
    scale: tuple[float, float] = (0.7, 1.3)
    """Random zoom before the crop in training; what lies outside the image is void."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(min(self.size) >= 32, "--images.size", self.size, "two numbers, 32 or more each")
        fits = all(16 <= crop <= side for crop, side in zip(self.crop_size, self.size, strict=True))
        largest = " ".join(map(str, self.size))
        require(fits, "--images.crop", self.crop_size, f"two numbers, 16 or more and at most {largest}")
        low, high = self.scale
        require(0.1 <= low <= high <= 10, "--images.scale", self.scale, "two numbers, 0.1 <= LOW <= HIGH <= 10")

    @property
    def crop_size(self) -> Size:
        """Height and width of the crops."""
        return self.crop or (self.size[0] * 3 // 4, self.size[1] * 3 // 4)


def open_streets(
    data: str, split: Split, config: StreetConfig, quick: bool = False, cache: Path = DEFAULT_RUNS
) -> StreetImages:
    """Open one split of Cityscapes' layout, or of the built-in scenes when `data` is `scenes`.

    Args:
        data: the folder that holds leftImg8bit/ and gtFine/, or `scenes`.
        split: Cityscapes has train and val; the scenes also test_day and test_night.
        config: size of scenes.
        quick: only a few images.
        cache: folder for rendered scenes and for the record of which files were checked.

    Raises:
        UsageError: when a folder or split is missing or laid out otherwise, or files are missing, surplus or broken.
    """
    if data == SCENES:
        square = config.size[0] == config.size[1]
        require(square, "--images.size", config.size, "a square for the built-in scenes, such as 96 96")
        count = min(QUICK_IMAGES, SCENE_COUNTS[split]) if quick else SCENE_COUNTS[split]
        return check_split(SceneStreets(split, count, config.size[0], cache / "scenes"), split)
    if split not in ("train", "val"):
        raise UsageError(f"{data} has no split {split}: Cityscapes' layout has train and val, both by day")
    images = find_cityscapes(Path(data).expanduser(), split)
    return check_split(check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked"), split)


def find_cityscapes(root: Path, split: Literal["train", "val"], is_night: bool = False) -> StreetFiles:
    """The files of a split in Cityscapes' layout, each image with its label ids.

    Raises:
        UsageError: when a folder is missing, or an image has no labels or labels no image.
    """
    images_below, labels_below = root / "leftImg8bit" / split, root / "gtFine" / split
    if not root.is_dir():
        raise UsageError(f"no data at {root}; expected {root}/{LAYOUT}, or --data scenes for the built-in data")
    for folder in (images_below, labels_below):
        if not folder.is_dir():
            there = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
            raise UsageError(f"no folder {folder}; expected {root}/{LAYOUT}, found {there}")
    # torchvision's Cityscapes would take every file there for an image, those of a file manager too.
    loose = [entry for entry in images_below.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    if loose:
        raise UsageError(f"{min(loose)} is a file; {images_below} holds a folder for each city")
    files = [
        StreetFile(image, labels_below / image.relative_to(images_below).parent / _label_name(image))
        for image in files_below(images_below, tuple(PICTURE_SUFFIXES))
    ]
    return pair_up(f"{root.name}, {split}", root, files, files_below(labels_below, "_labelids.png"), is_night)


def _label_name(image: Path) -> str:
    return f"{image.stem.partition('_leftImg8bit')[0]}_gtFine_labelIds.png"


def pair_up(title: str, root: Path, files: list[StreetFile], labels: Iterable[Path], is_night: bool) -> StreetFiles:
    """Images with the label files that were found.

    Raises:
        UsageError: when there are no images, one has no labels, or labels have no image; names the first of them.
    """
    if not files:
        raise UsageError(f"no images of {title} in {root}")
    wanted, there = {file.labels for file in files if file.labels is not None}, set(labels)
    for problem, names in (
        ("images without labels, missing", wanted - there),
        ("labels without an image", there - wanted),
    ):
        if names:
            first = ", ".join(str(name.relative_to(root)) for name in sorted(names)[:3])
            raise UsageError(f"{root} holds {len(names)} {problem}: {first}{', ...' if len(names) > 3 else ''}")
    return StreetFiles(title, root, files, is_night)

"""Which street images there are: by day Cityscapes, by night three layouts more, and the built-in scenes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

log = logging.getLogger(__name__)
DEFAULT_FOLDER = Path(__file__).resolve().parent / "data"
DEFAULT_DATA = DEFAULT_FOLDER / "Cityscapes"
DEFAULT_NIGHTS = ("NighttimeDrivingTest", "Dark_Zurich_val_anon", "Dark_Zurich_test_anon_withoutGt")
EXPECTED = "{leftImg8bit,gtFine}/{train,val}/CITY/NAME{_leftImg8bit,_gtFine_labelIds}.png"


class Layout(NamedTuple):
    """Where images and labels are below a root: `images/X/NAME<image_mark>.png`, `labels/X/NAME<labels_end>`."""

    images: str
    image_mark: str
    labels: str | None = None
    labels_end: str = ""


CITYSCAPES: dict[Split, Layout] = {
    "train": Layout("leftImg8bit/train", "_leftImg8bit", "gtFine/train", "_gtFine_labelIds.png"),
    "val": Layout("leftImg8bit/val", "_leftImg8bit", "gtFine/val", "_gtFine_labelIds.png"),
}
COARSE = "gtCoarse_daytime_trainvaltest/test/night"
NIGHTS = (
    Layout("leftImg8bit/test/night", "_leftImg8bit", COARSE, "_gtCoarse_labelIds.png"),  # Nighttime Driving
    Layout("rgb_anon/val/night", "_rgb_anon", "gt/val/night", "_gt_labelIds.png"),  # Dark Zurich
    Layout("rgb_anon/test/night", "_rgb_anon"),  # Dark Zurich's test split, whose labels are not public
    CITYSCAPES["val"],
)


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
    """Open train or val in Cityscapes' layout, or any split of the built-in scenes when `data` is `scenes`.

    With `quick` there are only a few images. Rendered scenes, of the size in `config`, and the record of which files
    were checked are kept in `cache`.

    Raises:
        UsageError: when a folder or split is missing or laid out otherwise, or files are missing, surplus or broken.
    """
    if data == SCENES:
        square = config.size[0] == config.size[1]
        require(square, "--images.size", config.size, "a square for the built-in scenes, such as 96 96")
        count = min(QUICK_IMAGES, SCENE_COUNTS[split]) if quick else SCENE_COUNTS[split]
        return check_split(SceneStreets(split, count, config.size[0], cache / "scenes"), split)
    if split not in CITYSCAPES:
        raise UsageError(f"{data} has no split {split}: Cityscapes' layout has train and val, both by day")
    root = Path(data).expanduser()
    images = pair_up(f"{root.name}, {split}", root, CITYSCAPES[split], is_night=False)
    return check_split(check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked"), split)


def open_night(root: Path, quick: bool = False, cache: Path = DEFAULT_RUNS) -> StreetFiles:
    """Open night images for reporting, in whatever layout is there; Dark Zurich's test images have no labels.

    Raises:
        UsageError: when the layout is unknown, or files are missing, surplus or broken.
    """
    found = [layout for layout in NIGHTS if (root / layout.images).is_dir()]
    if not found:
        known = ", ".join(f"{layout.images}/" for layout in NIGHTS)
        there = _first_entries(root) if root.is_dir() else "no such folder"
        raise UsageError(
            f"--night {root}: expected the layout of Nighttime Driving, Dark Zurich (val or test) or Cityscapes, told "
            f"by one of {known}; found {there}"
        )
    layout, *others = found
    for other in others:
        told = "--night %s: %s is passed over for %s; give it a root of its own"
        log.warning(told, root, other.images, layout.images)
    title = f"{root.name}, val" if layout == CITYSCAPES["val"] else root.name
    images = pair_up(title, root, layout, is_night=True)
    return check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked")


def pair_up(title: str, root: Path, layout: Layout, is_night: bool) -> StreetFiles:
    """Each image of a layout with its label ids, in the same folder of the labels and of the same name but the ending.

    Raises:
        UsageError: when a folder or all images are missing, or some without labels or labels without an image, which
            are named.
    """
    if not root.is_dir():
        raise UsageError(f"no data at {root}; expected {root}/{EXPECTED}, or --data scenes for the built-in data")
    for folder in (layout.images, layout.labels or layout.images):
        if not (root / folder).is_dir():
            raise UsageError(f"no folder {root / folder}; expected {root}/{EXPECTED}, found {_first_entries(root)}")
    images = files_below(root / layout.images, tuple(PICTURE_SUFFIXES))
    if not images:
        raise UsageError(f"no images of {title} in {root}")
    if layout.labels is None:
        return StreetFiles(title, root, [StreetFile(image, None) for image in images], is_night)
    wanted = []
    for image in images:
        beside = root / layout.labels / image.relative_to(root / layout.images)
        wanted.append(beside.with_name(image.stem.partition(layout.image_mark)[0] + layout.labels_end))
    there = files_below(root / layout.labels, layout.labels_end.lower())
    missing, surplus = set(wanted) - set(there), set(there) - set(wanted)
    for problem, names in (("images without labels, missing", missing), ("labels without an image", surplus)):
        if names:
            first = ", ".join(str(name.relative_to(root)) for name in sorted(names)[:3])
            raise UsageError(f"{root} holds {len(names)} {problem}: {first}{', ...' if len(names) > 3 else ''}")
    return StreetFiles(title, root, list(map(StreetFile, images, wanted)), is_night)


def _first_entries(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"

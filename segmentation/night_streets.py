"""Night images for reporting: Nighttime Driving, Dark Zurich, or Cityscapes' layout, told apart by their folders."""

import logging
from collections.abc import Callable
from pathlib import Path

from cityscapes import find_cityscapes, pair_up
from street_images import QUICK_IMAGES, StreetFile, StreetFiles, check_files

from media.pictures import files_below
from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError

log = logging.getLogger(__name__)
DEFAULT_FOLDER = Path(__file__).resolve().parent / "data"
DEFAULT_NAMES = ("NighttimeDrivingTest", "Dark_Zurich_val_anon", "Dark_Zurich_test_anon_withoutGt")

NIGHTTIME_DRIVING = Path("leftImg8bit/test/night")
_NIGHTTIME_DRIVING_LABELS = Path("gtCoarse_daytime_trainvaltest/test/night")
DARK_ZURICH = Path("rgb_anon/val/night")
_DARK_ZURICH_LABELS = Path("gt/val/night")
DARK_ZURICH_TEST = Path("rgb_anon/test/night")
CITYSCAPES = Path("leftImg8bit/val")


def open_night(root: Path, quick: bool = False, cache: Path = DEFAULT_RUNS) -> StreetFiles:
    """Open a night data set; Dark Zurich's test images come without labels.

    Args:
        root: the data set's folder.
        quick: only a few images.
        cache: folder for the record of which files were checked.

    Raises:
        UsageError: when its layout is unknown, or files are missing, surplus or broken.
    """
    openers: dict[Path, Callable[[Path], StreetFiles]] = {
        NIGHTTIME_DRIVING: _nighttime_driving,
        DARK_ZURICH: _dark_zurich,
        DARK_ZURICH_TEST: _dark_zurich_test,
        CITYSCAPES: lambda root: find_cityscapes(root, "val", is_night=True),
    }
    found = [folder for folder in openers if (root / folder).is_dir()]
    if found:
        for folder in found[1:]:
            log.warning("--night %s: %s is passed over for %s; give it a root of its own", root, folder, found[0])
        images = openers[found[0]](root)
        return check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked")
    known = ", ".join(f"{folder}/" for folder in openers)
    there = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) if root.is_dir() else "no such folder"
    raise UsageError(
        f"--night {root}: expected the layout of Nighttime Driving, Dark Zurich (val or test) or Cityscapes, told "
        f"by one of {known}; found {there or 'nothing'}"
    )


def find_default_nights() -> list[Path]:
    """The night data sets that are at their default places."""
    return [DEFAULT_FOLDER / name for name in DEFAULT_NAMES if (DEFAULT_FOLDER / name).is_dir()]


def _nighttime_driving(root: Path) -> StreetFiles:
    return _pair_by_name(
        root, NIGHTTIME_DRIVING, "_leftImg8bit.png", _NIGHTTIME_DRIVING_LABELS, "_gtCoarse_labelIds.png"
    )


def _dark_zurich(root: Path) -> StreetFiles:
    return _pair_by_name(root, DARK_ZURICH, "_rgb_anon.png", _DARK_ZURICH_LABELS, "_gt_labelIds.png")


def _dark_zurich_test(root: Path) -> StreetFiles:
    images = files_below(root / DARK_ZURICH_TEST, "_rgb_anon.png")
    return pair_up(root.name, root, [StreetFile(image, None) for image in images], (), is_night=True)


def _pair_by_name(root: Path, images_in: Path, image_end: str, labels_in: Path, labels_end: str) -> StreetFiles:
    """Pair each image with the label file of the same folder and name, except for the ending."""
    files = []
    for image in files_below(root / images_in, image_end.lower()):
        below = image.relative_to(root / images_in)
        files.append(
            StreetFile(image, root / labels_in / below.with_name(below.name.removesuffix(image_end) + labels_end))
        )
    return pair_up(root.name, root, files, files_below(root / labels_in, labels_end.lower()), is_night=True)

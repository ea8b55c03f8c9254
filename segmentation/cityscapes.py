"""Which street images there are: Cityscapes, the layouts of nights, nights made in advance, and built-in scenes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from street_images import (
    QUICK_IMAGES,
    SCENE_COUNTS,
    SCENES,
    SceneStreets,
    Size,
    StreetConfig,
    StreetFile,
    StreetFiles,
    StreetImages,
    check_files,
)

from media.data_files import data_files, refuse_day
from media.pictures import DECODING_ERRORS, PICTURE_SUFFIXES, orientation
from minmax.runtime.config import DEFAULT_RUNS, require
from minmax.runtime.errors import RunError, UsageError, printable
from minmax.runtime.splits import Split, check_split

log = logging.getLogger(__name__)
DEFAULT_FOLDER = Path(__file__).resolve().parent / "data"
DEFAULT_DATA = DEFAULT_FOLDER / "Cityscapes"
DEFAULT_NIGHTS = (
    *("NighttimeDrivingTest", "Dark_Zurich_val_anon", "Dark_Zurich_test_anon_withoutGt"),
    *("ACDC", "NightCity", "nightcity-fine"),
)
_ZERO_SHOT = (
    "zero-shot adaptation must not see it in training or choosing: give day images as --data, nights as test.py's "
    "--night"
)
EXPECTED = "{leftImg8bit,gtFine}/{train,val}/CITY/NAME{_leftImg8bit,_gtFine_labelIds}.png"


class Layout(NamedTuple):
    """Where images and labels are below a root: `images/X/NAME<image_mark>.png`, `labels/X/NAME<labels_end>`."""

    images: str
    image_mark: str
    labels: str | None = None
    labels_end: str = ""
    name: str = "Cityscapes, val"
    published: int | None = None
    """How many images were published, where that is known."""


CITYSCAPES: dict[Split, Layout] = {
    "train": Layout("leftImg8bit/train", "_leftImg8bit", "gtFine/train", "_gtFine_labelIds.png"),
    "val": Layout("leftImg8bit/val", "_leftImg8bit", "gtFine/val", "_gtFine_labelIds.png"),
}
COARSE = "gtCoarse_daytime_trainvaltest/test/night"
ACDC = ("_gt_labelIds.png", "ACDC by night, val")
NIGHTS = (
    Layout("leftImg8bit/test/night", "_leftImg8bit", COARSE, "_gtCoarse_labelIds.png", "Nighttime Driving", 50),
    Layout("rgb_anon/val/night", "_rgb_anon", "gt/val/night", "_gt_labelIds.png", "Dark Zurich, val", 50),
    Layout("rgb_anon/test/night", "_rgb_anon", name="Dark Zurich, test", published=151),  # its labels are not public
    Layout("rgb_anon/night/val", "_rgb_anon", "gt/night/val", *ACDC),
    Layout("rgb_anon_trainvaltest/rgb_anon/night/val", "_rgb_anon", "gt_trainval/gt/night/val", *ACDC),
    Layout("NightCity-images/images/val", "", "NightCity-label/label/val", "_labelIds.png", "NightCity, val"),
    Layout("val/img", "", "val/lbl", "_trainIds.png", "NightCity-fine, val"),
)


def _splits(folder: str) -> list[str]:
    """The folders of all splits of a night data set, by the one of its test images."""
    parts = ["{}" if part in ("val", "test") else part for part in folder.split("/")]
    return ["/".join(parts).format(split) for split in ("train", "val", "test")]


_NIGHT_FOLDERS = {folder: layout.name.partition(",")[0] for layout in NIGHTS for folder in _splits(layout.images)}
_LED_TO = {folder.lower() for folder in [*_NIGHT_FOLDERS, *_splits("nightcity-fine/val/img")] if folder.count("/") > 1}


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
    night = next((folder for folder in _NIGHT_FOLDERS if (root / folder).is_dir()), None)
    if night and not (root / CITYSCAPES[split].images).is_dir():
        raise UsageError(f"--data {root} holds {night}/ of {_NIGHT_FOLDERS[night]}, a night data set; {_ZERO_SHOT}")
    images = pair_up(f"{printable(root.name)}, {split}", root, CITYSCAPES[split], is_night=False)
    return check_split(check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked"), split)


def open_nights(root: Path, quick: bool = False, cache: Path = DEFAULT_RUNS) -> list[StreetFiles]:
    """Open the night images for reporting of every layout that is there; Dark Zurich's test images have no labels.

    Raises:
        UsageError: when no layout is known, or files are missing, surplus or broken.
    """
    found = [layout for layout in NIGHTS if (root / layout.images).is_dir()]
    day = CITYSCAPES["val"]
    if (root / day.images).is_dir():
        if found:
            told = "--night %s: %s is passed over for %s; give it a root of its own"
            log.warning(told, root, day.images, found[0].images)
        else:
            found = [day]
    if not found:
        known = ", ".join(f"{layout.images}/" for layout in (*NIGHTS, day))
        if not root.is_dir():
            raise UsageError(f"--night {root}: {'a file, not a folder' if root.exists() else 'no such folder'}")
        raise UsageError(
            f"--night {root}: expected the layout of Nighttime Driving, Dark Zurich (val or test), ACDC, NightCity "
            f"(val, never train) or Cityscapes, told by one of {known}; found {_first_entries(root)}"
        )
    opened = []
    for layout in found:
        name = printable(root.name)
        if layout == day:
            name += ", val"
        elif len(found) > 1:
            name += f", {layout.name}"
        images = pair_up(name, root, layout, is_night=True)
        if layout.published not in (None, len(images)):
            log.warning("%s holds %d images; %s as published has %d", name, len(images), layout.name, layout.published)
        opened.append(check_files(images.subset(QUICK_IMAGES) if quick else images, cache / "checked"))
    return opened


def _refuse_linked_night(images: Sequence[Path]) -> None:
    """Refuse day images that lie in one of the night data sets, where links are followed."""
    for place in sorted({image.parent for image in images} | {image for image in images if image.is_symlink()}):
        there = place.resolve()
        parts = [part.lower() for part in there.parts]
        if not _LED_TO.isdisjoint("/".join(parts[start : start + 3]) for start in range(len(parts))):
            raise UsageError(f"{printable(place)} leads to {printable(there)}, a night data set; {_ZERO_SHOT}")


def find_darkened(images: StreetImages, folder: Path, size: Size, cache: Path, quick: bool = False) -> StreetFiles:
    """The darkened copy of each day image, by its name, in a folder that `python -m darkening.apply` made.

    With `quick`, `images` are only some of those that were darkened.

    Raises:
        UsageError: names a file that is missing, surplus, there twice, broken, or of neither its day image's size nor
            `size`.
    """
    flag = f"--darkened {folder}"
    if not isinstance(images, StreetFiles):
        raise UsageError(f"{flag}: the built-in scenes are not files; drop --darkened and name a --darkener")
    if not folder.is_dir():
        raise UsageError(f"{flag}: no such folder; make it with python -m darkening.apply")
    day = _by_name(f"{flag}: day images", [street.image for street in images.files])
    copies = _by_name(f"{flag}: its files", data_files(folder, tuple(PICTURE_SUFFIXES)))
    missing, surplus = sorted(day.keys() - copies.keys()), sorted(copies.keys() - day.keys())
    if missing:
        raise UsageError(f"{flag}: lacks {len(missing)} of {len(day)} images: {printable(', '.join(missing[:3]))}")
    if surplus and not quick:
        raise UsageError(
            f"{flag}: holds {len(surplus)} files that are no training image: {printable(', '.join(surplus[:3]))}"
        )
    refuse_day([*day.values()], [copies[name] for name in day], flag)
    log.info("%s: %d images; how dark they are, and what made them, is not known here", flag, len(day))
    darkened = StreetFiles("darkened images", folder, [StreetFile(copies[name], None) for name in day], is_night=False)
    check_files(darkened, cache / "checked")
    for name, original in day.items():
        try:
            with Image.open(original) as there, Image.open(copies[name]) as here:  # decodes nothing
                turned, day_size, dark_size = orientation(there) != 1, there.size, here.size
        except DECODING_ERRORS as error:
            raise RunError(
                f"cannot read {printable(original)} or {printable(copies[name])} any more: {error}"
            ) from error
        if turned:
            raise UsageError(
                f"{flag}: {original} has an EXIF entry that turns it; its copy is turned, its labels are not; save "
                "it without that entry, or name a --darkener instead"
            )
        if dark_size not in (day_size, size[::-1]):
            has, day_has, asked = (f"{width}x{height}" for width, height in (dark_size, day_size, size[::-1]))
            raise UsageError(
                f"{flag}: {name} is {has}, its day image {day_has}; expected that, or the {asked} of --images.size"
            )
    return darkened


def _by_name(title: str, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names, which must differ."""
    named: dict[str, Path] = {}
    for file in files:
        if file.name in named:
            raise UsageError(
                f"{title} are paired by name, and {named[file.name]} and {file} have the same; rename one, or name a "
                "--darkener instead"
            )
        named[file.name] = file
    return named


def pair_up(title: str, root: Path, layout: Layout, is_night: bool) -> StreetFiles:
    """Each image of a layout with its label ids, in the same folder of the labels and of the same name but the ending.

    Raises:
        UsageError: when a folder or all images are missing, or some without labels or labels without an image, which
            are named.
    """
    expected = EXPECTED
    if is_night and layout.labels:
        expected = f"{layout.images}/NAME{layout.image_mark}.png with {layout.labels}/NAME{layout.labels_end}"
    if not root.is_dir():
        raise UsageError(f"no data at {root}; expected {root}/{EXPECTED}, or --data scenes for the built-in data")
    for folder in (layout.images, layout.labels or layout.images):
        if not (root / folder).is_dir():
            raise UsageError(f"no folder {root / folder}; expected {root}/{expected}, found {_first_entries(root)}")
    images = data_files(root / layout.images, tuple(PICTURE_SUFFIXES))
    if not images:
        raise UsageError(f"no images of {title} in {root}")
    if not is_night:
        _refuse_linked_night(images)
    if layout.labels is None:
        return StreetFiles(title, root, [StreetFile(image, None) for image in images], is_night)
    endings = (layout.labels_end, layout.labels_end.replace("labelIds", "labelTrainIds"))
    found = [data_files(root / layout.labels, ending.lower()) for ending in endings]
    there, ending = (found[1], endings[1]) if found[1] and not found[0] else (found[0], endings[0])
    wanted = []
    for image in images:
        beside = root / layout.labels / image.relative_to(root / layout.images)
        name = image.stem.partition(layout.image_mark)[0] if layout.image_mark else image.stem
        wanted.append(beside.with_name(name + ending))
    missing, surplus = set(wanted) - set(there), set(there) - set(wanted)
    for problem, names in (("images without labels, missing", missing), ("labels without an image", surplus)):
        if names:
            first = ", ".join(printable(name.relative_to(root)) for name in sorted(names)[:3])
            raise UsageError(f"{root} holds {len(names)} {problem}: {first}{', ...' if len(names) > 3 else ''}")
    return StreetFiles(title, root, list(map(StreetFile, images, wanted)), is_night)


def _first_entries(folder: Path) -> str:
    return printable(", ".join(sorted(entry.name for entry in folder.iterdir())[:6])) or "nothing"

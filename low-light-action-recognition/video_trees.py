"""Where the videos of a data set are and what they show: class trees, NormalLight's and ARID's layout, list files."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from clips import SCENES, ClipConfig
from recogniser import RELEASED_CLASSES

from media.pictures import files_below
from media.video_frames import VIDEO_SUFFIXES
from minmax.runtime.errors import UsageError
from minmax.runtime.seeding import derive_seed
from minmax.runtime.splits import Split

log = logging.getLogger(__name__)
DEFAULT_DATA = Path(__file__).resolve().parent / "dataset" / "NormalLight"
TREE = "{train,val,test_day,test_night}/<Class>/*.avi"
LISTED = "[raw/]data/<Class>/*.avi with [raw/]list_cvt/*_split1_{train,test}.txt"

_LIST_FOLDERS = ("list_cvt", "lists")
_MAPPING = "mapping_table.txt"
_LISTED_AS = {"train": "train", "val": "val", "test_day": "test_day", "test_night": "test"}


class Video(NamedTuple):
    """A video: what reports call it, its class by number, and its file."""

    name: str
    label: int
    file: Path


class Found(NamedTuple):
    """The videos of one split below a root, and the classes that their labels index."""

    root: Path
    classes: tuple[str, ...]
    videos: list[Video]


def find_videos(root: Path, split: Split, config: ClipConfig, classes: tuple[str, ...] | None = None) -> Found:
    """Find the videos of a split in a data set of any of these layouts.

    1. `ROOT/{train,val,test_day,test_night}/<Class>/*.avi`.
    2. NormalLight's and ARID's: `ROOT/[raw/]data/<Class>/*.avi` (or the class folders in ROOT itself) with list files
       `[raw/]list_cvt/*_split1_{train,test}.txt` of lines `id<TAB>label<TAB>path`; the split's number is a flag. Their
       train list holds day videos, their test list night videos.
    3. The same without list files: all videos are by day, to train on, or, when the split is `test_night`, all are by
       night. So day and night need data sets of their own.

    Without a split val, a share of every class of train is held out for it, chosen by name.

    Args:
        root: the data set's folder.
        split: which.
        config: the number of the data set's own split, and the share for validation.
        classes: those that a network knows, in its order; None takes the data set's.

    Raises:
        UsageError: when there is no such folder, split or class, or a list has a bad line or names a missing file.
    """
    if not root.is_dir():
        raise UsageError(
            f"no data at {root}; expected {root}/{TREE}, or {root}/{LISTED}, or --data scenes for the built-in clips"
        )
    if split in ("train", "val") and not _has(root, "val", config):
        everything = _explicit(root, "train", config, classes) or _unlisted(root, classes)
        found = everything and _held_out(everything, split, config)
    else:
        found = _explicit(root, split, config, classes)
        if found is None and split == "test_night":
            found = _unlisted(root, classes)
    if found is None or not found.videos:
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
        raise UsageError(f"no videos of {split} in {root}; expected {root}/{TREE}, or {root}/{LISTED}; found {there}")
    return found


def has_split(data: str, split: Split, config: ClipConfig) -> bool:
    """Whether a data set has a folder or a list file for a split."""
    return data == SCENES or _has(Path(data).expanduser(), split, config)


def _has(root: Path, split: Split, config: ClipConfig) -> bool:
    return (root / split).is_dir() or _list_file(root, split, config) is not None


def _explicit(root: Path, split: Split, config: ClipConfig, classes: tuple[str, ...] | None) -> Found | None:
    """The videos of a split that has a folder or list file of its own; None when it has not."""
    if (root / split).is_dir():
        return _class_folders(root / split, root, classes)
    file = _list_file(root, split, config)
    if file is None:
        return None
    if split == "train":
        log.info("training on the videos of %s: these must be by day", file)
    return read_list(file, root, classes)


def _unlisted(root: Path, classes: tuple[str, ...] | None) -> Found | None:
    """All videos of a data set without list files and folders of splits: all by day, or all by night."""
    if _list_files(root) or any((root / split).is_dir() for split in _LISTED_AS):
        return None
    return _class_folders(_video_folder(root), root, classes)


def _video_folder(root: Path) -> Path:
    return next((folder for folder in (root / "raw" / "data", root / "data") if folder.is_dir()), root)


def _class_folders(folder: Path, root: Path, classes: tuple[str, ...] | None) -> Found:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    names = [name for name in names if name not in (*_LIST_FOLDERS, "raw", "data", "data_darken")]
    if not names:
        raise UsageError(f"no class folders in {folder}; expected {folder}/<Class>/*.avi")
    if classes is not None and set(names) != set(classes):
        raise UsageError(f"{folder} holds the classes {', '.join(names)}; expected {', '.join(classes)}")
    known = classes or tuple(names)
    videos = []
    for label, name in enumerate(known):
        files = files_below(folder / name, tuple(VIDEO_SUFFIXES))
        if not files:
            kinds = ", ".join(sorted(VIDEO_SUFFIXES))
            raise UsageError(f"the class folder {folder / name} holds no videos ({kinds})")
        videos += [Video(file.relative_to(root).as_posix(), label, file) for file in files]
    return Found(root, known, videos)


def _list_files(root: Path) -> list[Path]:
    folders = [root / base / name for base in ("raw", ".") for name in _LIST_FOLDERS]
    return sorted(file for folder in folders for file in folder.glob("*.txt") if file.name != _MAPPING)


def _list_file(root: Path, split: Split, config: ClipConfig) -> Path | None:
    """The list of a split: `train.txt`, `NAME_train.txt` or `NAME_split1_train.txt`."""
    pattern = re.compile(rf"(?:.*?_?split(\d+)_|.*_)?{_LISTED_AS[split]}\.txt", re.IGNORECASE)
    fitting = []
    for file in _list_files(root):
        match = pattern.fullmatch(file.name)
        if match and (match[1] is None or int(match[1]) == config.split):
            fitting.append(file)
    if len(fitting) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in fitting)
        raise UsageError(f"{root} holds more than one list of {split}: {names}; leave one of them there")
    return fitting[0] if fitting else None


def read_list(file: Path, root: Path, classes: tuple[str, ...] | None = None) -> Found:
    """The videos that a list file names, a line `id<TAB>label<TAB>path` each.

    Paths are below the folder of the videos. Labels are numbers from 0; their names come from `mapping_table.txt`
    (`label<TAB>name`) beside the list, else from the first folder of the paths.

    Raises:
        UsageError: names the first bad line, or the videos that are missing.
    """
    mapping = file.parent / _MAPPING
    named = _read_mapping(mapping) if mapping.is_file() else {}
    places = (_video_folder(root), root, file.parent)
    rows: list[tuple[str, int, Path]] = []
    missing: list[str] = []
    for number, line in enumerate(_lines(file), start=1):
        parts = line.split("\t")
        where = f"{file}, line {number}"
        if len(parts) != 3:
            raise UsageError(f"{where}: {line[:60]!r} is not id, label and path with tabs between them")
        label = _label(parts[1], where)
        path = parts[2].strip()
        place = next((folder / path for folder in places if (folder / path).is_file()), None)
        if place is None:
            missing.append(path)
            continue
        rows.append((path, label, place))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"{file} names {len(missing)} videos that are not below {places[0]}: {shown}; unpack them there, or take "
            "their lines out"
        )
    if not rows:
        raise UsageError(f"{file} names no videos")
    twice = [path for path, times in Counter(path for path, _, _ in rows).items() if times > 1]
    if twice:
        raise UsageError(f"{file} names {twice[0]} more than once; a video must not serve both training and validation")
    for path, label, _ in rows:
        if named and label not in named:
            raise UsageError(f"{file}: {path} has the label {label}, which {mapping} does not name")
    names = named or _folder_names(file, rows)
    own = tuple(names[label] for label in sorted(names))
    known = classes or own
    unknown = sorted({names[label] for _, label, _ in rows} - set(known))
    if unknown:
        raise UsageError(f"{file} shows {', '.join(unknown)}; the network knows {', '.join(known)}")
    return Found(root, known, [Video(path, known.index(names[label]), place) for path, label, place in rows])


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def _label(text: str, where: str) -> int:
    if not text.strip().isdecimal():
        raise UsageError(f"{where}: the label {text!r} is not a number; expected 0 or more")
    return int(text)


def _read_mapping(file: Path) -> dict[int, str]:
    names = {}
    for number, line in enumerate(_lines(file), start=1):
        parts = line.split("\t")
        if len(parts) != 2:
            raise UsageError(f"{file}, line {number}: {line[:60]!r} is not label and name with a tab between them")
        names[_label(parts[0], f"{file}, line {number}")] = parts[1].strip()
    return names


def _folder_names(file: Path, rows: list[tuple[str, int, Path]]) -> dict[int, str]:
    """What labels are called: the folder that all their videos are in, or the number where they are in none."""
    folders: dict[int, Counter[str]] = {}
    for path, label, _ in rows:
        folders.setdefault(label, Counter())[Path(path).parts[0] if len(Path(path).parts) > 1 else str(label)] += 1
    for label, found in folders.items():
        if len(found) > 1:
            both = " and ".join(name for name, _ in found.most_common(2))
            raise UsageError(f"{file}: the label {label} is given to videos of {both}")
    names = {label: found.most_common(1)[0][0] for label, found in folders.items()}
    if len(set(names.values())) < len(names):
        twice = next(name for name, times in Counter(names.values()).items() if times > 1)
        raise UsageError(f"{file}: videos of {twice} have more than one label")
    actions = dict(enumerate(RELEASED_CLASSES))
    # A list may lack one of ARID's actions; the others keep their numbers.
    return actions if names.items() <= actions.items() else names


def _held_out(found: Found, split: Split, config: ClipConfig) -> Found:
    """Hold out a share of each class: the videos of val, or those left for train; the same in every run."""
    kept = []
    for label in range(len(found.classes)):
        members = [video for video in found.videos if video.label == label]
        # Ordered by a hash of the name, so that a video added later hardly moves others between train and val.
        shuffled = sorted(members, key=lambda video: derive_seed("validation", video.name))
        count = max(1, round(config.validation * len(members))) if len(members) > 1 else 0
        kept += shuffled[:count] if split == "val" else shuffled[count:]
    return found._replace(videos=sorted(kept, key=lambda video: video.name))

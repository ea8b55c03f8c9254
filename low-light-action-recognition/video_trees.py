"""Where the videos of a data set are and what they show: class trees, NormalLight's and ARID's layout, list files."""

import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from clips import ClipConfig
from recogniser import RELEASED_CLASSES

from media.data_files import data_files, listed_file, refuse_shared, refuse_two_labels, subfolders
from media.pictures import files_below, is_file, told_skipped
from media.video_frames import VIDEO_SUFFIXES
from minmax.runtime.errors import UsageError, printable
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
    """A video: what reports call it, its class by number, its file, and its frames once `count_all` has counted."""

    name: str
    label: int
    file: Path
    frames: int = 0


Found = tuple[tuple[str, ...], list[Video]]
"""Classes, and the videos whose labels count them."""


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
    shared = split in ("train", "val") and not has_split(root, "val", config)  # val is a share of train
    source: Split = "train" if shared else split
    file = _list_file(root, source, config)
    is_plain = not _list_files(root) and not any((root / name).is_dir() for name in _LISTED_AS)
    known, videos = classes or (), list[Video]()
    if (root / source).is_dir():
        known, videos = _class_folders(root / source, root, classes)
    elif file is not None:
        if source == "train":
            _refuse_arid(root, file)
            log.info("training on the videos of %s: these must be by day", file)
        known, videos = read_list(file, root, classes)
    elif is_plain and (shared or split == "test_night"):
        if shared:
            _refuse_arid(root, root)
        known, videos = _class_folders(_video_folder(root), root, classes)
    if split in ("train", "val"):
        refuse_shared([video.file for video in videos], _night_files(root), split)
    if shared:
        videos = _share_of(videos, split, config.validation)
    if not videos:
        there = printable(", ".join(sorted(entry.name for entry in root.iterdir())[:6])) or "nothing"
        raise UsageError(f"no videos of {split} in {root}; expected {root}/{TREE}, or {root}/{LISTED}; found {there}")
    return known, videos


def _refuse_arid(root: Path, source: Path) -> None:
    """Refuse to train on ARID: all of its videos were taken in the dark, those of its train lists too."""
    names = {folder.name.lower() for folder in (root, root.resolve())}
    if any(name.startswith("arid") for name in names):
        raise UsageError(
            f"{source} is ARID's, whose videos were all taken in the dark; zero-shot adaptation trains on day videos: "
            f"give NormalLight, or a folder of day videos, as --data, and ARID as test.py's --night (if these are by "
            "day, give the folder another name)"
        )


def _night_files(root: Path) -> list[Path]:
    folder = root / "test_night"
    return files_below(folder, tuple(VIDEO_SUFFIXES)) if folder.is_dir() else []


def has_split(root: Path, split: Split, config: ClipConfig) -> bool:
    """Whether a data set has a folder or a list file for a split."""
    return (root / split).is_dir() or _list_file(root, split, config) is not None


def _video_folder(root: Path) -> Path:
    return next((folder for folder in (root / "raw" / "data", root / "data") if folder.is_dir()), root)


def _class_folders(folder: Path, root: Path, classes: tuple[str, ...] | None) -> Found:
    names = [name for name in subfolders(folder) if name not in (*_LIST_FOLDERS, "raw", "data", "data_darken")]
    if not names:
        raise UsageError(f"no class folders in {folder}; expected {folder}/<Class>/*.avi")
    if classes is not None and set(names) != set(classes):
        raise UsageError(f"{folder} holds the classes {', '.join(names)}; expected {', '.join(classes)}")
    known = classes or tuple(names)
    videos = []
    for label, name in enumerate(known):
        files = data_files(folder / name, tuple(VIDEO_SUFFIXES))
        if not files:
            kinds = ", ".join(sorted(VIDEO_SUFFIXES))
            raise UsageError(f"the class folder {folder / name} holds no videos ({kinds})")
        videos += [Video(printable(file.relative_to(root).as_posix()), label, file) for file in files]
        if skipped := told_skipped(folder / name, files):
            log.warning("%s: %s", folder / name, skipped)
    refuse_two_labels([video.file for video in videos], [video.label for video in videos], known)
    return known, videos


def _list_files(root: Path) -> list[Path]:
    folders = [root / base / name for base in ("raw", ".") for name in _LIST_FOLDERS]
    return sorted(file for folder in folders for file in folder.glob("*.txt") if file.name != _MAPPING)


def _list_file(root: Path, split: Split, config: ClipConfig) -> Path | None:
    """The list of a split, `*_split1_train.txt`; the number is a flag."""
    ending = f"_split{config.split}_{_LISTED_AS[split]}.txt"
    fitting = [file for file in _list_files(root) if file.name.lower().endswith(ending)]
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
    names = dict(_rows(mapping, 2, "label and name with a tab between them")) if mapping.is_file() else {}
    rows = _rows(file, 3, "id, label and path with tabs between them")
    if not rows:
        raise UsageError(f"{file} names no videos")
    places = (_video_folder(root), root, file.parent)
    files: dict[str, Path] = {}
    missing = []
    for label, path in rows:
        if path in files:
            raise UsageError(f"{file} names {path} more than once; a video must not serve both training and validation")
        if names and label not in names:
            raise UsageError(f"{file}: {path} has the label {label}, which {mapping} does not name")
        there = (listed_file(place, path, file, root) for place in places)
        files[path] = next((video for video in there if is_file(video)), root)
        if files[path] == root:
            missing.append(path)
    if missing:
        first = ", ".join(name[:200] for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"{file} names {len(missing)} videos that are not below {places[0]}: {printable(first)}; unpack them "
            "there, or take their lines out"
        )
    names = names or _folder_names(file, rows)
    known = classes or tuple(names[label] for label in sorted(names))
    unknown = sorted({names[label] for label, _ in rows} - set(known))
    if unknown:
        raise UsageError(f"{file} shows {', '.join(unknown)}; the network knows {', '.join(known)}")
    return known, [Video(printable(path), known.index(names[label]), files[path]) for label, path in rows]


def _rows(file: Path, columns: int, expected: str) -> list[tuple[int, str]]:
    """The last two columns of a list, which are a label and what it is the label of."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != columns:
            raise UsageError(f"{file}, line {number}: {line[:60]!r} is not {expected}")
        label, name = parts[-2:]
        if not label.isdecimal():
            raise UsageError(f"{file}, line {number}: the label {label!r} is not a number; expected 0 or more")
        rows.append((int(label), name))
    return rows


def _folder_names(file: Path, rows: list[tuple[int, str]]) -> dict[int, str]:
    """What labels are called: the folder that all their videos are in, or the number where they are in none."""
    names: dict[int, str] = {}
    for label, path in rows:
        folder = Path(path).parts[0] if len(Path(path).parts) > 1 else str(label)
        if names.setdefault(label, folder) != folder:
            raise UsageError(f"{file}: the label {label} is given to videos of {names[label]} and {folder}")
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise UsageError(f"{file}: videos of {twice[0]} have more than one label")
    actions = dict(enumerate(RELEASED_CLASSES))
    # A list may lack one of ARID's actions; the others keep their numbers.
    return actions if names.items() <= actions.items() else names


def _share_of(videos: list[Video], split: Split, validation: float) -> list[Video]:
    """Of each class a share for val, and the others for train; the same in every run."""
    kept = []
    for label in sorted({video.label for video in videos}):
        members = [video for video in videos if video.label == label]
        # Ordered by a hash of the name, so that a video added later hardly moves others between train and val.
        shuffled = sorted(members, key=lambda video: derive_seed("validation", video.name))
        count = max(1, round(validation * len(members))) if len(members) > 1 else 0
        kept += shuffled[:count] if split == "val" else shuffled[count:]
    return sorted(kept, key=lambda video: video.name)

"""Day images with pairs that show the same place: what training and selection see.

Read from retrieval-SfM-120k, from folders of places, or built in.
"""

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from place_images import QUICK_PLACES, SCENES, PlaceConfig, PlaceFiles, PlaceImages, ScenePlaces
from ranking import Relevance
from torch import Tensor

from media.data_files import data_files, refuse_shared, subfolders
from media.pictures import PICTURE_SUFFIXES, files_below
from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError, printable
from minmax.runtime.plain_pickle import read_plain_pickle
from minmax.runtime.splits import check_split, refuse_night
from scenes import render_places

log = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
PairSplit = Literal["train", "val"]
SFM = Path("train/retrieval-SfM-120k")
SCENE_SEEDS: dict[str, int] = {"train": 31, "val": 32, "test": 33}
SCENE_PLACES: dict[str, int] = {"train": 160, "val": 40, "test": 60}
SCENE_VIEWS = 4
_QUICK_PAIRS = 8
_ENDINGS = tuple(PICTURE_SUFFIXES)
_IMAGE_ID = re.compile(r"[0-9A-Za-z_-]{6,200}")  # dots could lead out of the folder
WHERE_TO_GET = (
    "get retrieval-SfM-120k by `python visual-place-recognition/sfm120k.py --output FOLDER`, which makes "
    f"FOLDER/{SFM}/{{*.pkl,ims}}"
)


@dataclass(frozen=True)
class PlacePairs:
    """Day images, the place of each, and pairs of images that show the same thing.

    Args:
        images: all images.
        clusters: number of the place (or 3D model) of each `(N,)`.
        queries: positions of the first image of each pair `(P,)`.
        positives: positions of the second ones `(P,)`.

    Raises:
        ValueError: for night images.
        UsageError: when there are no pairs.
    """

    images: PlaceImages
    clusters: Tensor
    queries: Tensor
    positives: Tensor

    def __post_init__(self) -> None:
        """Refuse night images, and images without pairs."""
        refuse_night(self.images)
        if not len(self.queries):
            raise UsageError(f"{self.images.title}: no place has two images, so there are no pairs to learn from")

    def fingerprint(self) -> str:
        """A short hash that changes when the images, their places or the pairs do."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        for numbers in (self.clusters, self.queries, self.positives):
            digest.update(numbers.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()[:16]

    def relevances(self) -> tuple[list[int], list[Relevance]]:
        """The images that serve as queries, each with what it should find among all others.

        Other images of the same cluster may show another side of the place: they are junk, as is the query itself.
        """
        clusters = self.clusters.tolist()
        wanted: dict[int, set[int]] = {}
        for query, positive in zip(self.queries.tolist(), self.positives.tolist(), strict=True):
            wanted.setdefault(query, set()).add(positive)
        members: dict[int, set[int]] = {}
        for position, cluster in enumerate(clusters):
            members.setdefault(cluster, set()).add(position)
        return list(wanted), [
            Relevance(tuple(sorted(ok)), tuple(sorted(members[clusters[query]] - ok))) for query, ok in wanted.items()
        ]


def open_pairs(
    data: str, split: PairSplit, config: PlaceConfig, quick: bool = False, cache: Path = DEFAULT_RUNS
) -> PlacePairs:
    """Open one split.

    Args:
        data: a folder that holds train/retrieval-SfM-120k/, or {train,val}/PLACE/day/*; or `scenes`.
        split: train or val.
        config: size of scenes.
        quick: only a few places.
        cache: folder for rendered scenes and for the record of which files were checked.

    Raises:
        UsageError: when the folder is laid out otherwise, or images are missing or broken.
    """
    if data == SCENES:
        places = min(QUICK_PLACES, SCENE_PLACES[split]) if quick else SCENE_PLACES[split]
        pixels, numbers = render_places("day", places, SCENE_VIEWS, config.size, SCENE_SEEDS[split], cache / SCENES)
        scenes = check_split(ScenePlaces(f"scenes/{split}", pixels, is_night=False), split)
        return all_pairs(scenes, torch.from_numpy(numbers))
    root = Path(data).expanduser()
    if (root / SFM).is_dir():
        pairs = read_sfm(root / SFM / f"{SFM.name}.pkl", split, quick)
    elif (root / split).is_dir():
        pairs = read_place_folders(root / split, quick)
    else:
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) if root.is_dir() else "no such folder"
        raise UsageError(
            f"no training data at {root}: expected {SFM}/ or {split}/PLACE/day/*.jpg, found {there or 'nothing'}; "
            f"{WHERE_TO_GET}, or use --data scenes"
        )
    check_split(pairs.images, split)
    pairs.images.check(cache / "checked")
    if (root / split).is_dir() and isinstance(pairs.images, PlaceFiles):
        nights = [file for place in (root / "test").glob("*/night") for file in files_below(place, _ENDINGS)]
        refuse_shared(pairs.images.files, nights, split)
    return pairs


def open_whitening_pairs(data: str, config: PlaceConfig, quick: bool = False, cache: Path = DEFAULT_RUNS) -> PlacePairs:
    """The pairs that a whitening is learned from: those of the toolbox's own list, or else the training's.

    Arguments and errors as for `open_pairs`.
    """
    file = Path(data).expanduser() / SFM / f"{SFM.name}-whiten.pkl"
    if data == SCENES or not file.is_file():
        return open_pairs(data, "train", config, quick, cache)
    pairs = read_sfm(file, None, quick)
    pairs.images.check(cache / "checked")
    return pairs


def read_sfm(file: Path, split: PairSplit | None, quick: bool = False) -> PlacePairs:
    """Pairs as the retrieval toolbox lists them: ids of images, their clusters, and pairs by position.

    Args:
        file: one of its pickles, beside the folder ims.
        split: train or val; None for the list of the whitening, which has no splits and may lack clusters.
        quick: only a few pairs and places.

    Raises:
        UsageError: when the file is missing, is refused, or does not fit together.
    """
    lists: Any = read_plain_pickle(file)
    title = file.stem
    if split is not None:
        if split not in lists:
            raise UsageError(f"{file} has no split {split}; it has {', '.join(map(str, lists))}")
        lists, title = lists[split], f"{title}, {split}"
    names = read_column(lists, "cids", as_name, file)
    queries, positives = (read_column(lists, name, as_number, file) for name in ("qidxs", "pidxs"))
    # Without clusters every image passes for a place of its own: a whitening looks at the pairs alone.
    has_clusters = split is not None or "cluster" in lists
    clusters = read_column(lists, "cluster", as_number, file) if has_clusters else list(range(len(names)))
    if len(clusters) != len(names) or len(queries) != len(positives):
        raise UsageError(
            f"{file}, {title}: {len(names)} images with {len(clusters)} clusters and {len(queries)} queries with "
            f"{len(positives)} positives; expected as many of each"
        )
    apart = 0
    for query, positive in zip(queries, positives, strict=True):
        outside = next((i for i in (query, positive) if not 0 <= i < len(names)), None)
        if outside is not None:
            raise UsageError(f"{file}, {title}: a pair names image {outside}, there are {len(names)}")
        if query == positive:
            raise UsageError(f"{file}, {title}: image {query} is listed as its own positive")
        apart += clusters[query] != clusters[positive]
    if apart and has_clusters:
        log.warning(
            "%s, %s: %d pairs are of two clusters; their positives may be mined as negatives", file, title, apart
        )
    if quick:
        queries, positives = queries[:_QUICK_PAIRS], positives[:_QUICK_PAIRS]
        places = {clusters[i] for i in (*queries, *positives)} | set(sorted(set(clusters))[:QUICK_PLACES])
        kept = [i for i, cluster in enumerate(clusters) if cluster in places]
        position = {old: new for new, old in enumerate(kept)}
        names, clusters = [names[i] for i in kept], [clusters[i] for i in kept]
        queries, positives = [position[i] for i in queries], [position[i] for i in positives]
    files = [image_file(file.parent / "ims", name) for name in names]
    images = PlaceFiles(title, file.parent, files, is_night=False)
    return PlacePairs(images, torch.tensor(clusters), torch.tensor(queries), torch.tensor(positives))


def read_column(lists: Any, name: str, kind: Callable[[Any], ItemT], file: Path) -> list[ItemT]:
    """One of the lists in a pickle of the retrieval toolbox, its members made a `kind`.

    Raises:
        UsageError: when it is missing, no list, or holds something that cannot be that.
    """
    values = lists.get(name) if isinstance(lists, Mapping) else None
    if isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    if not isinstance(values, list | tuple):
        found = "missing" if values is None else f"a {type(values).__name__}"
        raise UsageError(f"{file}: {name} is {found}, expected a list as the retrieval toolbox writes it")
    expected = "whole numbers" if kind is as_number else "names"
    try:
        return [kind(value) for value in values]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{file}: {name} holds something other than {expected} ({error})") from error


def as_number(value: Any) -> int:
    """A whole number of 64 bits, which may be stored as another kind; raises ValueError for anything else."""
    stored: Any = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(stored, int | float) and not isinstance(stored, bool)
    if is_number and abs(stored) < 2**63 and stored == int(stored):
        return int(stored)
    raise ValueError(f"{str(value)[:60]!r} is not a whole number")


def as_name(value: Any) -> str:
    """Text; raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} is not a name")
    return value


def image_file(folder: Path, name: str) -> Path:
    """Where an image of retrieval-SfM-120k is: an id that ends in abcdef is in ef/cd/ab/.

    Raises:
        UsageError: for anything but an id, such as a path that leads out of the folder.
    """
    if not _IMAGE_ID.fullmatch(name):
        raise UsageError(f"{name[:200]!r} is not an image id; expected 6 to 200 letters and digits")
    return folder / name[-2:] / name[-4:-2] / name[-6:-4] / name


def read_place_folders(root: Path, quick: bool = False) -> PlacePairs:
    """Pairs from ROOT/PLACE/day/*: any two images of a place.

    Raises:
        UsageError: when there are no such folders, or no place has two images.
    """
    folders = [root / name for name in subfolders(root) if (root / name / "day").is_dir()]
    if not folders:
        raise UsageError(f"no places in {root}; expected {root}/PLACE/day/*.jpg")
    files, clusters = [], []
    for number, folder in enumerate(folders[: QUICK_PLACES if quick else None]):
        of_place = data_files(folder / "day", _ENDINGS)
        files += of_place
        clusters += [number] * len(of_place)
    images = PlaceFiles(f"{printable(root.resolve().parent.name)}, {root.name}", root, files, is_night=False)
    return all_pairs(images, torch.tensor(clusters))


def all_pairs(images: PlaceImages, clusters: Tensor) -> PlacePairs:
    """Every ordered pair of images of one place."""
    by_place: dict[int, list[int]] = {}
    for position, cluster in enumerate(clusters.tolist()):
        by_place.setdefault(cluster, []).append(position)
    pairs = [pair for members in by_place.values() for pair in itertools.permutations(members, 2)]
    queries, positives = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(dim=1)
    return PlacePairs(images, clusters, queries, positives)

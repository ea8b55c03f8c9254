"""Day images with pairs that show the same place: what training and selection see.

Read from retrieval-SfM-120k, from folders of places, or built in.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from place_images import (
    QUICK_PLACES,
    SCENES,
    PlaceConfig,
    PlaceFiles,
    PlaceImages,
    ScenePlaces,
    check_files,
)
from ranking import Relevance
from torch import Tensor

from media.pictures import PICTURE_SUFFIXES, files_below
from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError
from minmax.runtime.plain_pickle import read_plain_pickle
from minmax.runtime.splits import check_split, refuse_night
from scenes import render_places

log = logging.getLogger(__name__)
PairSplit = Literal["train", "val"]
SFM = Path("train/retrieval-SfM-120k")
SCENE_SEEDS: dict[str, int] = {"train": 31, "val": 32, "test": 33}
SCENE_PLACES: dict[str, int] = {"train": 160, "val": 40, "test": 60}
SCENE_VIEWS = 4
_QUICK_PAIRS = 8
_IMAGE_ID = re.compile(r"[0-9A-Za-z_-]{6,}")  # dots could lead out of the folder
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
        wanted: dict[int, set[int]] = {}
        for query, positive in zip(self.queries.tolist(), self.positives.tolist(), strict=True):
            wanted.setdefault(query, set()).add(positive)
        members: dict[int, set[int]] = {}
        for position, cluster in enumerate(self.clusters.tolist()):
            members.setdefault(cluster, set()).add(position)
        clusters = self.clusters.tolist()
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
        pixels, numbers = render_places(
            "day", places, SCENE_VIEWS, config.size, SCENE_SEEDS[split], None, cache / SCENES
        )
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
    return _check_images(pairs, cache)


def _check_images(pairs: PlacePairs, cache: Path) -> PlacePairs:
    assert isinstance(pairs.images, PlaceFiles)
    check_files(pairs.images, cache / "checked")
    return pairs


def read_sfm(pickle: Path, split: PairSplit, quick: bool = False) -> PlacePairs:
    """Pairs of a split as the retrieval toolbox lists them: ids of images, their clusters, and pairs by position.

    Raises:
        UsageError: when the file is missing, is refused, or does not fit together.
    """
    lists = read_plain_pickle(pickle)
    if split not in lists:
        raise UsageError(f"{pickle} has no split {split}; it has {', '.join(map(str, lists))}")
    return _listed_pairs(lists[split], f"{SFM.name}, {split}", pickle, quick)


def read_whitening_pairs(pickle: Path, cache: Path, quick: bool = False) -> PlacePairs:
    """The pairs that the toolbox learns its whitening from: listed as a split is, though clusters may be missing.

    Args:
        pickle: retrieval-SfM-120k-whiten.pkl.
        cache: folder for the record of which files were checked.
        quick: only a few images.

    Raises:
        UsageError: as `read_sfm`.
    """
    listed = read_plain_pickle(pickle)
    clusters = listed.get("cluster")
    if clusters is None:  # then the pairs alone tell what belongs together
        clusters = _joined(len(_listed(listed, "cids", pickle)), listed, pickle)
    return _check_images(_listed_pairs({**listed, "cluster": list(clusters)}, pickle.stem, pickle, quick), cache)


def _listed_pairs(listed: Any, title: str, pickle: Path, quick: bool) -> PlacePairs:
    names, clusters = _listed(listed, "cids", pickle), _integers(listed, "cluster", pickle)
    queries, positives = (_integers(listed, name, pickle) for name in ("qidxs", "pidxs"))
    if len(clusters) != len(names) or len(queries) != len(positives):
        raise UsageError(
            f"{pickle}, {title}: {len(names)} images with {len(clusters)} clusters and {len(queries)} queries with "
            f"{len(positives)} positives; expected as many of each"
        )
    outside = [i for i in (*queries, *positives) if not 0 <= i < len(names)]
    if outside:
        raise UsageError(f"{pickle}, {title}: a pair names image {outside[0]}, there are {len(names)}")
    both = list(zip(queries, positives, strict=True))
    itself = next((query for query, positive in both if query == positive), None)
    if itself is not None:
        raise UsageError(f"{pickle}, {title}: image {itself} is listed as its own positive")
    apart = sum(clusters[query] != clusters[positive] for query, positive in both)
    if apart:
        log.warning(
            "%s, %s: %d pairs are of two clusters; their positives may be mined as negatives", pickle, title, apart
        )
    if quick:
        kept = {i for pair in zip(queries[:_QUICK_PAIRS], positives[:_QUICK_PAIRS], strict=True) for i in pair}
        kept_clusters = {clusters[i] for i in kept} | set(sorted(set(clusters))[:QUICK_PLACES])
        chosen = [i for i, cluster in enumerate(clusters) if cluster in kept_clusters]
        position = {old: new for new, old in enumerate(chosen)}
        names, clusters = [names[i] for i in chosen], [clusters[i] for i in chosen]
        both = [(position[q], position[p]) for q, p in both if {q, p} <= position.keys()]
        queries, positives = [q for q, _ in both], [p for _, p in both]
    files = [image_file(pickle.parent / "ims", str(name)) for name in names]
    images = PlaceFiles(title, pickle.parent, files, is_night=False)
    return PlacePairs(images, torch.tensor(clusters), torch.tensor(queries), torch.tensor(positives))


def _listed(listed: Any, name: str, pickle: Path) -> list[Any]:
    if not isinstance(listed, Mapping) or name not in listed:
        there = ", ".join(map(str, listed)) if isinstance(listed, Mapping) else type(listed).__name__
        raise UsageError(f"{pickle}: expected lists cids, cluster, qidxs and pidxs, {name} is missing; found {there}")
    if not isinstance(listed[name], list | tuple | np.ndarray):
        raise UsageError(f"{pickle}: {name} is a {type(listed[name]).__name__}, expected a list")
    return np.ravel(listed[name]).tolist() if isinstance(listed[name], np.ndarray) else list(listed[name])


def _integers(listed: Any, name: str, pickle: Path) -> list[int]:
    try:
        return [int(value) for value in _listed(listed, name, pickle)]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{pickle}: {name} holds something other than whole numbers ({error})") from error


def _joined(count: int, listed: Mapping[str, Any], pickle: Path) -> list[int]:
    """A number for each image, the same for images that pairs connect."""
    first = list(range(count))

    def root(image: int) -> int:
        while first[image] != image:
            first[image] = image = first[first[image]]
        return image

    for query, positive in zip(_integers(listed, "qidxs", pickle), _integers(listed, "pidxs", pickle), strict=False):
        if min(query, positive) >= 0 and max(query, positive) < count:  # others are refused later
            first[root(query)] = root(positive)
    return [root(image) for image in range(count)]


def image_file(folder: Path, name: str) -> Path:
    """Where an image of retrieval-SfM-120k is: an id that ends in abcdef is in ef/cd/ab/.

    Raises:
        UsageError: for anything but an id, such as a path that leads out of the folder.
    """
    if not _IMAGE_ID.fullmatch(name):
        raise UsageError(f"{name!r} is not an image id; expected 6 or more letters and digits")
    return folder / name[-2:] / name[-4:-2] / name[-6:-4] / name


def read_place_folders(root: Path, quick: bool = False) -> PlacePairs:
    """Pairs from ROOT/PLACE/day/*: any two images of a place.

    Raises:
        UsageError: when there are no such folders, or no place has two images.
    """
    folders = sorted(f for f in root.iterdir() if (f / "day").is_dir() and not f.name.startswith("."))
    if not folders:
        raise UsageError(f"no places in {root}; expected {root}/PLACE/day/*.jpg")
    files, clusters = [], []
    for number, folder in enumerate(folders[: QUICK_PLACES if quick else None]):
        of_place = files_below(folder / "day", tuple(PICTURE_SUFFIXES))
        files += of_place
        clusters += [number] * len(of_place)
    return all_pairs(
        PlaceFiles(f"{root.resolve().parent.name}, {root.name}", root, files, is_night=False), torch.tensor(clusters)
    )


def all_pairs(images: PlaceImages, clusters: Tensor) -> PlacePairs:
    """Every ordered pair of images of one place."""
    by_place: dict[int, list[int]] = {}
    for position, cluster in enumerate(clusters.tolist()):
        by_place.setdefault(cluster, []).append(position)
    both: Sequence[tuple[int, int]] = [
        (query, positive)
        for members in by_place.values()
        for query in members
        for positive in members
        if query != positive
    ]
    queries = torch.tensor([q for q, _ in both], dtype=torch.int64)
    return PlacePairs(images, clusters, queries, torch.tensor([p for _, p in both], dtype=torch.int64))

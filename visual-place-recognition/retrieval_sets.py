"""Test sets, a data base by day and queries by night: Tokyo 24/7 and the like, folders of places, or built in."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from place_images import QUICK_PLACES, SCENES, Box, PlaceConfig, PlaceFiles, PlaceImages, ScenePlaces
from place_pairs import SCENE_PLACES, SCENE_SEEDS, as_name, as_number, read_column
from ranking import Relevance, RetrievalScore

from media.data_files import data_files, listed_file, subfolders
from media.pictures import PICTURE_SUFFIXES
from minmax.runtime.config import DEFAULT_RUNS
from minmax.runtime.errors import UsageError, printable
from minmax.runtime.plain_pickle import read_plain_pickle
from scenes import render_places
from scenes.night import Domain

log = logging.getLogger(__name__)
DATABASE_VIEWS, QUERY_VIEWS = 3, 2
_QUICK_QUERIES = 8


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, the data base to search, what each query should find, and the name of its place."""

    title: str
    database: PlaceImages
    queries: PlaceImages
    relevances: Sequence[Relevance]
    places: Sequence[str]

    def as_plain(self, score: RetrievalScore) -> dict[str, Any]:
        """A score for JSON, down to each query and its first results; shares are in [0, 1]."""
        precision, recall = score.by_place_mean
        return {
            "mean_average_precision": score.mean_average_precision,
            "recall": {str(n): share for n, share in score.recalls.items()},
            "by_place": {"mean_average_precision": precision, "recall_at_1": recall},
            "database": len(self.database),
            "answerable": score.answerable,
            "places": {
                place: {"mean_average_precision": ap, "recall_at_1": r1, "queries": count}
                for place, (ap, r1, count) in score.by_place.items()
            },
            "queries": [
                {
                    "name": self.queries.name(i),
                    "place": self.places[i],
                    "average_precision": score.average_precisions[i],
                    "first_results": [self.database.name(int(position)) for position in ranking[:5]],
                }
                for i, ranking in enumerate(score.rankings)
            ],
        }


def open_retrieval_sets(
    data: str, config: PlaceConfig, quick: bool = False, cache: Path = DEFAULT_RUNS
) -> list[RetrievalSet]:
    """All test sets of a data folder.

    Args:
        data: a folder that holds test/NAME/{gnd_NAME.pkl,jpg/} as Tokyo 24/7 of the retrieval toolbox, or
            test/PLACE/{day,night}/*; or `scenes`.
        config: size of scenes.
        quick: only a few queries.
        cache: folder for rendered scenes and for the record of which files were checked.

    Raises:
        UsageError: when there are none, or images are missing or broken.
    """
    if data == SCENES:
        return _scene_sets(config, quick, cache / SCENES)
    root = Path(data).expanduser() / "test"
    folders = sorted(root.iterdir()) if root.is_dir() else []
    lists = [file for folder in folders if (file := folder / f"gnd_{folder.name}.pkl").is_file()]
    tests = [read_toolbox(file, quick) for file in lists]
    if folders and not tests:
        tests = read_day_night_folders(root, quick)
    if not tests:
        raise UsageError(
            f"no test data at {root}: expected NAME/{{gnd_NAME.pkl,jpg/}} as Tokyo 24/7 of the retrieval toolbox "
            "(ask its authors for the images, http://www.ok.sc.e.titech.ac.jp/~torii/project/247), or "
            "PLACE/{day,night}/*.jpg; or use --data scenes"
        )
    for test in tests:
        answerable = sum(bool(wanted.ok) for wanted in test.relevances)
        if not answerable:
            raise UsageError(f"{test.title}: no query has an image of its place in the data base: nothing to score")
        if answerable < len(test.queries):
            left_out = len(test.queries) - answerable
            log.warning("%s: %d queries have no image of their place and are left out", test.title, left_out)
        test.database.check(cache / "checked")
        test.queries.check(cache / "checked")
    return tests


def _scene_sets(config: PlaceConfig, quick: bool, cache: Path) -> list[RetrievalSet]:
    count = min(QUICK_PLACES, SCENE_PLACES["test"]) if quick else SCENE_PLACES["test"]
    seed, size = SCENE_SEEDS["test"], config.size
    stored, numbers = render_places("day", count, DATABASE_VIEWS, size, seed, cache)
    database = ScenePlaces("scenes/day", stored, is_night=False)
    tests = []
    domains: tuple[Domain, ...] = ("day", "night")
    for domain in domains:
        asked, places = render_places(domain, count, QUERY_VIEWS, size, seed, cache, first_view=DATABASE_VIEWS)
        queries = ScenePlaces(f"scenes/{domain} queries", asked, is_night=domain == "night")
        wanted = [Relevance(tuple(np.flatnonzero(numbers == place).tolist())) for place in places]
        names = [f"place {place:03d}" for place in places]
        tests.append(RetrievalSet(f"scenes, {domain} queries", database, queries, wanted, names))
    return tests


def read_toolbox(file: Path, quick: bool = False) -> RetrievalSet:
    """A test set as the retrieval toolbox lists it: `imlist`, `qimlist` and, per query, `ok`, `junk` and maybe `bbx`.

    A query that is itself in the data base, as in Tokyo 24/7, is junk for itself. Queries are taken to be night images.

    Raises:
        UsageError: when the file is missing, is refused, or does not fit together.
    """
    lists = read_plain_pickle(file)
    names, asked = (read_column(lists, name, as_name, file) for name in ("imlist", "qimlist"))
    wanted = read_column(lists, "gnd", lambda answer: answer, file)
    if len(asked) != len(wanted):
        raise UsageError(f"{file}: {len(asked)} queries but {len(wanted)} answers")
    for what, listed in (("data base (imlist)", names), ("list of queries (qimlist)", asked)):
        if not listed:
            raise UsageError(f"{file}: the {what} is empty")
    if quick:
        asked, wanted = asked[:_QUICK_QUERIES], wanted[:_QUICK_QUERIES]
    position = {name: i for i, name in enumerate(names)}
    relevances, boxes = [], []
    for i, (query, answer) in enumerate(zip(asked, wanted, strict=True)):
        relevance, box = _read_answer(answer, len(names), position.get(query), f"{file}, query {i}")
        relevances.append(relevance)
        boxes.append(box)
    # A place is named after the first image that its query should find.
    places = [printable(Path(names[wanted.ok[0]]).stem) if wanted.ok else "nothing to find" for wanted in relevances]
    folder, title = file.parent / "jpg", printable(file.parent.name)
    database = PlaceFiles(f"{title}, data base", file.parent, [_picture(folder, n) for n in names], is_night=False)
    queries = PlaceFiles(f"{title}, queries", file.parent, [_picture(folder, n) for n in asked], True, boxes)
    return RetrievalSet(title, database, queries, relevances, places)


def _read_answer(answer: Any, count: int, itself: int | None, where: str) -> tuple[Relevance, Box | None]:
    """What a query should find among `count` images, and the part of it that counts.

    Args:
        answer: its entry of `gnd`.
        count: images in the data base.
        itself: its position there, if it has one.
        where: what to call the entry in messages.
    """
    if not isinstance(answer, Mapping) or "ok" not in answer:
        raise UsageError(f"{where}: expected a mapping with ok, junk")
    try:
        ok, junk = (sorted({as_number(i) for i in answer.get(name, ())}) for name in ("ok", "junk"))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: ok and junk must list whole numbers ({error})") from error
    if set(ok) & set(junk):
        raise UsageError(f"{where}: image {min(set(ok) & set(junk))} of the data base is both ok and junk")
    outside = [i for i in (*ok, *junk) if not 0 <= i < count]
    if outside:
        raise UsageError(f"{where} names image {outside[0]} of the data base, which has {count}")
    if itself is not None and itself not in ok:
        junk.append(itself)
    relevance = Relevance(tuple(ok), tuple(sorted(set(junk))))
    if (box := answer.get("bbx")) is None:
        return relevance, None
    try:
        if isinstance(box, str | bytes):
            raise ValueError("it is text")
        left, top, right, bottom = (float(number) for number in box)
        if not (-math.inf < left < right < math.inf and -math.inf < top < bottom < math.inf):
            raise ValueError("it is empty, or has no end")
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: bbx {str(box)[:100]} ({error}); expected left, top, right, bottom") from error
    return relevance, (left, top, right, bottom)


def _picture(folder: Path, name: str) -> Path:
    if not Path(name).name:
        raise UsageError(f"{folder.parent}: {name!r} is no name of an image")
    ending = "" if Path(name).suffix.lower() in PICTURE_SUFFIXES else ".jpg"
    return listed_file(folder, name + ending, folder.parent, folder.parent)


def read_day_night_folders(root: Path, quick: bool = False) -> list[RetrievalSet]:
    """ROOT/PLACE/{day,night}/*: a place's night images should find its day images.

    Raises:
        UsageError: when no place has night images.
    """
    folders = [root / name for name in subfolders(root)]
    stored: list[Path] = []
    asked: list[Path] = []
    relevances: list[Relevance] = []
    places: list[str] = []
    for folder in folders[: QUICK_PLACES if quick else None]:
        day, night = (data_files(folder / domain, tuple(PICTURE_SUFFIXES)) for domain in ("day", "night"))
        relevances += [Relevance(tuple(range(len(stored), len(stored) + len(day))))] * len(night)
        places += [folder.name] * len(night)
        stored += day
        asked += night
    if not stored and not asked:
        return []
    if not asked:
        raise UsageError(f"no night images in {root}; expected {root}/PLACE/night/*.jpg beside PLACE/day/*.jpg")
    if not stored:
        raise UsageError(f"the data base is empty: no day images in {root}; expected {root}/PLACE/day/*.jpg")
    title = printable(root.resolve().parent.name)
    database = PlaceFiles(f"{title}, day", root, stored, is_night=False)
    return [RetrievalSet(title, database, PlaceFiles(f"{title}, night", root, asked, True), relevances, places)]

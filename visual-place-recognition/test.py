"""Mean average precision and recall of a retrieval checkpoint, beside those of a second one if wished.

    python visual-place-recognition/test.py --checkpoint runs/visual-place-recognition/adapt/last-epoch.pt \
        --before runs/visual-place-recognition/day/best.pt

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, results.json with every
query, a picture of first results for each test set, and the descriptors as .npy with the names of the images.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from descriptors import describe
from gem import load_place_network
from place_images import DEFAULT_DATA, SCENES, PlaceConfig, PlaceImages
from place_pairs import SFM, PlacePairs, open_pairs, read_whitening_pairs
from place_tests import RetrievalTest, open_tests
from ranking import RECALLS, RetrievalScore, nearest, score_rankings
from retrieval_pictures import draw_results
from torch import Tensor
from whitening import Whitening, learn_whitening, load_whitening, save_whitening

from minmax.features import FeatureModel
from minmax.runtime.checkpoints import file_digest, write_atomically
from minmax.runtime.config import REPOSITORY, MeasuringFlags, require, run_script
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.report import markdown_table, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(MeasuringFlags):
    """Measure a retrieval network on day data bases and night queries."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released one, a classifier's trunk, bare weights."""
    before: Path | None = None
    """A second network to compare with, such as the daytime one."""
    model: str = "resnet101"
    """Whose bare weights these files hold, if they do."""
    data: str = str(DEFAULT_DATA)
    """Folder with test/NAME/{gnd_NAME.pkl,jpg/} or test/PLACE/{day,night}/, or `scenes` for the built-in data."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes relative to --images.size whose descriptors are combined; the paper's are 1 0.7071 0.5."""
    whitening: bool = False
    """Learn a whitening from retrieval-SfM-120k-whiten.pkl, or else from the day training pairs, and keep it beside the
    checkpoint."""
    batch_size: int = 16
    """Images of one shape per forward pass; the result does not depend on it."""
    images: PlaceConfig = field(default_factory=lambda: PlaceConfig(size=1024))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        fits = bool(self.scales) and all(0.1 <= scale <= 4 for scale in self.scales)
        require(fits, "--scales", self.scales, "numbers from 0.1 to 4")


def main(config: Config) -> dict[str, dict[str, RetrievalScore]]:
    """Measure, report, and return the scores by checkpoint (`before`, `checkpoint`) and test set."""
    paths = {"before": config.before, "checkpoint": config.checkpoint}
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        networks = {
            name: runtime.place(load_place_network(path, config.model)[0]) for name, path in paths.items() if path
        }
        tests = open_tests(config.data, config.images, config.quick)
        pairs = whitening_pairs(config) if config.whitening else None
        output = config.open_output(config.checkpoint)
        found: dict[str, dict[str, RetrievalScore]] = {}
        for name, network in networks.items():
            path = paths[name]
            assert path is not None
            whitening = get_whitening(path, network, pairs, config, runtime) if pairs else None
            found[name] = {
                test.title: answer(test, network, whitening, output / "descriptors" / name, config, runtime)
                for test in tests
            }
    words = {"before": " before", "checkpoint": " after"} if "before" in found else {"checkpoint": ""}
    titled = {f"{t.title}{word}": found[name][t.title] for t in tests for name, word in words.items()}
    files = "\n".join(f"{word.strip() or 'checkpoint'}: {paths[name]}" for name, word in words.items())
    report = "\n\n".join([files, summary_table(titled), *place_tables(tests, found, words)])
    print(report)  # noqa: T201  (the result of the command)
    write_json(as_plain(found, paths, tests, config), output / "results.json")
    write_text(report + "\n", output / "results.md")
    for test in tests:
        captions = {word.strip() or "results": found[name][test.title] for name, word in words.items()}
        draw_results(test, captions, min(256, config.images.size), output / f"{file_name(test.title)}.png")
    log.info("written to %s", output)
    return found


def whitening_pairs(config: Config) -> PlacePairs:
    """Day images to learn a whitening from."""
    listed = Path(config.data).expanduser() / SFM / f"{SFM.name}-whiten.pkl"
    if config.data != SCENES and listed.is_file():
        return read_whitening_pairs(listed, REPOSITORY / "runs", config.quick)
    return open_pairs(config.data, "train", config.images, config.quick)


def get_whitening(path: Path, network: FeatureModel, pairs: PlacePairs, config: Config, runtime: Runtime) -> Whitening:
    """The whitening of a network, from the file beside its checkpoint or learned (and kept there)."""
    learned_from = [file_digest(path), config.images.size, list(config.scales), config.precision, pairs.fingerprint()]
    key = hashlib.sha256(json.dumps(learned_from).encode()).hexdigest()
    file = path.with_name(f"{path.stem}.whitening.safetensors")
    whitening = load_whitening(key, file)
    if whitening is None:
        used, positions = torch.cat([pairs.queries, pairs.positives]).unique(return_inverse=True)
        described = describe_all(network, pairs.images, config, runtime, used.tolist())
        queries, positives = positions.chunk(2)
        if len(queries) < described.shape[1]:
            log.warning(
                "the whitening is learned from %d pairs for %d dimensions, too few: it may well do harm",
                len(queries),
                described.shape[1],
            )
        whitening = learn_whitening(described, queries, positives)
        save_whitening(whitening, key, file)
        log.info("whitening learned from %d pairs: %s", len(queries), file)
    return whitening


def describe_all(
    network: FeatureModel,
    images: PlaceImages,
    config: Config,
    runtime: Runtime,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Descriptors of images as the flags ask for."""
    return describe(
        network,
        images,
        config.images.size,
        runtime,
        positions,
        config.scales,
        config.batch_size,
        config.workers,
    )


def answer(
    test: RetrievalTest,
    network: FeatureModel,
    whitening: Whitening | None,
    folder: Path,
    config: Config,
    runtime: Runtime,
) -> RetrievalScore:
    """Describe, rank and score one test set; keep its descriptors."""
    parts = {"database": test.database, "queries": test.queries}
    described = {}
    for part, images in parts.items():
        vectors = describe_all(network, images, config, runtime)
        described[part] = whitening(vectors) if whitening else vectors
        stem = f"{file_name(test.title)}-{part}"
        save_array(described[part], folder / f"{stem}.npy")
        names = "".join(f"{images.name(i)}\n" for i in range(len(images)))
        write_text(names, folder / f"{stem}.txt")
    rankings = nearest(described["queries"], described["database"])
    return score_rankings(rankings, test.relevances, test.places)


def save_array(values: Tensor, file: Path) -> None:
    """Write `(N, D)` as .npy, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, values.numpy(), allow_pickle=False)

    write_atomically(file, write)


def write_text(text: str, file: Path) -> None:
    """Write text, atomically."""
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_name(title: str) -> str:
    """A title as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in title)


def summary_table(titled: dict[str, RetrievalScore]) -> str:
    """Mean average precision, recalls and per-place averages, one line per test set and checkpoint."""
    header = ["data", "queries", "mAP %", *(f"R@{n} %" for n in RECALLS), "mAP % by place", "R@1 % by place"]
    rows = []
    for title, score in titled.items():
        shares = [score.mean_average_precision, *score.recalls.values(), *score.by_place_mean]
        rows.append([title, str(score.answerable), *(f"{100 * share:.1f}" for share in shares)])
    return markdown_table(header, rows)


def place_tables(
    tests: list[RetrievalTest], found: dict[str, dict[str, RetrievalScore]], words: dict[str, str]
) -> list[str]:
    """Mean average precision of each place's queries, for test sets of few places."""
    tables = []
    for test in tests:
        places = found["checkpoint"][test.title].by_place
        if 1 < len(places) <= 30:
            rows = [
                [place, str(places[place][2]), *(f"{100 * found[n][test.title].by_place[place][0]:.1f}" for n in words)]
                for place in places
            ]
            header = [f"{test.title}: mAP % of a place", "queries", *(w.strip() or "mAP" for w in words.values())]
            tables.append(markdown_table(header, rows))
    return tables


def as_plain(
    found: dict[str, dict[str, RetrievalScore]],
    paths: dict[str, Path | None],
    tests: list[RetrievalTest],
    config: Config,
) -> dict[str, object]:
    """Everything measured, for JSON; shares are in [0, 1]."""
    return {
        "data": config.data,
        "size": config.images.size,
        "scales": list(config.scales),
        "whitening": config.whitening,
        "precision": config.precision,
        "quick": config.quick,
        "results": {
            name: {"file": str(paths[name]), **{t.title: score_as_plain(by_test[t.title], t) for t in tests}}
            for name, by_test in found.items()
        },
    }


def score_as_plain(score: RetrievalScore, test: RetrievalTest) -> dict[str, object]:
    """What was measured on one test set, down to each query and its first results."""
    precision, recall = score.by_place_mean
    return {
        "mean_average_precision": score.mean_average_precision,
        "recall": {str(n): share for n, share in score.recalls.items()},
        "by_place": {"mean_average_precision": precision, "recall_at_1": recall},
        "database": len(test.database),
        "answerable": score.answerable,
        "places": {
            place: {"mean_average_precision": ap, "recall_at_1": r1, "queries": count}
            for place, (ap, r1, count) in score.by_place.items()
        },
        "queries": [
            {
                "name": test.queries.name(i),
                "place": test.places[i],
                "average_precision": score.average_precisions[i],
                "first_results": [test.database.name(int(position)) for position in ranking[:5]],
            }
            for i, ranking in enumerate(score.rankings)
        ],
    }


if __name__ == "__main__":
    run_script(Config, main, __doc__)

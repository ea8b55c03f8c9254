"""Mean average precision and recall of a retrieval checkpoint, and of a second one to compare with.

    python visual-place-recognition/test.py --checkpoint runs/visual-place-recognition/adapt/last-epoch.pt \
        --before runs/visual-place-recognition/day/best.pt

Prints tables and writes them into test/ beside the checkpoint (or into --output): results.md, results.json with every
query, a picture of first results for each test set, and the descriptors as .npy with the names of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from descriptors import WholePlaces, describe, save_descriptors
from large_databases import Numbers, best, describe_onto_disk
from place_checkpoints import load_place_network
from place_images import DEFAULT_DATA, PlaceConfig, PlaceImages
from place_pairs import open_whitening_pairs
from ranking import RECALLS, RetrievalScore, nearest, score_rankings
from retrieval_pictures import draw_results
from retrieval_sets import RetrievalSet, open_retrieval_sets
from torch import Tensor
from whitening import Whitening, find_whitening

from darkening.brightening import brighten_inputs
from minmax.adabn import with_statistics_of
from minmax.features import FeatureModel
from minmax.runtime.checkpoints import file_digest
from minmax.runtime.comparison import compare, file_name
from minmax.runtime.config import MeasuringFlags, require, run_script
from minmax.runtime.devices import open_runtime


@dataclass(frozen=True, kw_only=True)
class Config(MeasuringFlags):
    """Measure a retrieval network on day data bases and night queries."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run, a released one, a classifier's trunk, bare weights."""
    model: str = "resnet101"
    """The network of torchvision that the files belong to, when they hold bare weights."""
    data: str = str(DEFAULT_DATA)
    """Folder with test/NAME/{gnd_NAME.pkl,jpg/} or test/PLACE/{day,night}/, or `scenes` for the built-in data."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes relative to --images.size whose descriptors are combined; the paper's are 1 0.7071 0.5."""
    whitening: bool = False
    """Learn a whitening from retrieval-SfM-120k-whiten.pkl, or else from the day training pairs, and keep it beside the
    checkpoint."""
    batch_size: int = 16
    """Images of one shape per forward pass; the result does not depend on it."""
    best: int = 0
    """Only find the so many best of each query, in descriptors that stay on disk, for data bases beyond memory; average
    precision is then of these. 0 ranks the whole data base in memory."""
    stored: Numbers = "float32"
    """What --best keeps the descriptors of the data base as; float16 takes half of the disk."""
    images: PlaceConfig = field(default_factory=lambda: PlaceConfig(size=1024))

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        super().__post_init__()
        fits = bool(self.scales) and all(0.1 <= scale <= 4 for scale in self.scales)
        require(fits, "--scales", self.scales, "numbers from 0.1 to 4")
        enough = self.best == 0 or self.best >= max(RECALLS)
        require(enough, "--best", self.best, f"{max(RECALLS)} or more, which recall looks at, or 0")
        require(not (self.best and self.adabn), "--adabn", "true", "none beside --best, which describes by parts")


def main(config: Config) -> dict[str, dict[str, RetrievalScore]]:
    """Measure, report, and return the scores by checkpoint (`before`, `checkpoint`) and test set."""
    with open_runtime(config.device, config.precision, config.threads) as runtime:
        files = config.checkpoints
        networks = {
            name: runtime.place(load_place_network(file, config.model, config.images.size)[0])
            for name, file in files.items()
        }
        tests = {test.title: test for test in open_retrieval_sets(config.data, config.images, config.quick)}
        pairs = open_whitening_pairs(config.data, config.images, config.quick) if config.whitening else None
        output = config.open_output()
        settings = {
            "data": config.data,
            "size": config.images.size,
            "scales": list(config.scales),
            "whitening": config.whitening,
            "best": config.best,
        }

        def descriptors_of(
            name: str, images: PlaceImages, positions: Sequence[int] | None = None, adabn: bool = False
        ) -> Tensor:
            network, size = networks[name], config.images.size
            if adabn:  # each image is a batch, as they have sizes of their own
                whole = WholePlaces(images, range(len(images)), size)
                network = with_statistics_of(network, whole, images.title, 1, config.workers, runtime)
            how = (config.scales, config.batch_size, config.workers)
            return describe(network, images, size, runtime, positions, *how, called=str(files[name]))

        whitenings: dict[str, Whitening] = {}
        if pairs is not None:
            how = (config.images.size, list(config.scales), config.precision)
            for name, file in files.items():
                whitenings[name] = find_whitening(file, pairs, partial(descriptors_of, name), how)

        for network in networks.values():  # behind the whitening, which is learned by day and kept
            brighten_inputs(network, config.brighten)

        def measure_one(name: str, _: FeatureModel, test: RetrievalSet) -> RetrievalScore:
            stem = output / "descriptors" / name / file_name(test.title)
            whiten = whitenings.get(name, lambda plain: plain)

            def described(images: PlaceImages, positions: Sequence[int] | None = None) -> Tensor:
                return whiten(descriptors_of(name, images, positions, config.adabn))

            queries = described(test.queries)
            save_descriptors(queries, test.queries, Path(f"{stem}-queries"))
            of_database = Path(f"{stem}-database")
            if config.best:
                how = {"size": config.images.size, "scales": list(config.scales), "precision": config.precision}
                how |= {"network": file_digest(files[name]), "model": config.model, "brighten": config.brighten}
                how["whitening"] = pairs.fingerprint() if pairs is not None else None
                file = describe_onto_disk(
                    test.database, of_database, partial(described, test.database), config.stored, how
                )
                # Junk is found as well, and taken out afterwards.
                count = min(config.best + max(len(wanted.junk) for wanted in test.relevances), len(test.database))
                return score_rankings(best(queries, file, count), test.relevances, test.places, config.best)
            database = described(test.database)
            save_descriptors(database, test.database, of_database)
            return score_rankings(nearest(queries, database), test.relevances, test.places)

        found = compare(config, networks, tests, measure_one)
    precision = f"mAP@{config.best} %" if config.best else "mAP %"
    table = found.summary(
        ["queries", precision, *(f"R@{n} %" for n in RECALLS), f"{precision} by place", "R@1 % by place"],
        lambda s: [s.answerable, s.mean_average_precision, *s.recalls.values(), *s.by_place_mean],
        "data",
    )
    print(found.write(output, [table], settings, lambda title, score: tests[title].as_plain(score)))  # noqa: T201
    for title, test in tests.items():
        picture = output / f"{file_name(title)}.png"
        draw_results(test, found.of(title, "results"), min(256, config.images.size), picture)
    return found.found


if __name__ == "__main__":
    run_script(Config, main, __doc__)

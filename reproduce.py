"""A table of the method beside its rivals, from data to Markdown: every row from the same daytime model and budget.

    python reproduce.py --data classification/data --recipe paper
    python reproduce.py --data DATA --recipe small --seeds 0 1 2 --rows continued gamma no-similarity full --jobs 2
    python reproduce.py --data SIGNS --recipe strong --init tf_efficientnet_lite0.pth --flip false
    python reproduce.py --task segmentation --data DATA --night NIGHT --recipe small --rows continued gamma full
    python reproduce.py --task visual-place-recognition --data scenes --recipe small --rows continued gamma no-byol full

For each seed it trains a daytime model, the darkeners that the rows need, and every row, by the scripts of the task;
then it tests each and writes RUNS/comparison.md, mean and spread by day and by night, and .json, with every seed and
the number by which one may choose (day validation images, as they are and darkened in three ways that no row trains
on), and names the row that one would choose by it. Given again, it goes on where it was stopped, and rows or seeds
can be added. In the recipe `paper`, rows that only undo a change of ours are the same training as `full`.
"""

import math
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.commands import Commands
from minmax.runtime.config import REPOSITORY, Switch, require, run_script
from minmax.runtime.devices import Precision
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import last_validation, markdown_table, recorded, write_json

Task = Literal["classification", "segmentation", "visual-place-recognition", "low-light-action-recognition"]
RecipeName = Literal["paper", "small", "strong"]
RowName = Literal[
    "continued", "augmix", "camera", "brightness", "gamma", "short-exposure", "gamma-camera", "no-similarity", "pixels",
    "even-exposure", "no-byol", "full", "unnormalised", "cosine", "two-pass", "two-pass-reestimated", "joint-pass",
    "frozen-statistics", "dark-exposures",
]  # fmt: skip
DarkenerName = Literal[
    "darkener", "darkener-no-similarity", "darkener-unnormalised", "darkener-pixels", "darkener-even"
]


@dataclass(frozen=True)
class Row:
    """One row of the table: flags of train.py beside those of the recipe."""

    title: str
    flags: tuple[str, ...]
    darkener: DarkenerName | None = "darkener"


_CAMERA = ("--night.camera.share", "1")
_FOLLOWING = ("--night.contrast", "0.5", "1.5", "--night.cell", "8")
ROWS: dict[RowName, Row] = {
    "continued": Row("trained on by day", ("--night.source", "day", "--byol.weight", "0"), None),
    "augmix": Row("AugMix in place of a night", ("--night.source", "augmix"), None),
    "camera": Row("a camera, nothing darkened", ("--night.source", "day", *_CAMERA), None),
    "brightness": Row("brightness night", ("--night.source", "brightness"), None),
    "gamma": Row("gamma night", ("--night.source", "gamma"), None),
    "short-exposure": Row("short exposure with noise", ("--night.source", "short-exposure"), None),
    "gamma-camera": Row("gamma night, then a camera", ("--night.source", "gamma", *_CAMERA), None),
    "no-similarity": Row("learned night without similarity", (), "darkener-no-similarity"),
    "pixels": Row("a curve for each pixel, requests that follow the day", _FOLLOWING, "darkener-pixels"),
    "even-exposure": Row("a curve for each pixel, even requests", ("--night.contrast", "0", "0"), "darkener-even"),
    "no-byol": Row("learned night, no BYOL", ("--byol.weight", "0")),
    "full": Row("full method", ()),
    "unnormalised": Row("similarity on un-normalised images (authors)", (), "darkener-unnormalised"),
    "cosine": Row("plain cosine instead of BYOL", ("--byol.distance", "cosine")),
    "two-pass": Row("BatchNorm in two passes (authors)", ("--byol.batch-norm", "separate")),
    "two-pass-reestimated": Row(
        "two passes, statistics re-estimated", ("--byol.batch-norm", "separate", "--statistics", "reestimated")
    ),
    "joint-pass": Row("BatchNorm of day and night together", ("--byol.batch-norm", "joint")),
    "frozen-statistics": Row("BatchNorm statistics of the daytime model", ("--byol.batch-norm", "frozen")),
    "dark-exposures": Row("exposures 0 to 0.2 (paper)", ("--night.exposure", "0", "0.2")),
}
_PIXELS = ("--darkener.view", "pixels")
DARKENERS: dict[DarkenerName, tuple[str, ...]] = {
    "darkener": (),
    "darkener-no-similarity": ("--loss.similarity", "0"),
    "darkener-unnormalised": ("--features", "unnormalised"),
    "darkener-pixels": (*_PIXELS, "--request.contrast", "0", "1.5"),
    "darkener-even": (*_PIXELS, "--request.contrast", "0", "0"),
}
"""Flags of each beside those of the recipe."""


@dataclass(frozen=True)
class Recipe:
    """Flags that all rows share, by script."""

    common: tuple[str, ...]
    size: tuple[str, ...]
    """Of --images.size; none where the scripts' own differ."""
    day: tuple[str, ...]
    darkener: tuple[str, ...]
    adaptation: tuple[str, ...]
    test: tuple[str, ...] = ()


_BRIEF_DARKENER = (
    *("--optim.epochs", "3", "--optim.milestones", "2", "--optim.lr", "3e-4", "--optim.clip", "1"),
    *("--loss.similarity", "1"),
)
_FINE_TUNING = ("--optim.method", "adamw", "--optim.lr", "3e-4", "--optim.weight-decay", "0.01")


def _even(cell: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Requests even over the image, as the paper's: flags of the darkener and of the adaptation."""
    return ("--request.contrast", "0", "0"), ("--night.contrast", "0", "0", "--night.cell", cell)


# The paper's: a curve for each pixel, even requests; the daytime model's and the darkener's losses are ours. The small
# ones: for small photos or scenes on a small machine, chosen on day validation images of seed 0. The strong one
# fine-tunes ImageNet weights, which the user brings, on such photos.
RECIPES: dict[Task, dict[RecipeName, Recipe]] = {
    "classification": {
        "paper": Recipe(("--images.evaluation", "native"), ("224",), (), ("--darkener.view", "pixels"), ()),
        "small": Recipe(
            (),
            ("64",),
            ("--optim.epochs", "20"),
            _BRIEF_DARKENER,
            (
                *("--optim.epochs", "6", "--optim.milestones", "4", "5", "--optim.lr", "5e-4"),
                *("--night.exposure", "0.05", "0.4", "--byol.batch-norm", "joint"),
            ),
        ),
        "strong": Recipe(
            (),
            ("64",),
            ("--model", "timm/tf_efficientnet_lite0", "--optim.epochs", "8", *_FINE_TUNING),
            _BRIEF_DARKENER,
            (
                *("--optim.epochs", "4", "--optim.milestones", "3", *_FINE_TUNING),
                *("--night.exposure", "0.05", "0.4", "--byol.batch-norm", "joint"),
            ),
        ),
    },
    "segmentation": {
        "paper": Recipe((), (), ("--pretrained",), *_even("64")),
        "small": Recipe(
            (),
            ("120", "160"),
            ("--model", "refinenet_resnet18", "--width", "64", "--optim.epochs", "40", "--optim.lr", "5e-4"),
            (
                *("--optim.epochs", "4", "--optim.milestones", "3", "--optim.lr", "3e-4", "--optim.clip", "1"),
                *("--loss.similarity", "1", "--request.exposure", "0", "0.8", "--request.contrast", "0", "1.5"),
            ),
            (
                *("--optim.epochs", "12", "--optim.milestones", "8", "10", "--night.exposure", "0.05", "0.8"),
                *("--night.contrast", "0.5", "1.5", "--night.cell", "8"),
                # A cutout of up to 0.4 of such small crops, and their blur, cost more than they give.
                *("--photometry.cutout", "0", "--photometry.blur", "0"),
            ),
            ("--classes", "occurring"),
        ),
    },
    "visual-place-recognition": {
        "paper": Recipe((), (), ("--pretrained",), *_even("32"), ("--scales", "1", "0.7071", "0.5", "--whitening")),
        "small": Recipe(
            (),
            (),  # the darkener's has two numbers
            (
                *("--model", "resnet18", "--images.size", "64", "--optim.epochs", "8", "--optim.lr", "3e-4"),
                *("--tuples.queries", "480", "--optim.at-once", "5"),
            ),
            (
                *("--images.short-side", "64", "--images.crop", "64"),
                *("--optim.epochs", "6", "--optim.milestones", "4", "--optim.lr", "3e-4", "--optim.clip", "1"),
                *("--loss.similarity", "1", "--request.contrast", "0", "1.5"),
            ),
            (
                *("--images.size", "64", "--optim.epochs", "4", "--optim.lr", "1e-4"),
                *("--tuples.queries", "480", "--optim.at-once", "5"),
                *("--night.exposure", "0.05", "0.4", "--night.contrast", "0.5", "1.5", "--night.cell", "8"),
            ),
            ("--images.size", "64"),
        ),
    },
    "low-light-action-recognition": {
        "paper": Recipe((), (), ("--pretrained",), (), ()),
        "small": Recipe(
            ("--clips.length", "8", "--clips.size", "48"),
            (),
            (
                *("--model", "i3d_resnet18", "--width", "32", "--time-stride", "1", "--optim.method", "adamw"),
                *("--optim.weight-decay", "0.05", "--optim.lr", "1e-3", "--optim.batch-size", "8", "--shift", "0.3"),
                *("--optim.epochs", "20", "--optim.milestones", "4800", "5760"),
            ),
            (
                *("--optim.epochs", "2", "--optim.milestones", "2", "--optim.lr", "3e-4", "--optim.clip", "1"),
                *("--loss.similarity", "1"),
            ),
            (
                *("--optim.method", "adamw", "--optim.weight-decay", "0.05", "--optim.lr", "3e-4", "--shift", "0.3"),
                *("--optim.batch-size", "8", "--optim.epochs", "8", "--optim.milestones", "1600", "2240"),
                *("--optim.warmup-steps", "0", "--night.exposure", "0.05", "0.4", "--byol.batch-norm", "joint"),
            ),
            ("--clips.rounds", "1"),
        ),
    },
}
SQUARE = ("96", "96")
"""Size of the built-in scenes in segmentation, whatever the recipe."""
LACKING: dict[Task, tuple[RowName, ...]] = {
    "classification": ("joint-pass",),  # as in the small recipe anyway
    # A curve for each pixel is the full method of all tasks but classification.
    # AugMix moves pixels away from their labels; two passes are the recipes' own; there is no --statistics.
    "segmentation": ("augmix", "pixels", "two-pass", "two-pass-reestimated"),
    # BatchNorm is always the daytime model's, and the contrastive loss is a plain cosine.
    "visual-place-recognition": (
        *("pixels", "cosine", "two-pass", "two-pass-reestimated", "joint-pass", "frozen-statistics"),
    ),
    # As in the small recipe anyway; there is no --statistics.
    "low-light-action-recognition": ("pixels", "two-pass-reestimated", "joint-pass", "even-exposure"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare the method with its rivals."""

    task: Task = "classification"
    """Whose scripts."""
    data: str = ""
    """Data as the scripts of the task take it, `scenes` for the built-in data; by default where they look for it."""
    night: tuple[Path, ...] = ()
    """Night data sets: of segmentation, by default those that lie in segmentation/data; of action recognition, one."""
    recipe: RecipeName = "paper"
    """paper: the paper's sizes and schedule; small: 64 or 160 px, a few minutes for each training on two cores; strong:
    of classification, EfficientNet-Lite0 at 64 px from the ImageNet weights of --init."""
    init: Path | None = None
    """Weights that the daytime models start from (--init of train_day.py); the recipe strong needs them."""
    flip: Switch = True
    """Mirror half of the images in training; false for data such as traffic signs."""
    rows: tuple[RowName, ...] = ()
    """The rows, beside that of the daytime model; by default all that the task has."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each has a daytime model and darkeners of its own."""
    jobs: int = 1
    """Trainings side by side; they share the CPU threads."""
    runs: Path = REPOSITORY / "runs" / "reproduce"
    """Folder of the runs and of the table."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes (autocast)."""
    quick: bool = False
    """A smoke test: the figures mean nothing."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(self.jobs >= 1, "--jobs", self.jobs, "1 or more")
        require(0 < len(self.seeds) == len(set(self.seeds)), "--seeds", self.seeds, "at least one seed, each once")
        require(len(self.rows) == len(set(self.rows)), "--rows", self.rows, "each row once")
        lacking = ", ".join(name for name in self.rows if name in LACKING[self.task])
        require(not lacking, "--rows", self.rows, f"rows that {self.task} has; it lacks {lacking}")
        if self.task in ("classification", "visual-place-recognition"):
            require(not self.night, "--night", self.night, f"none: the nights of {self.task} are in its --data")
        require(self.recipe in RECIPES[self.task], "--recipe", self.recipe, " or ".join(RECIPES[self.task]))
        if self.recipe == "strong" and self.init is None:
            raise UsageError(
                "--recipe strong needs --init weights.pth, ImageNet weights of timm's tf_efficientnet_lite0"
            )
        mirrors = self.task != "visual-place-recognition"
        require(mirrors or self.flip, "--flip", "false", f"no such flag for {self.task}, which mirrors nothing")

    @property
    def chosen_rows(self) -> tuple[RowName, ...]:
        """The rows as asked for, or all that the task has."""
        return self.rows or tuple(name for name in ROWS if name not in LACKING[self.task])

    @property
    def chosen_recipe(self) -> Recipe:
        """The recipe, with what suits the data."""
        recipe = RECIPES[self.task][self.recipe]
        start = () if self.init is None else ("--init", str(self.init.expanduser().absolute()))
        mirror = () if self.flip else ("--augment.flip", "false")
        return replace(
            recipe,
            day=(*(flag for flag in recipe.day if not (start and flag == "--pretrained")), *start, *mirror),
            # Only the darkeners of clips are trained on mirrored images.
            darkener=(*recipe.darkener, *(mirror if self.task == "low-light-action-recognition" else ())),
            adaptation=(*recipe.adaptation, *mirror),
        )


def main(config: Config) -> None:
    """Train and test every row of every seed, and report."""
    check_settings(config)
    recipe = config.chosen_recipe
    threads = max(1, (os.cpu_count() or 1) // config.jobs) if config.jobs > 1 else 0
    common = ["--device", config.device, "--precision", config.precision, *recipe.common]
    common += ["--data", config.data] if config.data else []
    size = SQUARE if (config.task, config.data) == ("segmentation", "scenes") else recipe.size
    common += ["--images.size", *size] if size else []
    common += ["--threads", str(threads), "--workers", "2" if config.jobs == 1 else "0"]
    commands = Commands(
        config.task, config.runs, [*common, "--quick"] if config.quick else common, quiet=config.jobs > 1
    )
    testing = [*recipe.test, *(["--night", *map(str, config.night)] if config.night else [])]
    with ThreadPoolExecutor(config.jobs) as pool:
        try:
            found = {
                seed: start_seed(commands, recipe, testing, config.chosen_rows, seed, pool) for seed in config.seeds
            }
            results = {
                title: [found[seed][title].result() for seed in config.seeds] for title in found[config.seeds[0]]
            }
        except KeyboardInterrupt:  # the scripts were told as well: let them write their checkpoints
            pool.shutdown(cancel_futures=True)
            raise RunError("stopped; the same command goes on from here") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table = comparison_table(results, config.task)
    what = config.data or config.task
    best = preferred_row(results)
    lines = f"{what}, recipe {config.recipe}, seeds {' '.join(map(str, config.seeds))}\n\n{table}\n"
    lines += f"\nBy day images only one would choose: {best}\n"
    write_atomically(config.runs / "comparison.md", lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    write_json({"seeds": list(config.seeds), "chosen": best, "results": results}, config.runs / "comparison.json")
    print(lines)  # noqa: T201  (the result of the command)


def check_settings(config: Config) -> None:
    """Refuse a folder whose finished runs are of other data or another recipe: they would enter this table.

    Raises:
        UsageError: names what differs.
    """
    data = config.data if config.data in ("", "scenes") else str(Path(config.data).expanduser().absolute())
    now = {
        "task": config.task,
        "data": data,
        "recipe": config.recipe,
        "flags": flags_of(config.chosen_recipe),
        "precision": config.precision,
        "quick": config.quick,
    }
    path = config.runs / "settings.json"
    before = recorded(now, path)
    changed = [
        f"--{name} {before.get(name)}, not {value}"
        for name, value in now.items()
        if name != "flags" and before.get(name) != value
    ]
    if not changed and before.get("flags") != now["flags"]:
        changed = [f"other flags of --recipe {config.recipe}, another --init or --flip"]
    if changed:
        raise UsageError(f"--runs {config.runs} holds runs of {' and '.join(changed)}; choose another folder")


def flags_of(recipe: Recipe) -> dict[str, list[str]]:
    """The flags of a recipe by script, as they are recorded."""
    return {script: list(flags) for script, flags in asdict(recipe).items()}


def start_seed(
    commands: Commands,
    recipe: Recipe,
    testing: Sequence[str],
    rows: Sequence[RowName],
    seed: int,
    pool: ThreadPoolExecutor,
) -> dict[str, Future[dict[str, Any]]]:
    """Queue everything of one seed: what others wait for comes first, so that a waiting thread never blocks it."""

    def train(script: str, name: str, result: str, *flags: str) -> Path:
        return commands.train(script, f"{name}-{seed}", result, "--seed", str(seed), *flags)

    day = pool.submit(train, "train_day.py", "day", "best.pt", *recipe.day)
    darkeners = {
        name: pool.submit(_after, day, train, "train_darkener.py", name, "best.pt", *recipe.darkener, *DARKENERS[name])
        for name in DARKENERS
        if any(ROWS[row].darkener == name for row in rows)
    }
    futures = {"daytime model": pool.submit(lambda: commands.test(f"day-{seed}", day.result(), *testing))}
    for name in rows:
        row = ROWS[name]

        def train_and_test(name: RowName = name, row: Row = row) -> dict[str, Any]:
            learned = ("--darkener", str(darkeners[row.darkener].result())) if row.darkener else ()
            checkpoint = _after(day, train, "train.py", name, "last-epoch.pt", *learned, *recipe.adaptation, *row.flags)
            found = commands.test(f"{name}-{seed}", checkpoint, *testing)
            found["selection"] = last_validation(commands.run_of(f"{name}-{seed}"))["score"]
            return found

        futures[row.title] = pool.submit(train_and_test)
    return futures


def _after(day: Future[Path], train: Callable[..., Path], script: str, name: str, result: str, *flags: str) -> Path:
    return train(script, name, result, "--checkpoint", str(day.result()), *flags)


def preferred_row(results: dict[str, list[dict[str, Any]]]) -> str:
    """The row with the highest mean of the number for choosing; `results` hold that of each seed as `selection`."""
    means = {
        title: statistics.fmean(found["selection"] for found in by_seed)
        for title, by_seed in results.items()
        if "selection" in by_seed[0]
    }
    return max(means, key=means.__getitem__)


def comparison_table(results: dict[str, list[dict[str, Any]]], task: Task) -> str:
    """Mean and, in brackets, the lowest and highest seed, in percent.

    Top-1 and balanced accuracy (top-5 of actions) by day and by night, the mean IoU on each data set, or the mean
    average precision and recall at 1 on each. Then the number for choosing, its mean and, in brackets, each seed's.
    """
    every = results["daytime model"]
    sets = [name for name in every[0] if name != "file"]
    columns: dict[str, Callable[[dict[str, Any]], float]]
    if task in ("classification", "low-light-action-recognition"):
        second = ("balanced", "balanced") if task == "classification" else ("top-5", "top5")
        splits = [split for split in ("test_day", "test_night") if all(split in found for found in every)]
        columns = {
            f"{split.removeprefix('test_')} {title}": _entry(split, kind)
            for split in splits
            for title, kind in (("top-1", "top1"), second)
        }
    elif task == "segmentation":
        columns = {f"{name}, mean IoU": _entry(name, "mean_iou") for name in sets}
    else:
        columns = {
            f"{name}, {title}": _entry(name, *place)
            for name in sets
            for title, place in (("mAP", ("mean_average_precision",)), ("R@1", ("recall", "1")))
        }
    rows = [
        [title, *(_spread([100 * read(found) for found in by_seed]) for read in columns.values()), _choosing(by_seed)]
        for title, by_seed in results.items()
    ]
    return markdown_table(["", *columns, "for choosing (day images only)"], rows)


def _entry(*place: str) -> Callable[[dict[str, Any]], float]:
    def read(found: dict[str, Any]) -> float:
        value: Any = found
        for name in place:
            value = value[name]
        return math.nan if value is None else float(value)  # JSON has no NaN: what could not be measured is null

    return read


def _choosing(by_seed: list[dict[str, Any]]) -> str:
    values = [100 * found["selection"] for found in by_seed if "selection" in found]
    if not values:  # the daytime model
        return "-"
    return f"{statistics.fmean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _spread(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    run_script(Config, main, __doc__)

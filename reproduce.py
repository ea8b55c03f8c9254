"""A table of the method beside its rivals, from data to Markdown: every row from the same daytime model and budget.

    python reproduce.py --data classification/data --recipe paper
    python reproduce.py --data DATA --recipe small --seeds 0 1 2 --rows continued gamma no-similarity full --jobs 2
    python reproduce.py --data SIGNS --recipe strong --init tf_efficientnet_lite0.pth --flip false
    python reproduce.py --task segmentation --data DATA --night NIGHT --recipe small --rows continued gamma full
    python reproduce.py --task visual-place-recognition --data scenes --recipe mine.yaml --rows continued gamma full

A recipe is TASK/recipes/NAME.yaml, or a file of yours laid out like these; the rows are in rows.yaml. For each seed
this trains a daytime model, the darkeners that the rows need, and every row, by the scripts of the task; then it tests
each and writes RUNS/comparison.md, mean and spread by day and by night, and .json, with every seed and the number by
which one may choose (day validation images, as they are and darkened in three ways that no row trains on), and names
the row that one would choose by it. Given again, it goes on where it was stopped, and rows or seeds can be added. In
the recipe `paper`, rows that only undo a change of ours are the same training as `full`.
"""

import math
import os
import statistics
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.commands import Commands
from minmax.runtime.config import REPOSITORY, Switch, from_plain, read_yaml, require, run_script
from minmax.runtime.devices import Precision
from minmax.runtime.errors import RunError
from minmax.runtime.report import markdown_table, read_last_validation, write_json

Task = Literal["classification", "segmentation", "visual-place-recognition", "low-light-action-recognition"]
MEASURES: dict[Task, dict[str, tuple[str, ...]]] = {
    "classification": {"top-1": ("top1",), "balanced": ("balanced",)},
    "segmentation": {"mean IoU": ("mean_iou",)},
    "visual-place-recognition": {"mAP": ("mean_average_precision",), "R@1": ("recall", "1")},
    "low-light-action-recognition": {"top-1": ("top1",), "top-5": ("top5",)},
}
"""What a table reports on each test set, and where test.py puts it."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    title: str
    flags: str = ""
    """Of train.py beside those of the recipe."""
    darkener: str | None = "darkener"
    lacking: tuple[Task, ...] = ()
    """Tasks that do not have it."""


@dataclass(frozen=True)
class Rows:
    """What rows.yaml holds."""

    darkeners: dict[str, str]
    """Flags of train_darkener.py beside those of the recipe."""
    rows: dict[str, Row]


def load_rows() -> Rows:
    """All rows of all tasks."""
    file = REPOSITORY / "rows.yaml"
    table = from_plain(Rows, read_yaml(file), file)
    for name, row in table.rows.items():
        known = row.darkener is None or row.darkener in table.darkeners
        require(known, f"{file}: the darkener of {name},", row.darkener, f"null or one of {', '.join(table.darkeners)}")
    return table


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare the method with its rivals."""

    task: Task = "classification"
    """Whose scripts."""
    data: str = ""
    """Data as the scripts of the task take it, `scenes` for the built-in data; by default where they look for it."""
    night: tuple[Path, ...] = ()
    """Night data sets: of segmentation, by default those that lie in segmentation/data; of action recognition, one."""
    recipe: str = "paper"
    """A recipe of the task (TASK/recipes/*.yaml), such as paper or small, or the path of one of yours."""
    init: Path | None = None
    """Weights that the daytime models start from (--init of train_day.py), in place of published ones."""
    flip: Switch = True
    """Mirror half of the images in training; false for data such as traffic signs."""
    rows: tuple[str, ...] = ()
    """The rows (rows.yaml), beside that of the daytime model; by default all that the task has."""
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
        known = [name for name, row in load_rows().rows.items() if self.task not in row.lacking]
        lacking = [name for name in self.rows if name not in known]
        require(not lacking, "--rows", " ".join(lacking), f"rows that {self.task} has: {', '.join(known)}")
        if self.task in ("classification", "visual-place-recognition"):
            require(not self.night, "--night", self.night, f"none: the nights of {self.task} are in its --data")
        names = sorted(path.stem for path in (REPOSITORY / self.task / "recipes").glob("*.yaml"))
        found = self.recipe in names or self.recipe_file.is_file()
        require(found, "--recipe", self.recipe, f"{', '.join(names)}, or a file of yours laid out like these")
        mirrors = self.task != "visual-place-recognition"
        require(mirrors or self.flip, "--flip", "false", f"no such flag for {self.task}, which mirrors nothing")
        object.__setattr__(self, "rows", self.rows or tuple(known))
        if self.data not in ("", "scenes"):
            object.__setattr__(self, "data", str(Path(self.data).expanduser().absolute()))

    @property
    def recipe_file(self) -> Path:
        """The recipe: one of the task's by its name, or the user's own."""
        own = REPOSITORY / self.task / "recipes" / f"{self.recipe}.yaml"
        return own if own.is_file() else Path(self.recipe).expanduser().absolute()


def main(config: Config) -> None:
    """Train and test every row of every seed, and report."""
    commands = commands_of(config)
    with ThreadPoolExecutor(config.jobs) as pool:
        try:
            found = {seed: start_seed(commands, config, seed, pool) for seed in config.seeds}
            results = {
                title: [found[seed][title].result() for seed in config.seeds] for title in found[config.seeds[0]]
            }
        except KeyboardInterrupt:  # the scripts were told as well: let them write their checkpoints
            pool.shutdown(cancel_futures=True)
            raise RunError("stopped; the same command goes on from here") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    best = preferred_row(results)
    lines = f"{config.data or config.task}, recipe {config.recipe}, seeds {' '.join(map(str, config.seeds))}\n\n"
    lines += f"{comparison_table(results, config.task)}\n\nBy day images only one would choose: {best}\n"
    write_atomically(config.runs / "comparison.md", lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    write_json({"seeds": list(config.seeds), "chosen": best, "results": results}, config.runs / "comparison.json")
    print(lines)  # noqa: T201  (the result of the command)


def commands_of(config: Config) -> Commands:
    """The scripts of the task with the recipe and all flags that they share.

    Raises:
        UsageError: when the recipe lacks a section.
        RunError: when a script refuses a recipe of the user's own.
    """
    common = ["--precision", config.precision]
    common += ["--data", config.data] if config.data else []
    # The built-in streets are of this size, whatever the recipe's.
    common += ["--images.size", "96", "96"] if (config.task, config.data) == ("segmentation", "scenes") else []
    threads = max(1, (os.cpu_count() or 1) // config.jobs) if config.jobs > 1 else 0
    machine = ["--device", config.device, "--threads", str(threads), "--workers", "2" if config.jobs == 1 else "0"]
    common += ["--quick"] if config.quick else []
    commands = Commands(config.task, config.runs, config.recipe_file, common, machine, quiet=config.jobs > 1)
    if config.recipe_file.parent != REPOSITORY / config.task / "recipes":
        commands.check()
    return commands


def start_seed(
    commands: Commands, config: Config, seed: int, pool: ThreadPoolExecutor
) -> dict[str, Future[dict[str, Any]]]:
    """Queue everything of one seed: what others wait for comes first, so that a waiting thread never blocks it."""
    start = () if config.init is None else ("--no-pretrained", "--init", str(config.init.expanduser().absolute()))
    mirror = () if config.flip else ("--augment.flip", "false")
    testing = ["--night", *map(str, config.night)] if config.night else []

    def train(script: str, name: str, result: str, *flags: str) -> Path:
        return commands.train(script, f"{name}-{seed}", result, "--seed", str(seed), *flags)

    def train_against_day(script: str, name: str, result: str, *flags: str) -> Path:
        return train(script, name, result, "--checkpoint", str(day.result()), *flags)

    day = pool.submit(train, "train_day.py", "day", "best.pt", *start, *mirror)
    # Only the darkeners of clips are trained on mirrored images.
    shown = mirror if config.task == "low-light-action-recognition" else ()
    table = load_rows()
    darkeners = {
        name: pool.submit(train_against_day, "train_darkener.py", name, "best.pt", *shown, *flags.split())
        for name, flags in table.darkeners.items()
        if any(table.rows[row].darkener == name for row in config.rows)
    }
    futures = {"daytime model": pool.submit(lambda: commands.test(f"day-{seed}", day.result(), *testing))}
    for name in config.rows:
        row = table.rows[name]

        def train_and_test(name: str = name, row: Row = row) -> dict[str, Any]:
            learned = ("--darkener", str(darkeners[row.darkener].result())) if row.darkener else ()
            checkpoint = train_against_day("train.py", name, "last-epoch.pt", *learned, *mirror, *row.flags.split())
            found = commands.test(f"{name}-{seed}", checkpoint, *testing)
            found["selection"] = read_last_validation(commands.run_of(f"{name}-{seed}"))["score"]
            return found

        futures[row.title] = pool.submit(train_and_test)
    return futures


def preferred_row(results: dict[str, list[dict[str, Any]]]) -> str:
    """The row with the highest mean of the number for choosing; `results` hold that of each seed as `selection`."""
    trained = [title for title, by_seed in results.items() if "selection" in by_seed[0]]
    return max(trained, key=lambda title: statistics.fmean(found["selection"] for found in results[title]))


def comparison_table(results: dict[str, list[dict[str, Any]]], task: Task) -> str:
    """Mean and, in brackets, the lowest and highest seed, in percent, of each measure of the task on each test set.

    Then the number for choosing, its mean and, in brackets, each seed's.
    """
    every = results["daytime model"]
    sets = [name for name in every[0] if name != "file" and all(name in found for found in every)]
    columns = {
        f"{name.removeprefix('test_')}, {title}": (name, *place)
        for name in sets
        for title, place in MEASURES[task].items()
    }
    rows = [
        [
            title,
            *(_spread([_percent(found, place) for found in by_seed]) for place in columns.values()),
            _choosing(by_seed),
        ]
        for title, by_seed in results.items()
    ]
    return markdown_table(["", *columns, "for choosing (day images only)"], rows)


def _percent(found: dict[str, Any], place: tuple[str, ...]) -> float:
    value: Any = found
    for name in place:
        value = value[name]
    return math.nan if value is None else 100 * value  # JSON has no NaN: what could not be measured is null


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

"""A table of the method beside its rivals, from data to Markdown: every row from the same daytime model and budget.

    python reproduce.py --table demo
    python reproduce.py --table 3 --data Cityscapes --night NighttimeDrivingTest Dark_Zurich_val_anon --seeds 0 1 2
    python reproduce.py --data classification/data --recipe paper
    python reproduce.py --data DATA --recipe small --seeds 0 1 2 --rows continued gamma no-similarity full --jobs 2
    python reproduce.py --data SIGNS --recipe strong --init tf_efficientnet_lite0.pth --flip false
    python reproduce.py --task segmentation --data DATA --night NIGHT --recipe small --rows continued gamma full
    python reproduce.py --task visual-place-recognition --data scenes --recipe mine.yaml --rows continued gamma full

A recipe is TASK/recipes/NAME.yaml, or a file of yours laid out like these; the rows are in rows.yaml. For each seed
this trains a daytime model, the darkeners that the rows need, and every row, by the scripts of the task; then it tests
each and writes RUNS/comparison.md, mean and spread by day and by night, differences from one row seed by seed, and
.json, with every seed and the number by which one may choose (day validation images, as they are and darkened in three
ways that no row trains on), and names the row that one would choose by it. Given again, it goes on where it was
stopped, and rows or seeds can be added. In the recipe `paper`, rows that only undo a change of ours are the same
training as `full`.

`--table 1` to `5` are the paper's (tables.yaml): task, recipe and rows are set, and RUNS/table-1.md has the paper's
figures beside ours. `--check` says which data that takes, and where they are to be had. docs/reproduce.md tells more.
"""

import logging
import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scipy import stats

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.commands import Commands, Job
from minmax.runtime.config import DEFAULT_RUNS, REPOSITORY, Switch, from_plain, read_yaml, require, run_script
from minmax.runtime.devices import Precision
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.file_checks import fingerprint_files
from minmax.runtime.report import markdown_table, read_last_validation, write_json

log = logging.getLogger(__name__)

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
    of: str = ""
    """A row of training, or `day`, whose network this row is; it is not trained."""
    result: str = "best.pt"
    """The file of that row's run to test."""
    day: str = ""
    """Flags of train_day.py: the row is a daytime model of its own."""
    test: str = ""
    """Flags of test.py."""


@dataclass(frozen=True)
class Rows:
    """What rows.yaml holds."""

    darkeners: dict[str, str]
    """Flags of train_darkener.py beside those of the recipe."""
    rows: dict[str, Row]


@dataclass(frozen=True)
class DataSet:
    """A data set that a table needs."""

    title: str
    place: str
    """In the repository, where it is looked for without --data and --night."""
    files: dict[str, tuple[str, ...]]
    """Globs of its parts."""
    source: str
    """Where it is to be had, how large it is, under what licence."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many files parts have as published, where that is known."""


@dataclass(frozen=True)
class Column:
    """A measure on a test set."""

    title: str
    split: str
    """What test.py calls the set, or one of the table's night data sets."""
    measure: str
    """One of the task's `MEASURES`."""
    comparable: bool = True
    """Whether the paper's figures are of the same images."""


@dataclass(frozen=True)
class Line:
    """What the paper calls a row of ours, and its figure for each column, in percent."""

    title: str
    paper: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one like it."""

    title: str
    task: Task
    recipe: str
    columns: tuple[Column, ...]
    rows: dict[str, Line]
    """By their names in rows.yaml, or `day`, the daytime model."""
    note: str
    others: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """The paper's figures for what we have not."""
    data: tuple[str, ...] = ()
    """Data sets below --data; without any it is of the built-in scenes."""
    night: tuple[str, ...] = ()
    """Data sets of --night."""


@dataclass(frozen=True)
class Tables:
    """What tables.yaml holds."""

    datasets: dict[str, DataSet]
    tables: dict[str, Table]


def load_rows() -> Rows:
    """All rows of all tasks."""
    file = REPOSITORY / "rows.yaml"
    table = from_plain(Rows, read_yaml(file), file)
    for name, row in table.rows.items():
        known = row.darkener is None or row.darkener in table.darkeners
        require(known, f"{file}: the darkener of {name},", row.darkener, f"null or one of {', '.join(table.darkeners)}")
    return table


def load_tables() -> Tables:
    """The tables and the data sets that they need."""
    file = REPOSITORY / "tables.yaml"
    return from_plain(Tables, read_yaml(file), file)


RUNS = DEFAULT_RUNS / "reproduce"
ADAPTED = "last-epoch.pt"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare the method with its rivals."""

    table: str = ""
    """A table of the paper, 1 to 5, or demo (tables.yaml); it sets task, recipe and the default of --rows."""
    check: bool = False
    """Only tell which data sets of the table, or of the task, are there, and whether they are complete."""
    task: Task = "classification"
    """Whose scripts."""
    data: str = ""
    """Data as the scripts of the task take it, `scenes` for the built-in data; by default where they look for it."""
    night: tuple[Path, ...] = ()
    """Night data sets: of segmentation, by default those that lie in segmentation/data; of action recognition, one, by
    default of a table ARID beside its data."""
    recipe: str = "paper"
    """A recipe of the task (TASK/recipes/*.yaml), such as paper or small, or the path of one of yours."""
    init: Path | None = None
    """Weights that the daytime models start from (--init of train_day.py), in place of published ones."""
    flip: Switch = True
    """Mirror half of the images in training; false for data such as traffic signs."""
    rows: tuple[str, ...] = ()
    """The rows (rows.yaml), beside that of the daytime model; by default the table's, or all that the task has."""
    against: str = ""
    """The row that all are compared with seed by seed, or `day`, the daytime model; by default continued, where it is
    among the rows, or else day."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each has a daytime model and darkeners of its own."""
    jobs: int = 1
    """Trainings side by side; they share the CPU threads."""
    shard: str = ""
    """i/n: train the i-th of n shares alone, so that several GPUs or machines can fill one --runs; by whole seeds, or,
    once all daytime models and darkeners are finished, by rows."""
    runs: Path = RUNS
    """Folder of the runs and of the table; by default, with --quick or of the table demo, one of their own."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes (autocast)."""
    quick: bool = False
    """A smoke test: the figures mean nothing."""

    def __post_init__(self) -> None:
        """Refuse values out of range, and take over what a table sets."""
        if self.table:
            self._take_over(load_tables().tables)
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
        for name in self.rows:
            of = load_rows().rows[name].of
            require(of in ("", "day", *self.rows), "--rows", name, f"{of} beside it, whose network it is")
        object.__setattr__(self, "against", self.against or ("continued" if "continued" in self.rows else "day"))
        rows = ("day", *self.rows)
        require(self.against in rows, "--against", self.against, f"one of the rows, {', '.join(rows)}")
        share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.shard)
        fits = not self.shard or (share is not None and int(share[1]) <= int(share[2]))
        require(fits, "--shard", self.shard, "i/n, such as 1/3, 2/3 and 3/3")
        if self.runs == RUNS:  # trainings of other flags must not meet there
            apart = ("-demo" if self.table == "demo" else "") + ("-quick" if self.quick else "")
            object.__setattr__(self, "runs", RUNS.with_name(RUNS.name + apart))
        if self.data not in ("", "scenes"):
            object.__setattr__(self, "data", str(Path(self.data).expanduser().absolute()))

    def _take_over(self, tables: dict[str, Table]) -> None:
        require(self.table in tables, "--table", self.table, f"one of {', '.join(tables)}")
        table = tables[self.table]
        built_in = not table.data
        fits = self.data in ("", "scenes") if built_in else self.data != "scenes"
        require(fits, "--data", self.data, "none: this table is of the built-in scenes" if built_in else "its data")
        rows = self.rows or tuple(name for name in table.rows if name != "day")
        data = "scenes" if built_in else self.data
        for name, value in {"task": table.task, "recipe": table.recipe, "rows": rows, "data": data}.items():
            object.__setattr__(self, name, value)

    @property
    def recipe_file(self) -> Path:
        """The recipe: one of the task's by its name, or the user's own."""
        own = REPOSITORY / self.task / "recipes" / f"{self.recipe}.yaml"
        return own if own.is_file() else Path(self.recipe).expanduser().absolute()


def main(config: Config) -> None:
    """Train and test every row of every seed, and report."""
    typed: frozenset[str] = getattr(config, "_typed", frozenset())
    if config.table and (set_by_both := sorted(typed & {"task", "recipe"})):
        raise UsageError(f"--table {config.table} sets --{set_by_both[0]}: leave it out, or --table")
    data = find_data(config)
    if config.check:
        told = "\n".join(map(str, data.values())) or "the built-in scenes need no files"
        print(told)  # noqa: T201  (the result of the command)
        if not all(found.is_complete for found in data.values()):
            raise RunError("not all data are there and complete")
        return
    night = config.night
    if config.table:
        if missing := [str(found) for found in data.values() if not found.is_there]:
            raise UsageError("\n".join([f"--table {config.table} needs data that are not there", *missing]))
        night = night or tuple(data[name].places[0] for name in load_tables().tables[config.table].night)
    commands = commands_of(config)
    plans = {seed: plan(commands, config, seed, night) for seed in config.seeds}
    jobs = [job for seed in config.seeds for job in plans[seed]]
    if config.shard:
        commands.run_jobs(share_of(plans, config.shard, commands), config.jobs)
        if left := [job.name for job in jobs if job.script and not commands.is_finished(job.name)]:
            log.info("\nshare %s is done; not yet finished: %s", config.shard, " ".join(left))
            log.info("once they are, the same command without --shard tests all and writes the table")
            return
    done = commands.run_jobs(jobs, config.jobs)
    titles = titles_of(config.rows)
    results = {title: [done[f"test {name}-{seed}"] for seed in config.seeds] for name, title in titles.items()}
    report(config, results, data)


def titles_of(rows: Sequence[str]) -> dict[str, str]:
    """What the daytime model and the rows are called, by name."""
    return {"day": "daytime model", **{name: load_rows().rows[name].title for name in rows}}


class FoundData(NamedTuple):
    """A data set where it lies, or, when it lacks a part, all the places where it was looked for."""

    dataset: DataSet
    places: tuple[Path, ...]
    files: dict[str, list[Path]]

    @property
    def is_there(self) -> bool:
        """Whether there is something of every part."""
        return all(self.files.values())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing of what was published, as far as that is known."""
        counts = self.dataset.counts
        return self.is_there and all(len(files) >= counts.get(part, 0) for part, files in self.files.items())

    def __str__(self) -> str:
        """One line: where it is and what is there, or how to get it."""
        where = " and ".join(map(str, self.places))
        if not self.is_there:
            lacking = ", ".join(self.dataset.files[part][0] for part, files in self.files.items() if not files)
            return f"{self.dataset.title}: not found in {where}, no {lacking}; from {self.dataset.source}"
        counts = self.dataset.counts
        parts = ", ".join(
            f"{len(files):,}{f' of {counts[part]:,}' if part in counts else ''} {part}"
            for part, files in self.files.items()
        )
        whole = "complete" if counts.keys() == self.files.keys() else "there"
        return f"{self.dataset.title}: {whole if self.is_complete else 'NOT COMPLETE'}, {parts}, in {where}"


def find_data(config: Config) -> dict[str, FoundData]:
    """The data sets that the table, or without one any table of the task, needs, by their names in tables.yaml."""
    known = load_tables()
    tables = [known.tables[config.table]] if config.table else list(known.tables.values())
    given = (Path(config.data),) if config.data else ()
    wanted: dict[str, tuple[Path, ...]] = {}
    for table in tables if config.data != "scenes" else ():
        if table.task == config.task:
            wanted |= {name: given for name in table.data} | {name: config.night for name in table.night}
    return {name: look_for(known.datasets[name], places) for name, places in wanted.items()}


def look_for(dataset: DataSet, places: tuple[Path, ...]) -> FoundData:
    """Look for a data set in each of the places, by default in its own."""
    places = tuple(place.expanduser().absolute() for place in places) or (REPOSITORY / dataset.place,)
    for place in places:
        files = {
            part: sorted({file for glob in globs for file in place.glob(glob) if not file.name.startswith(".")})
            for part, globs in dataset.files.items()
        }
        if all(files.values()):
            return FoundData(dataset, (place,), files)
    return FoundData(dataset, places, files)


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


def plan(commands: Commands, config: Config, seed: int, night: Sequence[Path]) -> list[Job]:
    """Everything of one seed: the jobs that others wait for come first. `test NAME-SEED` returns what test.py found."""
    start = () if config.init is None else ("--no-pretrained", "--init", str(config.init.expanduser().absolute()))
    mirror = () if config.flip else ("--augment.flip", "false")
    testing = ["--night", *map(str, night)] if night else []
    jobs: list[Job] = []

    def train(script: str, name: str, result: str, *flags: str, needs: Sequence[str] = ()) -> Path:
        run = f"{name}-{seed}"
        do = partial(commands.train, script, run, result, "--seed", str(seed), *flags)
        jobs.append(Job(run, do, tuple(f"{needed}-{seed}" for needed in needs), script, f"{name} seed {seed}"))
        return commands.run_of(run) / result

    def test(name: str, checkpoint: Path, *flags: str) -> None:
        def measure() -> dict[str, Any]:
            found = commands.test(f"{name}-{seed}", checkpoint, *testing, *flags)
            if checkpoint == commands.run_of(f"{name}-{seed}") / ADAPTED:
                found["selection"] = read_last_validation(checkpoint.parent)["score"]
            return found

        jobs.append(Job(f"test {name}-{seed}", measure, (checkpoint.parent.name,)))

    day = train("train_day.py", "day", "best.pt", *start, *mirror)
    against = ("--checkpoint", str(day))
    # Only the darkeners of clips are trained on mirrored images.
    shown = mirror if config.task == "low-light-action-recognition" else ()
    table = load_rows()
    darkeners = {
        name: train("train_darkener.py", name, "best.pt", *against, *shown, *flags.split(), needs=["day"])
        for name, flags in table.darkeners.items()
        if any(table.rows[row].darkener == name and not table.rows[row].of for row in config.rows)
    }
    test("day", day)
    for name in config.rows:
        row = table.rows[name]
        if row.of:
            checkpoint = commands.run_of(f"{row.of}-{seed}") / row.result
        elif row.day:
            checkpoint = train("train_day.py", name, row.result, *start, *mirror, *row.day.split())
        else:
            learned = ("--darkener", str(darkeners[row.darkener])) if row.darkener else ()
            flags = (*against, *learned, *mirror, *row.flags.split())
            checkpoint = train("train.py", name, ADAPTED, *flags, needs=["day", row.darkener or "day"])
        test(name, checkpoint, *row.test.split())
    return jobs


def share_of(plans: dict[int, list[Job]], shard: str, commands: Commands) -> list[Job]:
    """The trainings of one of several shares `i/n`: of whole seeds, or of the rows where there are fewer seeds.

    Raises:
        UsageError: for shares of rows, when a daytime model or a darkener, which they have in common, is not finished.
    """
    number, count = map(int, shard.split("/"))
    seeds = list(plans)
    mine = seeds[number - 1 :: count] if count <= len(seeds) else seeds
    trainings = [job for seed in mine for job in plans[seed] if job.script]
    if count <= len(seeds):
        return trainings
    rows = [job for job in trainings if job.script == "train.py"]
    common = [job for job in trainings if job.script != "train.py"]
    if unfinished := [job.name for job in common if not commands.is_finished(job.name)]:
        raise UsageError(
            f"--shard {shard}: expected at most {len(seeds)} shares, a seed each, until what rows start from is "
            f"finished; not yet: {' '.join(unfinished)}"
        )
    return common + rows[number - 1 :: count]


def report(config: Config, results: dict[str, list[dict[str, Any]]], data: dict[str, FoundData]) -> None:
    """Write what was found, by title and seed, as Markdown and JSON, and print it."""
    titles = titles_of(config.rows)
    best, against = preferred_row(results), titles[config.against]
    seeds = " ".join(map(str, config.seeds))
    about = f"{config.data or config.task}, recipe {config.recipe}, seeds {seeds}"
    about += "; a smoke test (--quick): the figures mean nothing" if config.quick else ""
    found = differences(results, against, config.task)
    parts = [about, comparison_table(results, config.task)]
    parts += [
        f'In points, each row minus "{against}" of the same seed: mean over the seeds and, in brackets, its 95 % '
        "confidence interval (Student's t), of more than one seed.",
        differences_table(found),
        f"By day images only one would choose: {best}",
        "That number for choosing is of day validation images, as they are and darkened in three ways no row trains on;"
        " no night image chose anything, and rows are tested after their last epoch.",
    ]
    name = "comparison"
    if config.table:
        name = f"table-{config.table}"
        parts = [paper_table(config, results, data), "## All that was measured", *parts]
    text = "\n\n".join(parts) + "\n"
    write_atomically(config.runs / f"{name}.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    plain = {"seeds": list(config.seeds), "chosen": best, "results": results, "against": against, "differences": found}
    write_json(plain, config.runs / f"{name}.json")
    print(text)  # noqa: T201  (the result of the command)


def paper_table(config: Config, results: dict[str, list[dict[str, Any]]], data: dict[str, FoundData]) -> str:
    """The lines of a table with the paper's figures beside ours, then what else was run, and notes."""
    table, titles = load_tables().tables[config.table], titles_of(config.rows)
    lines = {**table.rows, **{name: Line(title) for name, title in titles.items() if name not in table.rows}}
    lines |= {title: Line(title, paper) for title, paper in table.others.items()}
    digits = max((len(str(figure).partition(".")[2]) for line in lines.values() for figure in line.paper), default=0)
    has_figures = digits > 0
    header = [""]
    for column in table.columns:
        header += [f"{column.title}, paper"] * has_figures + [f"{column.title}, ours"]
        header += ["ours - paper"] * (has_figures and column.comparable)
    rows = []
    for name, line in lines.items():
        by_seed = results[titles[name]] if name in titles else []
        cells = [line.title]
        for number, column in enumerate(table.columns):
            # A folder of nights is called by its name, wherever it lies.
            split = data[column.split].places[0].resolve().name if column.split in data else column.split
            ours = [_share(found, (split, *MEASURES[config.task][column.measure])) for found in by_seed]
            figure = line.paper[number] if line.paper else math.nan
            gain = 100 * statistics.fmean(ours) - figure if ours else math.nan
            cells += [_number(figure, f"{figure:.{digits}f}")] * has_figures + [_spread(ours) if ours else "-"]
            cells += [_number(gain, f"{gain:+z.1f}")] * (has_figures and column.comparable)
        rows.append([*cells, str(len(by_seed) or "-")])
    parts = [f"# {table.title}{' (--quick: the figures mean nothing)' if config.quick else ''}"]
    if has_figures:
        parts += [f"Luo et al., ICCV 2023, Table {config.table}. Ours: mean and, in brackets, lowest and highest seed."]
    parts += [markdown_table([*header, "seeds"], rows), table.note]
    places = {name: f"- {found}" for name, found in data.items()}
    for name in table.night:
        files = sorted(file for part in data[name].files.values() for file in part)
        places[name] += f"; fingerprint {fingerprint_files(files, data[name].places[0])[:12]}"
    return "\n\n".join([*parts, *(["\n".join(places.values())] if places else [])])


def preferred_row(results: dict[str, list[dict[str, Any]]]) -> str:
    """The row with the highest mean of the number for choosing; `results` hold that of each seed as `selection`."""
    trained = [title for title, by_seed in results.items() if "selection" in by_seed[0]]
    return max(trained, key=lambda title: statistics.fmean(found["selection"] for found in results[title]))


def columns_of(results: dict[str, list[dict[str, Any]]], task: Task) -> dict[str, tuple[str, ...]]:
    """Each measure of the task on each test set that all seeds have, by title, and where it stands."""
    every = results["daytime model"]
    sets = [name for name in every[0] if name != "file" and all(name in found for found in every)]
    return {
        f"{name.removeprefix('test_')}, {title}": (name, *place)
        for name in sets
        for title, place in MEASURES[task].items()
    }


def comparison_table(results: dict[str, list[dict[str, Any]]], task: Task) -> str:
    """Mean and, in brackets, the lowest and highest seed, in percent, of each measure of the task on each test set.

    Then the number for choosing, its mean and, in brackets, each seed's.
    """
    columns = columns_of(results, task)
    rows = [
        [
            title,
            *(_spread([_share(found, place) for found in by_seed]) for place in columns.values()),
            _choosing(by_seed),
        ]
        for title, by_seed in results.items()
    ]
    return markdown_table(["", *columns, "for choosing (day images only)"], rows)


def differences(
    results: dict[str, list[dict[str, Any]]], against: str, task: Task
) -> dict[str, dict[str, dict[str, Any]]]:
    """By row and measure, the row minus the row `against` of the same seed, as shares.

    `by_seed`, their `mean`, and `low` and `high`, its 95 % confidence interval by Student's t, None with one seed.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for title, by_seed in results.items():
        if title == against:
            continue
        found[title] = {}
        for column, place in columns_of(results, task).items():
            pairs = zip(by_seed, results[against], strict=True)
            by_pair = [_share(one, place) - _share(other, place) for one, other in pairs]
            mean, count = statistics.fmean(by_pair), len(by_pair)
            low = high = None
            if count > 1:
                half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(by_pair) / math.sqrt(count)
                low, high = mean - half, mean + half
            found[title][column] = {"mean": mean, "low": low, "high": high, "by_seed": by_pair}
    return found


def differences_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """What `differences` gives, in points."""

    def cell(of: dict[str, Any]) -> str:
        spread = "" if of["low"] is None else f" ({100 * of['low']:+z.1f} to {100 * of['high']:+z.1f})"
        return _number(of["mean"], f"{100 * of['mean']:+z.1f}{spread}")

    rows = [[title, *map(cell, columns.values())] for title, columns in found.items()]
    return markdown_table(["", *next(iter(found.values()))], rows)


def _share(found: dict[str, Any], place: tuple[str, ...]) -> float:
    value: Any = found
    for name in place:
        value = value[name]
    return math.nan if value is None else float(value)  # JSON has no NaN: what could not be measured is null


def _number(value: float, shown: str) -> str:
    return "-" if math.isnan(value) else shown


def _choosing(by_seed: list[dict[str, Any]]) -> str:
    values = [100 * found["selection"] for found in by_seed if "selection" in found]
    if not values:  # the daytime model
        return "-"
    return f"{statistics.fmean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _spread(shares: list[float]) -> str:
    values = [100 * share for share in shares]
    if any(math.isnan(value) for value in values):
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    run_script(Config, main, __doc__)

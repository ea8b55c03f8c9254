"""The rows and tables of reproduce.py, and what they need, as rows.yaml and tables.yaml hold them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minmax.runtime.config import from_plain, read_yaml, require

HERE = Path(__file__).resolve().parent
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
    file = HERE / "rows.yaml"
    table = from_plain(Rows, read_yaml(file), file)
    for name, row in table.rows.items():
        known = row.darkener is None or row.darkener in table.darkeners
        require(known, f"{file}: the darkener of {name},", row.darkener, f"null or one of {', '.join(table.darkeners)}")
    return table


def load_tables() -> Tables:
    """The tables and the data sets that they need."""
    file = HERE / "tables.yaml"
    return from_plain(Tables, read_yaml(file), file)


def titles_of(rows: Sequence[str]) -> dict[str, str]:
    """What the daytime model and the rows are called, by name."""
    table = load_rows().rows
    return {"day": "daytime model", **{name: table[name].title for name in rows}}

"""The flags of reproduce.py."""

from dataclasses import dataclass
from pathlib import Path

from minmax.runtime.config import DEFAULT_RUNS, REPOSITORY, Switch, require
from minmax.runtime.devices import Precision
from minmax.runtime.shares import read_share
from reproduction.table_rows import Table, Task, load_rows, load_tables

RUNS = DEFAULT_RUNS / "reproduce"


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
        table = load_rows().rows
        known = [name for name, row in table.items() if self.task not in row.lacking]
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
            of = table[name].of
            require(of in ("", "day", *self.rows), "--rows", name, f"the row {of} as well, whose network it is")
        object.__setattr__(self, "against", self.against or ("continued" if "continued" in self.rows else "day"))
        rows = ("day", *self.rows)
        require(self.against in rows, "--against", self.against, f"one of the rows, {', '.join(rows)}")
        read_share(self.shard)
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
        expected = "none: this table is of the built-in scenes"
        if not built_in:
            expected = (
                f"the data of table {self.table} (its --check names them); --table demo is of the built-in scenes"
            )
        require(fits, "--data", self.data, expected)
        rows = self.rows or tuple(name for name in table.rows if name != "day")
        data = "scenes" if built_in else self.data
        for name, value in {"task": table.task, "recipe": table.recipe, "rows": rows, "data": data}.items():
            object.__setattr__(self, name, value)

    @property
    def recipe_file(self) -> Path:
        """The recipe: one of the task's by its name, or the user's own."""
        own = REPOSITORY / self.task / "recipes" / f"{self.recipe}.yaml"
        return own if own.is_file() else Path(self.recipe).expanduser().absolute()

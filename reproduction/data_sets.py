"""Which data sets a table needs, where they lie, and whether they are complete."""

from pathlib import Path
from typing import NamedTuple

from minmax.runtime.config import REPOSITORY
from reproduction.table_rows import DataSet, load_tables
from reproduction.table_settings import Config


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

"""What reproduce.py writes: our rows, the paper's figures beside them, and differences seed by seed."""

import math
import statistics
from typing import Any

from scipy import stats

from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.file_checks import fingerprint_files
from minmax.runtime.report import markdown_table, write_json
from reproduction.data_sets import FoundData
from reproduction.table_rows import MEASURES, Line, Task, load_tables, titles_of
from reproduction.table_settings import Config


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
            measure = MEASURES[config.task][column.measure]
            ours = [_share(found, (_split(column.split, data, found), *measure)) for found in by_seed]
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


def _split(name: str, data: dict[str, FoundData], found: dict[str, Any]) -> str:
    """What test.py calls a test set: a folder of nights by its name, and with several layouts in it by theirs too."""
    if name not in data:
        return name
    folder = data[name].places[0].resolve().name
    return folder if folder in found else f"{folder}, {data[name].dataset.title}"


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

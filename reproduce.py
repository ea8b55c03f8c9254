"""A table of the method beside its rivals, from data to Markdown: every row from the same daytime model and budget.

    python reproduce.py --table demo
    python reproduce.py --table 3 --data Cityscapes --night NighttimeDrivingTest Dark_Zurich_val_anon --seeds 0 1 2
    python reproduce.py --data classification/data --recipe paper
    python reproduce.py --data DATA --recipe small --seeds 0 1 2 --rows continued gamma no-similarity full --jobs 2
    python reproduce.py --data SIGNS --recipe strong --init tf_efficientnet_lite0.pth --flip false
    python reproduce.py --task segmentation --data DATA --night NIGHT --recipe small --rows continued gamma full
    python reproduce.py --task visual-place-recognition --data scenes --recipe mine.yaml --rows continued gamma full

A recipe is TASK/recipes/NAME.yaml, or a file of yours laid out like these; rows are in reproduction/rows.yaml. For each
seed this trains a daytime model, the darkeners that the rows need, and every row, by the scripts of the task; then it
tests each and writes RUNS/comparison.md, mean and spread by day and by night, differences from one row seed by seed,
and .json, with every seed and the number by which one may choose (day validation images, as they are and darkened in
three ways that no row trains on), and names the row that one would choose by it. Given again, it goes on where it was
stopped, and rows or seeds can be added. In the recipe `paper`, rows that only undo a change of ours are the same
training as `full`.

`--table 1` to `5` are the paper's (reproduction/tables.yaml): task, recipe and rows are set, and RUNS/table-1.md has
the paper's figures beside ours. `--check` says which data that takes, and where they are to be had. docs/reproduce.md
tells more.
"""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from minmax.runtime.commands import Commands, Job
from minmax.runtime.config import REPOSITORY, run_script
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import read_last_validation
from minmax.runtime.shares import read_share
from reproduction.data_sets import find_data
from reproduction.table_report import report
from reproduction.table_rows import load_rows, load_tables, titles_of
from reproduction.table_settings import Config

log = logging.getLogger(__name__)
ADAPTED = "last-epoch.pt"


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
    number, count = read_share(shard)
    seeds = list(plans)
    mine = seeds[number::count] if count <= len(seeds) else seeds
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
    return common + rows[number::count]


if __name__ == "__main__":
    run_script(Config, main, __doc__)

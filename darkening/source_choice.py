"""`--night.source auto`: try every source of night for an epoch, and take the one that day validation images prefer."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from darkening.heuristics import HEURISTICS
from minmax.runtime.config import CommonFlags, ConfigT, replaced
from minmax.runtime.errors import UsageError
from minmax.runtime.report import last_validation, markdown_table
from minmax.runtime.run import check_run_folder, run_folder

log = logging.getLogger(__name__)


def with_chosen_source(config: ConfigT, task: str, main: Callable[[ConfigT], Path]) -> ConfigT:
    """The flags of train.py with the best source in place of `auto`; others come back as they are.

    Each source is trained on for one epoch from the same start, as a run NAME-try-SOURCE of its own, which goes on
    where it was stopped when the command is given again. The highest number for choosing wins. The learned night takes
    part with --darkener; a night of --night.mix does not.

    Args:
        config: the flags of an adaptation.
        task: whose run it is.
        main: adapts with such flags.

    Raises:
        UsageError: when the run exists already and is not resumed, or there are several processes.
    """
    flags: Any = config
    if flags.night.source != "auto":
        return config
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--night.source auto: choose in one process, then start the others with the source it names")
    if not flags.resume:
        check_run_folder(task, flags)
    sources = (*(["learned"] if flags.darkener else []), *HEURISTICS, "day")

    def with_source(source: str, name: str, **others: Any) -> Any:
        darkener = flags.darkener if source == "learned" else None
        chosen = replaced(flags, name=name, night={"source": source}, darkener=darkener, **others)
        return replaced(chosen, resume=(run_folder(task, chosen) / "config.yaml").exists())

    found = {}
    for source in sources:
        if source not in flags.night.mix:
            trial: CommonFlags = with_source(source, f"{flags.name}-try-{source}", optim={"epochs": 1})
            main(trial)  # type: ignore[arg-type]
            found[source] = last_validation(run_folder(task, trial))
    best = max(found, key=lambda source: found[source]["score"])
    rows = [
        [source, *(f"{100 * numbers[name]:.1f}" for name in ("day", "darkened", "score"))]
        for source, numbers in found.items()
    ]
    log.info("%s", markdown_table(["night, after one epoch", "day", "darkened day", "for choosing"], rows))
    log.info("--night.source %s it is", best)
    chosen: ConfigT = with_source(best, flags.name)
    return chosen

"""`--night.source auto`: try several nights for an epoch each, and take the one that day validation images prefer."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from darkening.camera import CameraConfig
from minmax.runtime.config import CommonFlags, ConfigT, replace_settings
from minmax.runtime.errors import UsageError
from minmax.runtime.report import markdown_table, read_last_validation
from minmax.runtime.run import check_run_folder, run_folder

log = logging.getLogger(__name__)

CANDIDATES = {
    "learned": ("learned", 0.0),
    "gamma": ("gamma", 0.0),
    "brightness": ("brightness", 0.0),
    "short-exposure": ("short-exposure", 0.0),
    "gamma-camera": ("gamma", 1.0),
    "dim-camera": ("dim", 1.0),
    "day": ("day", 0.0),
}
"""Each with its --night.source and the share of it that passes through a camera."""


def choose_source(config: ConfigT, task: str, main: Callable[[ConfigT], Path]) -> ConfigT:
    """The flags of train.py with the best source in place of `auto`; others come back as they are.

    Each of `CANDIDATES` is trained on for one epoch from the same start, as a run NAME-try-CANDIDATE of its own, which
    goes on where it was stopped when the command is given again. The highest number for choosing wins. The learned
    night takes part with --darkener; a night of --night.mix does not.

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
    if flags.night.camera.share != 0:
        raise UsageError(f"--night.camera.share {flags.night.camera.share}: expected none; auto tries cameras itself")
    begun = run_folder(task, flags).parent.glob(f"{flags.name}*/config.yaml")
    if not flags.resume or not any(begun):
        check_run_folder(task, flags)

    def with_candidate(candidate: str, name: str, **others: Any) -> Any:
        source, share = CANDIDATES[candidate]
        darkener = flags.darkener if source == "learned" else None
        camera = replace(flags.night.camera, share=share) if share else CameraConfig()
        night = {"source": source, "camera": camera}
        chosen = replace_settings(flags, name=name, night=night, darkener=darkener, **others)
        return replace_settings(chosen, resume=(run_folder(task, chosen) / "config.yaml").exists())

    found = {}
    for candidate, (source, _) in CANDIDATES.items():
        if source not in flags.night.mix and (source != "learned" or flags.darkener):
            trial: CommonFlags = with_candidate(candidate, f"{flags.name}-try-{candidate}", optim={"epochs": 1})
            main(trial)  # type: ignore[arg-type]
            found[candidate] = read_last_validation(run_folder(task, trial))
    best = max(found, key=lambda candidate: found[candidate]["score"])
    rows = [
        [candidate, *(f"{100 * numbers[name]:.1f}" for name in ("day", "darkened", "score"))]
        for candidate, numbers in found.items()
    ]
    log.info("%s", markdown_table(["night, briefly", "day", "darkened day", "for choosing"], rows))
    source, share = CANDIDATES[best]
    log.info("chosen: --night.source %s --night.camera.share %g", source, share)
    chosen: ConfigT = with_candidate(best, flags.name)
    return chosen

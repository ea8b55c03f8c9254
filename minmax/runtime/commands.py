"""A chain of training scripts, each run once: given again, it goes on where it was stopped."""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from minmax.runtime.config import REPOSITORY, SECTIONS, read_recipe
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.report import duration, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A step of a chain.

    Args:
        name: of its run, where it is a training.
        do: does it; may be done already.
        needs: the jobs that must be done before.
        script: that trains; None for a measurement, which is not counted.
        title: what the log calls a training.
    """

    name: str
    do: Callable[[], Any]
    needs: tuple[str, ...] = ()
    script: str | None = None
    title: str = ""


class Commands:
    """Starts the scripts of one task as processes of their own; after one has failed, no other is started.

    Args:
        task: the folder of the scripts.
        runs: folder of all runs.
        recipe: the file that they read their flags from.
        common: flags that every script gets beside it.
        machine: such flags too, which change nothing that is computed.
        quiet: show a script's output only when it fails; for scripts that run side by side.

    Raises:
        UsageError: when the file is no recipe.
    """

    def __init__(
        self,
        task: str,
        runs: Path,
        recipe: Path,
        common: Sequence[str] = (),
        machine: Sequence[str] = (),
        quiet: bool = False,
    ) -> None:
        self.task, self.runs, self.recipe, self.quiet = task, runs.absolute(), recipe, quiet
        self.common, self.machine = tuple(common), tuple(machine)
        self._sections = read_recipe(recipe)
        self._failure: RunError | None = None

    def run_of(self, name: str) -> Path:
        """The folder of a run."""
        return self.runs / self.task / name

    def is_finished(self, name: str) -> bool:
        """Whether a run has come to its end."""
        return (self.run_of(name) / "finished").exists()

    def check(self) -> None:
        """Let every script read its section of the recipe.

        Raises:
            RunError: when one refuses it.
        """
        for script in SECTIONS:
            self._start(f"{script}.py", "--help", quiet=True)

    def train(self, script: str, name: str, result: str, *flags: str) -> Path:
        """Train, or go on training, and return the resulting checkpoint.

        Args:
            script: file name of the script.
            name: name of the run.
            result: file name of the checkpoint in its folder.
            flags: of this training.

        Raises:
            RunError: when the script fails or is stopped.
            UsageError: when the run has finished with other flags or another recipe.
        """
        run = self.run_of(name)
        finished = run / "finished"
        # The folder of the runs may move.
        given = [flag.replace(str(self.runs), "RUNS") for flag in (script, *self.common, *flags)]
        made = {"flags": " ".join(given), "recipe": self._sections[SECTIONS[Path(script).stem]]}
        if finished.exists():
            before = json.loads(finished.read_text(encoding="utf-8"))
            before.pop("seconds", None)
            if before != made:
                what = f"`{before['flags']}`, where `{made['flags']}` is asked for"
                if before["flags"] == made["flags"]:
                    what = "another recipe"
                raise UsageError(f"the finished run {run} is of {what}; choose another --runs, or remove it")
        else:
            resume = ("--resume",) if (run / "config.yaml").exists() else ()
            began = time.monotonic()
            self._start(script, *flags, "--name", name, "--runs", str(self.runs), *resume, quiet=self.quiet)
            # Of a run that was stopped the last part alone is known.
            write_json(made | ({} if resume else {"seconds": round(time.monotonic() - began, 1)}), finished)
        return run / result

    def test(self, name: str, checkpoint: Path, *flags: str) -> dict[str, Any]:
        """What test.py finds of a checkpoint, by split; its files go into the run `name`.

        Raises:
            RunError: when the script fails or is stopped.
        """
        output = self.run_of(name) / "test"
        self._start("test.py", "--checkpoint", str(checkpoint), "--output", str(output), *flags, quiet=True)
        found = json.loads((output / "results.json").read_text(encoding="utf-8"))["results"]["checkpoint"]
        return dict(found)

    def run_jobs(self, jobs: Sequence[Job], side_by_side: int = 1) -> dict[str, Any]:
        """Do each job once what it needs is done, those that stand first before others.

        Args:
            jobs: with all that they need among them.
            side_by_side: so many at a time, at most.

        Returns:
            What each returned, by its name.

        Raises:
            RunError: when one fails, or Ctrl-C stops them; those that run are waited for.
        """
        named = {job.name: job for job in jobs}
        order = TopologicalSorter({job.name: job.needs for job in jobs})
        order.prepare()
        trainings = [job for job in jobs if job.script]
        begun = sum(self.is_finished(job.name) for job in trainings)
        log.info("%d trainings to go, %d finished", len(trainings) - begun, begun)
        ready: list[str] = []
        running: dict[Future[Any], str] = {}
        done: dict[str, Any] = {}
        try:
            with ThreadPoolExecutor(side_by_side) as pool:
                while order.is_active():
                    ready = sorted([*ready, *order.get_ready()], key=list(named).index)
                    while ready and len(running) < side_by_side:
                        job = named[ready.pop(0)]
                        if job.script and not self.is_finished(job.name):
                            begun += 1
                            left = self._time_left(trainings, side_by_side)
                            log.info("\n[%d/%d] %s %s%s", begun, len(trainings), job.script, job.title, left)
                        running[pool.submit(job.do)] = job.name
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        name = running.pop(future)
                        done[name] = future.result()
                        order.done(name)
        except KeyboardInterrupt:  # the scripts were told as well: they have written their checkpoints
            raise RunError("stopped; the same command goes on from here") from None
        return done

    def _time_left(self, trainings: Sequence[Job], side_by_side: int) -> str:
        """What the trainings that are not finished may take, once one of each of their scripts has told its time."""
        taken: dict[str | None, list[float]] = {}
        left = []
        for job in trainings:
            if not self.is_finished(job.name):
                left.append(job.script)
                continue
            made = json.loads((self.run_of(job.name) / "finished").read_text(encoding="utf-8"))
            if "seconds" in made:
                taken.setdefault(job.script, []).append(made["seconds"])
        if not taken.keys() >= set(left):
            return ""
        seconds = sum(statistics.fmean(taken[script]) for script in left) / min(side_by_side, len(left))
        return f", about {duration(seconds)} left"

    def _start(self, script: str, *flags: str, quiet: bool) -> None:
        if self._failure is not None:  # of a script that ran beside or before in another thread
            raise self._failure
        arguments = ["--config", str(self.recipe), *self.common, *self.machine, *flags]
        command = [sys.executable, str(REPOSITORY / self.task / script), *arguments]
        log.info("\n$ python %s/%s %s", self.task, script, " ".join(arguments))
        with (
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
            subprocess.Popen(command, stdout=output if quiet else None, stderr=output if self.quiet else None) as child,
        ):
            try:
                code = child.wait()
            except KeyboardInterrupt:  # the script was told as well: let it write its checkpoint
                child.wait()
                raise RunError("stopped; the same command goes on from here") from None
            output.seek(0)
            said = "".join(output.readlines()[-5:]).strip() if self.quiet else "its message stands above"
        if code != 0:
            self._failure = RunError(f"{self.task}/{script} ended with exit code {code}: {said or 'it said nothing'}")
            raise self._failure

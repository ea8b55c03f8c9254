"""A run: its folder, its log, its position, and the checkpoint from which it continues exactly."""

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minmax.runtime.batches import EpochBatches, read_batches
from minmax.runtime.checkpoints import file_digest, load_checkpoint, save_checkpoint, write_atomically
from minmax.runtime.config import CommonFlags, by_flag, read_yaml, to_plain, write_yaml
from minmax.runtime.devices import Runtime, open_runtime
from minmax.runtime.environment import write_environment
from minmax.runtime.errors import RunError, UsageError, problem_of_the_machine
from minmax.runtime.exclusive import claim
from minmax.runtime.profiling import Pace, step_profiler
from minmax.runtime.report import draw_curves, duration
from minmax.runtime.seeding import generator_for, seed_globally

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)
BatchT = TypeVar("BatchT")

_READ_EVERY = 20  # steps
# Flags that may differ when a run is continued: they do not change what it computes. Of the data, and of files that a
# run starts from, the fingerprint decides: they may move.
FREE_FLAGS = {"resume", "config", "runs", "device", "workers", "threads", "save_minutes", "profile", "data"}


class Stateful(Protocol):
    """Anything with torch's state protocol: module, optimiser, schedule, scaler."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state over."""


class Fingerprinted(Protocol):
    """A data set that can tell itself from others."""

    def fingerprint(self) -> str:
        """A digest of what it holds."""


def input_files(config: CommonFlags) -> dict[str, Path]:
    """The files that a run starts from, by the names of their flags."""
    named = {name: getattr(config, name, None) for name in ("checkpoint", "darkener", "init")}
    return {name: path for name, path in named.items() if isinstance(path, Path)}


@contextmanager
def prepare_run(task: str, config: CommonFlags) -> Iterator[Runtime]:
    """The devices of a run that may start: its folder is checked before anything that takes time.

    Raises:
        UsageError: as `open_runtime` and `check_run_folder`.
    """
    with open_runtime(config.device, config.precision, config.threads, config.compile) as runtime:
        if runtime.is_main:
            check_run_folder(task, config)
        yield runtime


@dataclass
class Progress:
    """How far a run has come: epochs done, batches done in this epoch, steps in all, and the best epoch's score."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -math.inf
    best_epoch: int = -1


def run_folder(task: str, config: CommonFlags) -> Path:
    """Where a run lives."""
    return config.runs / task / config.name


def check_run_folder(task: str, config: CommonFlags) -> Path:
    """The folder of a run that may start; scripts call this before anything that takes time.

    Raises:
        UsageError: when the folder exists and `resume` is off, or does not exist or has other flags and it is on.
    """
    folder = run_folder(task, config)
    if not config.resume:
        # A folder without a config is what a kill in its first moment leaves.
        if (folder / "config.yaml").exists():
            raise UsageError(f"the run {folder} exists; choose another --name, or continue it with --resume")
        return folder
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"--resume: there is no run at {folder}; start it without --resume")
    stored = read_yaml(folder / "config.yaml")
    if not isinstance(stored, dict):
        raise UsageError(f"--resume: {folder / 'config.yaml'} holds no flags; start the run again under another --name")
    free = FREE_FLAGS | set(input_files(config))
    before = by_flag({name: value for name, value in stored.items() if name not in free})
    now = by_flag(to_plain(config))
    if 0 < before.get("--optim.epochs", 0) < now.get("--optim.epochs", 0):  # more of them extend the run
        del before["--optim.epochs"]
    changed = [f"{flag} was {value}, now {now.get(flag)}" for flag, value in before.items() if now.get(flag) != value]
    if changed:
        raise UsageError(f"--resume: {folder} was started with other flags: {'; '.join(changed)}")
    return folder


class Run:
    """The folder RUNS/TASK/NAME and the state of the training that fills it.

    Args:
        task: folder of the runs of a task.
        config: the flags.
        runtime: the devices.
        data: the data sets; another one is no resumption.

    Layout: `config.yaml`, `environment.jsonl`, `log.txt`, `metrics.jsonl`, `tensorboard/`, `last.pt`, `best.pt`,
    `pictures/`. Only the main process writes.

    Raises:
        UsageError: as `check_run_folder`, or when the folder cannot be made or another process trains in it.
    """

    def __init__(self, task: str, config: CommonFlags, runtime: Runtime, **data: Fingerprinted) -> None:
        self.directory = check_run_folder(task, config) if runtime.is_main else run_folder(task, config)
        self.runtime, self.seed, self._config = runtime, config.seed, config
        # A run is continued with the data and with what it starts from alone; both shape every step.
        parts = {name: value.fingerprint() for name, value in data.items()}
        for name, path in input_files(config).items():
            parts[f"--{name}"] = file_digest(path) if path.is_file() else str(path)
        self.data_fingerprint = ", ".join(f"{name} {digest[:16]}" for name, digest in parts.items())
        self._totals: dict[str, Tensor] = {}  # losses since the last step
        self._losses: list[tuple[Progress, dict[str, Tensor]]] = []
        self.progress = Progress()
        self._save_seconds = config.save_minutes * 60
        self._saved_at = time.monotonic()
        self._parts: dict[str, Stateful] = {}
        self._compiling = runtime.compiles  # not yet done
        self._profiling = config.profile and runtime.is_main  # neither
        self._pace = Pace("", 0)
        self._stop_signal: int | None = None
        self._open_folder(config)
        self._handler: logging.Handler = logging.NullHandler()
        if runtime.is_main:  # names of files need not be text
            self._handler = logging.FileHandler(self.directory / "log.txt", encoding="utf-8", errors="backslashreplace")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._writer: SummaryWriter | None = None
        if runtime.is_main:
            write_environment(self.directory / "environment.jsonl", self.data_fingerprint)

    def _open_folder(self, config: CommonFlags) -> None:
        """Make the folder of a run; the main process has it to itself."""
        if not self.runtime.is_main:
            return
        try:
            (self.directory / "pictures").mkdir(parents=True, exist_ok=True)
            if not config.resume:
                self._write_config()
        except (OSError, RunError) as error:
            raise UsageError(f"cannot create the run {self.directory}: {error}") from error

    def _write_config(self) -> None:
        write_atomically(self.directory / "config.yaml", lambda temporary: write_yaml(self._config, temporary))

    def __enter__(self) -> Self:
        """Claim the folder, start logging to it and listen for SIGTERM and Ctrl-C."""
        self._lock = claim(self.directory) if self.runtime.is_main else None
        logging.getLogger().addHandler(self._handler)
        self._former_handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        log.info("%s", self.directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop logging to the folder; what ended the run stands in its log."""
        if kind is not None and not issubclass(kind, SystemExit):
            told = issubclass(kind, UsageError | RunError) or problem_of_the_machine(error)
            record = None if told else (kind, error, traceback)
            self._handler.handle(
                log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s", (error,), record)  # type: ignore[arg-type]
            )
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        if self._lock is not None:
            self._lock.release()
        if self._writer is not None:
            self._writer.close()

    def _ask_to_stop(self, number: int, _: FrameType | None) -> None:
        if self._stop_signal is not None:  # a second Ctrl-C does not wait for the end of the step
            raise SystemExit(128 + number)
        self._stop_signal = number
        log.info("%s: stopping after this step", signal.Signals(number).name)

    # ------------------------------------------------------------------------------------------ state

    def restore(self, **parts: Stateful) -> None:
        """Name the parts whose state makes the run exact, and load them if the run has a checkpoint."""
        self._parts = parts
        path = self.directory / "last.pt"
        # Read by the main process alone: machines need not share a disk.
        there = self.runtime.is_main and path.is_file()
        payload = self.runtime.from_main(load_checkpoint(path, resuming=True) if there else None)
        if payload is not None:
            now = {"processes": self.runtime.world_size, "data": self.data_fingerprint}
            for name, value in now.items():
                if self.runtime.is_main and payload[name] != value:
                    raise UsageError(f"--resume: {path} was made with {name} {payload[name]!r}, now it is {value!r}")
            self.progress = Progress(**payload["progress"])
            for name, part in parts.items():
                part.load_state_dict(payload["state"][name])
            log.info("continuing %s after %d epochs, %d steps", path, self.progress.epoch, self.progress.step)
        if self.runtime.is_main:
            from torch.utils.tensorboard import SummaryWriter

            self._forget_later_metrics()
            self._write_config()  # a run that goes on may have more epochs, and data that moved
            self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.progress.step + 1)

    def _forget_later_metrics(self) -> None:
        """Drop metrics that were written after the checkpoint: they are computed again."""
        path = self.directory / "metrics.jsonl"
        if path.is_file():
            # A killed process may have left half a line at the end.
            whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in whole if self._is_before_checkpoint(json.loads(line))]
            write_atomically(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))

    def _is_before_checkpoint(self, line: dict[str, Any]) -> bool:
        done = line["step"] <= self.progress.step
        return bool(done and (line["kind"] == "train" or line["epoch"] <= self.progress.epoch))

    def save(self) -> None:
        """Write `last.pt`: everything needed to continue exactly from here."""
        self._read_losses()
        self._saved_at = time.monotonic()
        if self.runtime.is_main:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            payload = {
                "progress": asdict(self.progress),
                "processes": self.runtime.world_size,
                "data": self.data_fingerprint,
                "state": state,
            }
            save_checkpoint(payload, self.directory / "last.pt")

    # ------------------------------------------------------------------------------------------ loop

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left; a signal that came during validation stops the run between two of them."""
        first, began = self.progress.epoch, time.monotonic()
        for epoch in range(first, count):
            yield epoch
            self._stop_if_asked()
            if left := count - epoch - 1:
                seconds = left * (time.monotonic() - began) / (epoch + 1 - first)
                log.info("about %s left for %d more epochs", duration(seconds), left)

    def batches(self, loader: DataLoader[BatchT], epoch: int) -> Iterator[BatchT]:
        """The batches that are left in this epoch, with a progress bar, seeded steps and checkpoints in between."""
        sampler = loader.batch_sampler
        assert isinstance(sampler, EpochBatches)
        sampler.start_at(epoch, self.progress.batch)
        total = sampler.batches_per_epoch
        title, first = f"epoch {epoch + 1}", self.progress.batch
        self._pace = pace = Pace(title, total - first)
        bar = tqdm(total=total, initial=first, desc=title, disable=self.runtime.hides_bar, leave=False)
        with bar, logging_redirect_tqdm(), self._profiled() as step_done:
            for batch in pace.batches(read_batches(loader)):
                seed_globally(self.seed, "step", self.progress.step, self.runtime.rank)
                began = time.monotonic()
                yield batch
                self.progress.batch += 1
                self.progress.step += 1
                bar.update()
                if self._compiling:
                    log.info("--compile: the first step took %.0f s", time.monotonic() - began)
                    self._compiling = False
                if self.progress.batch < total:
                    step_done()
                pace.step()
                if bar.disable and self.runtime.is_main:  # where a bar would tell
                    pace.tell_if_due()
                self._save_if_due()
        self._read_losses()
        if self.runtime.is_main:
            pace.tell()

    def _profiled(self) -> AbstractContextManager[Callable[[], object]]:
        """With --profile, of the main process's first epoch."""
        wanted, self._profiling = self._profiling, False
        return step_profiler(self.directory) if wanted else nullcontext(lambda: None)

    def _stop_if_asked(self, due: bool = False) -> None:
        # All processes stop or save at the same step: the others would wait for the one that left.
        asked, due = self.runtime.any_rank(self._stop_signal is not None, due)
        if asked or due:
            self.save()
        if asked:
            log.info("stopped at step %d; continue with --resume", self.progress.step)
            raise SystemExit(128 + (self._stop_signal or signal.SIGTERM))

    def _save_if_due(self) -> None:
        self._stop_if_asked(due=time.monotonic() - self._saved_at > self._save_seconds)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for this step's draws for one purpose, equal after a resume and on every device."""
        return generator_for(self.seed, purpose, self.progress.step, self.runtime.rank)

    def backward(self, losses: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Add the gradients of the sum of the losses, weighted by the share that a part of a batch has in it."""
        with record_function("backward"):
            self.runtime.scaler.scale(share * torch.stack(list(losses.values())).sum()).backward()
        for name, loss in losses.items():
            self._totals[name] = self._totals.get(name, 0.0) + share * loss.detach().float()

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
        clip: float | None = None,
    ) -> None:
        """Move the weights by the gradients so far, brought to a norm of at most `clip`, and record the losses.

        Raises:
            RunError: when a loss is not a finite number; names the step, every term and the last good checkpoint. On a
                CPU before any weight is changed, elsewhere within a few steps, and never after the run was saved.
        """
        scaler = self.runtime.scaler
        noted, self._totals = self._totals, {}
        if clip is not None:
            scaler.unscale_(optimizer)
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            norm = nn.utils.clip_grad_norm_(weights, clip)
            if not scaler.is_enabled():  # a scaler leaves out by itself a step whose gradients are not finite
                noted["gradient_norm"] = norm.detach()
        self._losses.append((replace(self.progress), noted))
        # To read a loss is to wait for an accelerator.
        if self.runtime.device.type == "cpu" or len(self._losses) >= _READ_EVERY:
            self._read_losses()
        with record_function("optimizer"):
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        if schedule is not None:
            schedule.step()

    def _read_losses(self) -> None:
        """Bring the losses since the last time to the CPU in one transfer; record their means over the processes."""
        waiting, self._losses = self._losses, []
        if not waiting:
            return
        here = torch.stack([loss for _, losses in waiting for loss in losses.values()])
        values = (self.runtime.sum_over_ranks(here) / self.runtime.world_size).tolist()
        for progress, losses in waiting:
            numbers = {name: values.pop(0) for name in losses}
            if not all(map(math.isfinite, numbers.values())):
                terms = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                last = self.directory / "last.pt"
                good = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint was written yet"
                raise RunError(
                    f"non-finite loss at step {progress.step} ({terms}); {good}; lower --optim.lr or use fp32"
                )
            self.record("train", numbers, progress)
            self._pace.note_loss(sum(numbers[name] for name in numbers if name != "gradient_norm"))

    def finish_epoch(
        self,
        numbers: Mapping[str, float],
        score: float | None = None,
        save_best: Callable[[Path], object] = lambda _: None,
    ) -> None:
        """Record what validation found, count the epoch as done, and save the run, and the network if it is the best.

        Args:
            numbers: by name, shares of 1.
            score: by which epochs are compared; without one none is the best.
            save_best: writes the network into a file.
        """
        self._read_losses()
        self.record("validation", numbers)
        shown = ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in numbers.items())
        log.info("epoch %d: %s", self.progress.epoch + 1, shown)
        self.progress.epoch += 1
        self.progress.batch = 0
        if score is not None and score > self.progress.best:
            self.progress.best, self.progress.best_epoch = score, self.progress.epoch
            if self.runtime.is_main:
                save_best(self.directory / "best.pt")
        self.save()

    def finish(
        self,
        save_last: Callable[[Path], object] | None = None,
        keep_day: Callable[[], Mapping[float, float]] | None = None,
    ) -> Path:
        """Draw the curves of a run that is done, and give its network: the last epoch's if it is saved, or the best.

        Args:
            save_last: writes the network into a file.
            keep_day: leaves the network with a mixture of its weights and the daytime model's, to be saved as well;
                returns the score of each share, the best first, or none when it made no mixture.
        """
        files = {f"best epoch {self.progress.best_epoch}": self.directory / "best.pt"}
        if save_last:
            files["last epoch"] = self.directory / "last-epoch.pt"
        if self.runtime.is_main:
            if save_last:
                save_last(files["last epoch"])
            draw_curves(self.directory / "metrics.jsonl", self.directory / "pictures" / "curves.png")
        if save_last and keep_day and (scores := keep_day()):
            share = next(iter(scores))
            files[f"best of the mixtures, a share of {share:g} of the adapted weights"] = self.directory / "kept.pt"
            told = ", ".join(f"{share:g}: {100 * score:.1f} %" for share, score in sorted(scores.items()))
            log.info("score of day validation images, as they are and darkened, by share of adapted weights: %s", told)
            if self.runtime.is_main:
                save_last(self.directory / "kept.pt")
        for what, path in files.items():
            log.info("%s: %s", what, path)
        return self.directory / ("last-epoch.pt" if save_last else "best.pt")

    # ------------------------------------------------------------------------------------------ records

    def record(self, kind: str, numbers: Mapping[str, float], at: Progress | None = None) -> None:
        """Append one line of numbers to `metrics.jsonl` and TensorBoard, by default at the step in progress."""
        if not self.runtime.is_main:
            return
        at = at or self.progress
        # Inside the loop the step in progress is not counted yet; a restart from `step` repeats step + 1 and later.
        step = at.step + (kind == "train")
        line = json.dumps({"kind": kind, "epoch": at.epoch + 1, "step": step, **numbers}) + "\n"
        try:
            with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise RunError(f"could not write {self.directory / 'metrics.jsonl'}: {error}") from error
        if self._writer is not None:
            for name, number in numbers.items():
                self._writer.add_scalar(f"{kind}/{name}", number, step)

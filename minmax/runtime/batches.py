"""Which images come in which order: a function of (seed, epoch), so that a run can continue at any batch."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.seeding import generator_for

ItemT = TypeVar("ItemT")


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in a new order every epoch, from any position; each process gets its own share.

    The data set is asked for `dataset[epoch, index]`, so a sample's augmentation can depend on the epoch without any
    state in worker processes. `world_size` processes together see, step by step, the batches that one process with
    `world_size` times the batch size would see.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_batch = 0, 0
        if self.batches_per_epoch == 0:
            raise UsageError(
                f"{count} training images do not fill one batch of {batch_size} on {world_size} process(es); "
                "lower --optim.batch-size"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in an epoch; the remainder is dropped, as batch statistics need full batches."""
        return self.count // (self.batch_size * self.world_size)

    def start_at(self, epoch: int, batch: int) -> None:
        """Make the next iteration start at this batch of this epoch."""
        self.epoch, self.first_batch = epoch, batch

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return self.batches_per_epoch - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches of this process."""
        order = torch.randperm(self.count, generator=generator_for(self.seed, "order", self.epoch)).tolist()
        for batch in range(self.first_batch, self.batches_per_epoch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


def read_batches(batches: Iterable[ItemT]) -> Iterator[ItemT]:
    """The batches of a loader; a file that a worker process cannot read is reported without the worker's traceback."""
    try:
        yield from batches
    except RunError as error:
        lines = str(error).strip().splitlines()
        raise RunError(lines[-1].removeprefix(f"{RunError.__module__}.{RunError.__name__}: ")) from error


def few_at_a_time(count: int, at_once: int, parallel: nn.Module) -> Iterator[slice]:
    """Gradient accumulation: the parts of a batch of `count` samples that are in memory together.

    Args:
        count: samples of the batch.
        at_once: of each part but the last, which may have less; 0 for all.
        parallel: under DDP only the last part's backward pass exchanges gradients (and takes their mean).
    """
    for start in range(0, count, at_once or count):
        part = slice(start, min(start + (at_once or count), count))
        alone: AbstractContextManager[object] = nullcontext()
        if isinstance(parallel, DistributedDataParallel) and part.stop < count:
            alone = parallel.no_sync()
        with alone:
            yield part


def one_pass(
    dataset: Dataset[Any],
    batch_size: int | None,
    title: str,
    workers: int,
    runtime: Runtime,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """This process's share of the batches of one pass over a data set, without augmentation, under a progress bar.

    Each comes with its number. They are the batches of a single process, dealt out; `Runtime.collected` brings together
    what was made of them.

    Args:
        dataset: what is loaded.
        batch_size: samples per batch; None gives them one by one, as they are.
        title: of the bar.
        workers: processes that load.
        runtime: this process among the others.
        collate: makes a batch of a list of samples; by default torch's way, which stacks tensors.
    """
    assert isinstance(dataset, Sized)
    numbers = range(len(dataset))
    every: Sequence[Any] = numbers
    if batch_size is not None:
        every = [numbers[start : start + batch_size] for start in range(0, len(dataset), batch_size)]
    mine = runtime.dealt(every)
    order: dict[str, Any] = {"batch_size": None, "sampler": mine} if batch_size is None else {"batch_sampler": mine}
    loader = DataLoader(
        dataset, num_workers=workers, collate_fn=collate, worker_init_fn=_leave_sigterm_to_the_run, **order
    )
    bar = tqdm(loader, desc=title, disable=runtime.hides_bar, leave=False)
    return zip(runtime.dealt(range(len(every))), read_batches(bar), strict=True)


def _leave_sigterm_to_the_run(_: int) -> None:
    """Make a worker deaf to SIGTERM.

    Schedulers and `timeout` send SIGTERM to all processes of a run: workers must live on until it has saved its state.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def epoch_loader(
    dataset: Dataset[ItemT],
    batch_size: int,
    seed: int,
    workers: int,
    runtime: Runtime,
    collate: Callable[[list[ItemT]], Any] | None = None,
) -> DataLoader[ItemT]:
    """This process's share of the batches of a data set that is indexed by (epoch, index).

    Args:
        dataset: what is loaded.
        batch_size: samples per step and process.
        seed: of the order.
        workers: processes that load.
        runtime: this process among the others.
        collate: makes a batch of a list of samples; by default torch's way, which stacks tensors.

    Raises:
        UsageError: when the data set does not fill one batch.
    """
    assert isinstance(dataset, Sized)
    batches = EpochBatches(len(dataset), batch_size, seed, runtime.rank, runtime.world_size)
    pinned = runtime.device.type == "cuda"
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=collate,
        worker_init_fn=_leave_sigterm_to_the_run,
    )

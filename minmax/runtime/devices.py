"""Where a script runs: CPU, CUDA or MPS; one process, DataParallel, or DDP under torchrun."""

import ctypes
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minmax.features import FeatureModel
from minmax.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
ItemT = TypeVar("ItemT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_NOTHING = object()
_NEWEST_TESTED = (2, 15)


@dataclass(frozen=True)
class Runtime:
    """The devices of this process and its place among the others."""

    device: torch.device
    device_ids: tuple[int, ...] = ()  # more than one: DataParallel
    rank: int = 0
    world_size: int = 1
    precision: Precision = "fp32"
    compiles: bool = False  # what `parallel` and `spread` are given
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))

    def any_rank(self, *flags: bool) -> list[bool]:
        """Whether each of the flags is set in any process."""
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.float32)  # on the CPU: an accelerator would be waited for in every step
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [flag > 0 for flag in found.tolist()]

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def sum_over_ranks(self, numbers: Tensor) -> Tensor:
        """The sum of each number over the processes."""
        total = numbers.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def dealt(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """The items that fall to this process when they are dealt out like cards; all of them to a single one."""
        return items[self.rank :: self.world_size]

    def collected(self, mine: Sequence[ItemT]) -> list[ItemT]:
        """What all processes made of the items `dealt` to them, in the order that the items had, in every process."""
        if self.world_size == 1:
            return list(mine)
        hands: list[Any] = [None] * self.world_size
        dist.all_gather_object(hands, list(mine))
        rounds = zip_longest(*hands, fillvalue=_NOTHING)
        return [item for around in rounds for item in around if item is not _NOTHING]

    def evaluate(self, network: nn.Module) -> None:
        """Put a network into evaluation mode, everywhere with the main process's buffers, which are those it saves.

        Under DDP each process counts BatchNorm's statistics over its own last batch until the next one.
        """
        network.eval()
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def hides_bar(self) -> bool | None:
        """For tqdm's `disable`: None, which shows a bar on a terminal only, in the main process, True in others."""
        return None if self.is_main else True

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context of a forward pass; it does nothing in fp32."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "fp32")

    def place(self, module: ModuleT) -> ModuleT:
        """Move `module` to the device, in the memory layout that convolutions are fastest in."""
        dimensions = {parameter.dim() for parameter in module.parameters()}
        layout = torch.channels_last
        if 5 in dimensions:  # a network for clips; what it gains on a GPU was not measured
            alone = self.device.type == "cpu" and 4 not in dimensions
            layout = torch.channels_last_3d if alone else torch.preserve_format
        return module.to(self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def to_device(self, images: Tensor) -> Tensor:
        """Move a batch to the device: images channels last, clips so on a CPU, labels and vectors as they are."""
        layout = torch.channels_last if images.dim() == 4 else torch.preserve_format
        if images.dim() == 5 and self.device.type == "cpu":
            layout = torch.channels_last_3d
        return images.to(self.device, non_blocking=self.device.type == "cuda", memory_format=layout)

    def intensities(self, pixels: Tensor) -> Tensor:
        """A batch of images or clips on the device, in [0, 1]: pixels of 8 bits as float32, others as they are."""
        placed = self.to_device(pixels)
        if placed.is_floating_point():
            return placed
        # Images as torchvision scales them, clips as they always were here: on a CPU these differ in the last bit.
        return placed / 255.0 if placed.dim() == 5 else placed.float().mul_(1.0 / 255.0)

    def require_pairs(self, batch_size: int, at_once: int = 0) -> None:
        """Refuse a batch that, in parts of `at_once`, has one image for a device: BatchNorm needs two in training.

        Raises:
            UsageError: says how many there are for each device.
        """
        devices = max(1, len(self.device_ids))
        parts = dict.fromkeys((min(at_once or batch_size, batch_size), batch_size % (at_once or batch_size)))
        for part in filter(None, parts):
            share = -(-part // devices)
            shares = [min(share, part - first) for first in range(0, part, share)]
            if min(shares) < 2:
                flags = f"--optim.batch-size {batch_size}" + (f" --optim.at-once {at_once}" if at_once else "")
                raise UsageError(
                    f"{flags} leaves {' + '.join(map(str, shares))} images on the devices; "
                    f"BatchNorm needs two each: expected {2 * devices} or more at once"
                )

    def parallel(self, module: nn.Module) -> nn.Module:
        """The callable form of a placed module that is trained: `spread`, or DDP under torchrun.

        The module itself stays the one whose state is saved and whose momentum target is updated.
        """
        return self.joined(self.spread(module))

    def spread(self, module: nn.Module) -> nn.Module:
        """The callable form of a placed module in this process: itself, or DataParallel over `device_ids`."""
        if self.compiles:
            for part in module.modules():
                if isinstance(part, FeatureModel):
                    part.compile()
        if len(self.device_ids) > 1:
            return nn.DataParallel(module, device_ids=list(self.device_ids))
        return module

    def joined(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are the mean over all processes: itself, or DDP under torchrun."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)


def joined_processes() -> Runtime:
    """This process among those of torchrun, for work that needs no device; alone where none were joined."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return Runtime(torch.device("cpu"), rank=rank, world_size=world_size)


@contextmanager
def open_runtime(
    device: str = "auto", precision: Precision = "fp32", threads: int = 0, compiles: bool = False
) -> Iterator[Runtime]:
    """Choose the devices named by `device` and, under torchrun, join the other processes.

    Args:
        device: `auto` (CUDA, else MPS, else CPU), `cpu`, `mps`, `cuda`, `cuda:1`, or `cuda:0,1` for DataParallel.
        precision: of the forward passes under autocast; fp16 brings a gradient scaler.
        threads: CPU threads of torch; 0 keeps torch's choice.
        compiles: whether networks that have features are compiled.

    Raises:
        UsageError: when the device does not exist or cannot compute in the precision, or compiling contradicts it.
    """
    keep_large_buffers()
    if tuple(map(int, torch.__version__.split(".")[:2])) > _NEWEST_TESTED:
        log.warning("torch %s is newer than all that this was tested with, 2.11 to 2.15", torch.__version__)
    if threads:
        torch.set_num_threads(threads)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen, device_ids = _choose_device(device, local_rank if world_size > 1 else None)
    if precision == "bf16" and len(device_ids) > 1:
        # DataParallel's threads take over that autocast is on, but not its dtype: they would compute in fp16, unscaled.
        raise UsageError(f"--precision bf16 with --device {device}: use torchrun instead of DataParallel, or fp16")
    if compiles and len(device_ids) > 1:
        # The compiled form belongs to one module; DataParallel's copies would all call that one.
        raise UsageError(f"--compile with --device {device}: use torchrun instead of DataParallel, or drop --compile")
    if precision == "fp16" and chosen.type != "cuda":
        raise UsageError(f"--precision fp16 needs a CUDA device, this is {chosen}; use fp32 or bf16")
    if compiles:
        torch._dynamo.reset()  # what it kept of networks of earlier runs in this process counts towards the limit
        torch._dynamo.config.recompile_limit = 64  # twice trained and evaluated, with and without gradients, by shape
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    scaler = torch.amp.GradScaler(chosen.type, enabled=precision == "fp16")
    try:
        yield Runtime(chosen, device_ids, rank, world_size, precision, compiles, scaler)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _choose_device(name: str, local_rank: int | None) -> tuple[torch.device, tuple[int, ...]]:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, listed = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (listed and kind != "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, mps, cuda, cuda:1 or cuda:0,1")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no MPS device; use --device auto or cpu")
    if kind != "cuda":
        return torch.device(kind), ()
    if not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device; use --device auto or cpu")
    if not all(part.isdigit() for part in listed.split(",") if listed):
        raise UsageError(f"--device {name}: expected numbers after the colon, as in cuda:0,1")
    ids = tuple(int(part) for part in listed.split(",")) if listed else (local_rank or 0,)
    missing = [i for i in ids if i >= torch.cuda.device_count()]
    if missing:
        raise UsageError(f"--device {name}: no CUDA device {missing[0]}, torch sees {torch.cuda.device_count()}")
    if local_rank is not None and listed:
        raise UsageError(f"--device {name}: torchrun gives each process its own device; use --device cuda")
    return torch.device("cuda", ids[0]), ids


def require_finite(outputs: Tensor, network: str, images: str) -> None:
    """Refuse what a network gives for a batch when it holds NaN or infinity: the class of that would always be 0.

    Args:
        outputs: of any shape.
        network: what to call it, such as its file.
        images: what it was shown, such as the name of a split.

    Raises:
        RunError: says what helps.
    """
    if not bool(outputs.isfinite().all()):
        raise RunError(
            f"{network} gives NaN or infinity for images of {images}: its weights have diverged or its numbers "
            "overflow; take a checkpoint of an earlier epoch, train with a lower --optim.lr, or use --precision fp32"
        )


def keep_large_buffers() -> None:
    """Let glibc keep freed large blocks for the next tensor instead of returning them to the system.

    Every large CPU tensor otherwise page-faults anew on each step (benchmarks/). Linux with glibc only, elsewhere
    nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4  # mallopt(3)
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)

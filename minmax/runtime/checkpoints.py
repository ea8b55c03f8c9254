"""Checkpoints: written whole or not at all, read without running any code that a file may hold."""

import argparse
import contextlib
import errno
import hashlib
import os
import pickle
import platform
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.plain_pickle import NUMPY_STAND_INS, refuse_bombs

# What torch and our stand-ins say of objects that are no data; of broken files they say something else.
_REFUSED = re.compile("unsupported (global|class|nesting)", re.IGNORECASE)

_TORCH_ON_FULL_DISKS = re.compile("PytorchStreamWriter failed|unexpected pos")

# Process numbers mean nothing on another machine that shares the disk.
_HOST = f"{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, force it to disk and rename it: never a half-written file.

    Raises:
        RunError: when the disk is full or the file cannot be written; the former file is then untouched.
    """
    temporary = path.with_name(f"{_temporary_prefix(path)}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        full = isinstance(error, RuntimeError) and _TORCH_ON_FULL_DISKS.search(str(error))
        if not full and not isinstance(error, OSError):  # of what `write` computes
            raise
        number = errno.ENOSPC if full else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            advice = "; free some space or choose another folder"
        else:
            advice = "; choose another folder" if number in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
        raise RunError(f"could not write {path}: {error}{advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    """What the temporary files of this machine for `path` begin with; of a length that any disk takes."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{_HOST}"


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what `write_atomically` left beside files in killed processes of this machine; others keep theirs.

    Each folder is read once, however many files are in it.
    """
    prefixes: dict[Path, set[str]] = {}
    for path in paths:
        prefixes.setdefault(path.parent, set()).add(_temporary_prefix(path))
    for folder, own in prefixes.items():
        for file in list(folder.glob(".*.tmp")):
            before, dash, number = file.name.removesuffix(".tmp").rpartition("-")
            if before + dash in own and number.isdecimal() and not _is_alive(int(number)):
                file.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere the question itself may end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(payload: Mapping[str, Any], path: Path) -> None:
    """Save a mapping of tensors and plain values as a torch file, atomically."""
    write_atomically(path, lambda temporary: torch.save(dict(payload), temporary))


def load_checkpoint(path: Path, resuming: bool = False) -> dict[str, Any]:
    """Read a torch checkpoint onto the CPU with `weights_only=True`, or safetensors: data, never code.

    Training programs keep accuracies as numpy's numbers, which become Python's, whitenings as its arrays, and flags as
    argparse's Namespace. Any other object is refused.

    Args:
        path: the file.
        resuming: whether it is the last.pt that a run goes on from, which holds no network to be used.

    Raises:
        UsageError: when the file is missing, truncated, holds code or other objects, or holds no mapping; when it is
            the folder of a run.
    """
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.pt") if file.name != "last.pt"))
        raise UsageError(f"{path} is a folder; expected a file{f', such as {there} in it' if there else ''}")
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; expected a .pt, .pth or .safetensors file")
    known: list[Any] = [argparse.Namespace, *((stand_in, name) for name, stand_in in NUMPY_STAND_INS.items())]
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _refuse_compressed(path)
        with torch.serialization.safe_globals(known):
            payload = torch.load(path, map_location="cpu", weights_only=True)
        refuse_bombs(payload, path.stat().st_size)
    except Exception as error:  # noqa: BLE001  (what torch raises for foreign bytes has no end)
        problem = f"{path} is not a readable checkpoint (truncated, or not written by torch.save)"
        if isinstance(error, pickle.UnpicklingError) and _REFUSED.search(str(error)):
            problem = (
                f"refused {path}: it holds Python objects that could run code when loaded, not only tensors and plain "
                "values; save its state_dict() instead"
            )
        raise UsageError(problem) from error
    if not isinstance(payload, Mapping):
        raise UsageError(f"{path} holds a {type(payload).__name__}; expected a mapping of names to tensors")
    if {"progress", "state"} <= payload.keys() and not resuming:
        raise UsageError(f"{path} is what --resume goes on from; take best.pt or last-epoch.pt beside it")
    return dict(payload)


def _refuse_compressed(path: Path) -> None:
    """Refuse an archive that grows when it is read; torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            grows = sum(member.file_size for member in archive.infolist()) > path.stat().st_size
        if grows:
            raise ValueError("it unpacks to more than its own size")


def refuse_absurd(settings: Mapping[str, Any], state: Mapping[str, Tensor], source: Path | str) -> None:
    """Refuse settings of a network that is far larger than its weights, before memory is taken for it.

    Args:
        settings: as the file says them; a width of W needs W times W weights somewhere.
        state: the weights.
        source: the file, for messages.

    Raises:
        UsageError: names the setting; or when the weights are no mapping.
    """
    if not isinstance(state, Mapping):
        raise UsageError(f"{source} holds a {type(state).__name__} in place of weights by their names")
    held = sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
    for name, value in settings.items():
        if isinstance(value, int) and value**2 > max(held, 2**16):
            raise UsageError(f"{source} asks for {name} {value}, but holds only {held} numbers")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load `state` into `module`, every tensor of both, or say which do not fit.

    Only the batches that BatchNorm has counted may be missing, as in old files: then there were none.

    Raises:
        UsageError: names missing, unexpected and wrongly shaped tensors, and those whose numbers are not finite (three
            of each at most).
    """
    own = module.state_dict()
    uncounted = {name: torch.zeros_like(own[name]) for name in own if name.endswith("num_batches_tracked")}
    state = {**uncounted, **state}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if isinstance(state.get(name), Tensor) and state[name].shape != own[name].shape
    ]
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    told = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped, "no tensors": foreign}
    problems = [
        f"{len(found)} {word} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for word, found in told.items()
        if found
    ]
    if problems:
        raise UsageError(f"{source} does not fit {type(module).__name__}: tensors {'; '.join(problems)}")
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        shown = f"{', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}"
        raise UsageError(
            f"{source} holds NaN or infinity in {len(broken)} tensors ({shown}): its training diverged; take an "
            "earlier checkpoint"
        )
    module.load_state_dict(state)

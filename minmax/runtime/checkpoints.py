"""Checkpoints: written whole or not at all, read without running any code that a file may hold."""

import argparse
import contextlib
import errno
import glob
import hashlib
import logging
import os
import pickle
import platform
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from minmax.runtime.errors import RunError, UsageError

log = logging.getLogger(__name__)

# Process numbers mean nothing on another machine that shares the disk.
_HOST = f"{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, force it to disk and rename it: never a half-written file.

    Raises:
        RunError: when the disk is full or the file cannot be written; the former file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except torch.OutOfMemoryError:  # of what `write` computes; it says nothing of the disk
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        number = getattr(error, "errno", errno.ENOSPC)
        if number in (errno.ENOSPC, errno.EDQUOT):
            advice = "; free some space or choose another folder"
        else:
            advice = "; choose another folder" if number in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
        raise RunError(f"could not write {path}: {error}{advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what `write_atomically` left beside `path` in killed processes of this machine; others keep theirs."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.{_HOST}*.tmp"):
        number = file.name.rsplit(".", 2)[1].removeprefix(_HOST)
        if number.isdecimal() and not _is_alive(int(number)):
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


def joint_fingerprint(parts: Mapping[str, str]) -> str:
    """One line that changes when a part does, and lets a reader see which: `training 1a2b, --darkener 3c4d`."""
    return ", ".join(f"{name} {digest[:16]}" for name, digest in parts.items())


def save_checkpoint(payload: Mapping[str, Any], path: Path) -> None:
    """Save a mapping of tensors and plain values as a torch file, atomically."""
    write_atomically(path, lambda temporary: torch.save(dict(payload), temporary))


# numpy's name of a kind of number: struct's.
_NUMPY_NUMBERS = {
    "b1": "?",
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q"},
    **{"u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d"},
}


class _NumpyKind:
    """Stands for numpy.dtype while a file is read: knows kinds of numbers and nothing else."""

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in _NUMPY_NUMBERS:
            raise pickle.UnpicklingError(f"Unsupported class numpy.dtype({kind!r})")
        self.format = _NUMPY_NUMBERS[kind]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"Unsupported class numpy.dtype of order {state[1]!r}")
        self.format = ("" if state[1] == "|" else state[1]) + self.format


def _plain_number(kind: _NumpyKind, content: bytes) -> bool | int | float:
    (number,) = struct.unpack(kind.format, content)
    return number  # type: ignore[no-any-return]


class _PlainArray:
    """Stands for numpy.ndarray while a file is read: an array of numbers, made of its checked parts."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _NumpyKind) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("Unsupported class numpy.ndarray of objects")
        flat = np.frombuffer(content, np.dtype(kind.format))
        self.array = flat.reshape(tuple(map(int, shape)), order="F" if by_columns else "C").copy()


def _without_stand_ins(value: Any) -> Any:
    """The same, with arrays in the places of what stands for them; mappings and lists are changed where they are."""
    if isinstance(value, _PlainArray):
        return value.array
    if isinstance(value, dict):
        for key, member in value.items():
            value[key] = _without_stand_ins(member)
    elif isinstance(value, list):
        value[:] = map(_without_stand_ins, value)
    elif type(value) is tuple:
        return tuple(map(_without_stand_ins, value))
    return value


# Training programs keep accuracies as numpy's numbers, and whitenings as its arrays. They are read without calling any
# function of numpy that the file names: its dtype alone could be asked for much more than a number. `numpy.core` is the
# name before numpy 2.
_NUMPY_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumpyKind, "numpy.dtype"),
    (_PlainArray, "numpy.ndarray"),
    *((_plain_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_PlainArray, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a torch checkpoint onto the CPU with `weights_only=True`, or safetensors: data, never code.

    Single numbers of numpy's become Python's; its arrays of numbers and argparse's flags are read; any other object is
    refused.

    Raises:
        UsageError: when the file is missing, truncated, holds code or other objects, or holds no mapping.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; expected a .pt, .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # A Namespace holds the flags in the checkpoints of timm's and torchvision's training scripts: data, no code.
        with torch.serialization.safe_globals([*_NUMPY_STAND_INS, argparse.Namespace]):
            payload = _without_stand_ins(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        # A foreign pickle (it starts with 0x80) stops torch at the opcode that looks up what it would call.
        kinds = "global|class|operand" if path.read_bytes()[:1] == b"\x80" else "global|class"
        if re.search(f"unsupported ({kinds})", str(error), re.IGNORECASE):
            raise UsageError(
                f"refused {path}: it holds Python objects that could run code when loaded, not only tensors and plain "
                "values; save its state_dict() instead"
            ) from error
        raise UsageError(f"{path} is not a readable checkpoint (truncated, or not written by torch.save)") from error
    except Exception as error:  # noqa: BLE001  (what torch raises for foreign bytes has no end)
        raise UsageError(f"{path} is not a readable checkpoint (truncated, or not written by torch.save)") from error
    if not isinstance(payload, Mapping):
        raise UsageError(f"{path} holds a {type(payload).__name__}; expected a mapping of names to tensors")
    return dict(payload)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load `state` into `module`, every tensor of both, or say which do not fit.

    Only the batches that BatchNorm has counted may be missing, as in old files; they stay as they are.

    Raises:
        UsageError: names missing, unexpected and wrongly shaped tensors (three of each at most).
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {word} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for word, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if found
    ]
    if problems:
        raise UsageError(f"{source} does not fit {type(module).__name__}: tensors {'; '.join(problems)}")
    module.load_state_dict(dict(state))

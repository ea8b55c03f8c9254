"""Pickles of other programs, read without running what they may hold: containers, numbers, strings and numpy's arrays.

The general unpickler calls whatever function a file names. This one, and torch's own in `checkpoints`, find the
stand-ins below and nothing else. Not even numpy's types are admitted: a file may tell numpy.dtype that numbers are
addresses of objects.
"""

import math
import pickle
import re
from collections.abc import Callable
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minmax.runtime.errors import UsageError

_MOST_NESTED = 50  # a list in a list, and so on; what other programs write stays below ten


class _RefusedError(pickle.UnpicklingError):
    """The file asks for something that is no data; said in torch's words."""


class _Kind:
    """Stands for numpy.dtype: numbers, strings or objects, in either order of bytes."""

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch(r"O8?|[biufSU]\d{1,4}", name):
            raise _RefusedError(f"unsupported class numpy.dtype({name[:20]!r})")
        self.numpy = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *fields = state[1:5]
        if order not in ("<", ">", "|", "=") or fields != [None, None, None]:
            raise _RefusedError("unsupported class numpy.dtype of records")
        self.numpy = self.numpy.newbyteorder(order)


class _Array(np.ndarray):
    """Stands for numpy.ndarray: empty until it is given elements of a checked kind."""

    def __new__(cls, *_: object) -> "_Array":
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if kind.numpy.hasobject and len(content) != math.prod(shape):  # of numbers numpy itself finds out
            raise ValueError("an array has another size than its content")
        super().__setstate__((1, shape, kind.numpy, by_columns, content))


def _number(kind: _Kind, content: bytes | str) -> Any:
    # Python 2's strings of bytes come as text in which each character is one of them.
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.numpy, 1)[0].item()


def _array(content: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", bytes(memoryview(content))))
    return array


NUMPY_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Kind,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},  # before and since numpy 2
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
}
_ADMITTED: dict[str, Callable[..., Any]] = {
    **NUMPY_STAND_INS,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes in pickles of old protocols
    "__builtin__.bytes": lambda: b"",  # and empty ones
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}


# In Python, as torch's own: the one in C sets aside what a file of five bytes asks for, 34 GB.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only stand-ins; anything else is code of somebody's."""
        if (named := f"{module}.{name}") not in _ADMITTED:
            raise _RefusedError(f"unsupported global {named}")
        return _ADMITTED[named]

    def load_build(self) -> None:
        """Set the state of a stand-in's object, never of a stand-in itself."""
        if not isinstance(self.stack[-2], _Kind | _Array):  # type: ignore[attr-defined]
            raise _RefusedError("unsupported class of an object that is given a state")
        super().load_build()  # type: ignore[misc]

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]


def refuse_bombs(content: object, size: int) -> None:
    """Refuse containers that hold each other over and over, so that a small file takes forever to go through.

    Args:
        content: what was read.
        size: bytes of the file; no honest file has more members than these.

    Raises:
        pickle.UnpicklingError: when it is nested too deeply, or has more members than `size`.
    """
    level: list[Any] = [content]
    for _ in range(_MOST_NESTED):
        mappings = [chain(value, value.values()) for value in level if isinstance(value, dict)]
        others = [value for value in level if isinstance(value, list | tuple | set | frozenset)]
        others += [value.ravel().tolist() for value in level if isinstance(value, np.ndarray) and value.dtype == object]
        size -= sum(len(value) for value in level if isinstance(value, dict)) + sum(map(len, others))
        if size < 0:
            break
        level = [member for members in (*mappings, *others) for member in members]
        if not level:
            return
    raise _RefusedError("unsupported nesting of containers that hold each other over and over")


def read_plain_pickle(file: Path) -> dict[str, Any]:
    """Read a pickle that holds a mapping of plain values and numpy arrays.

    Raises:
        UsageError: when it is missing, broken, holds no mapping, or names any code, which is then named and not run.
    """
    if not file.is_file():
        raise UsageError(f"no file {file}")
    try:
        packed = file.read_bytes()
        content = _PlainUnpickler(BytesIO(packed), encoding="latin1").load()
        refuse_bombs(content, len(packed))
    except _RefusedError as error:
        raise UsageError(
            f"refused {file}: {error}, which is no data and could run code; expected lists, numbers, strings and arrays"
        ) from error
    except Exception as error:  # noqa: BLE001  (what a broken pickle raises has no end)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{file} is not a readable pickle (truncated?): {reason}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}; expected a mapping")
    return content

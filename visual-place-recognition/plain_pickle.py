"""Pickles of other programs, read without running what they may hold: plain containers, numbers, strings and arrays.

The retrieval toolbox distributes its lists as pickles. The general unpickler calls whatever function a file names; this
one calls nothing of numpy's either, whose own types trust the state that a file gives them. Stand-ins collect what an
array is made of, and it is built from checked parts when the file is read.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minmax.runtime.errors import UsageError

_KIND = re.compile(r"([biufSU])(\d{1,4})")


class _RefusedError(pickle.UnpicklingError):
    """The file asks for something that is no data."""


class _StandIn:
    """Called in place of what a file names; nothing about it can be changed by the file."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError(f"it sets {name} of what reads it")

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("it sets the state of what reads it")


class _Kind:
    """Stands for numpy.dtype: numbers and strings of a size, or objects."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any) -> None:
        if name != "O8" and name != "O" and not (isinstance(name, str) and _KIND.fullmatch(name)):
            raise _RefusedError(f"it names numpy.dtype({name!r})")
        self.name, self.order = str(name), "|"

    def __setstate__(self, state: Any) -> None:
        _, order, *described = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in described[:3]):
            raise _RefusedError("it names an array of records")
        self.order = order

    @property
    def is_object(self) -> bool:
        """Whether elements are objects, which then are in a list of their own."""
        return self.name.startswith("O")

    def numpy(self) -> np.dtype[Any]:
        """The type, from parts that were checked."""
        return np.dtype(f"{self.order}{self.name}")


class _Array:
    """Stands for numpy.ndarray until the whole file is read."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        self.fill(content, kind, shape, "F" if by_columns else "C")

    def fill(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        """Keep the elements, `content`, in their shape."""
        if not isinstance(kind, _Kind) or order not in ("C", "F"):
            raise _RefusedError("it names an array of no known kind")
        if kind.is_object:
            elements = np.empty(len(content), dtype=object)
            elements[:] = [_Held(element) for element in content]
        else:
            elements = np.frombuffer(_bytes(content), kind.numpy())
        self.value = elements.reshape(tuple(int(side) for side in shape), order=order)


class _Held:
    """An element of an array of objects, which numpy must not take for an array."""

    __slots__ = ("element",)

    def __init__(self, element: Any) -> None:
        self.element = element


def _bytes(content: Any) -> bytes:
    """Python 2's strings of bytes come as text in which each character is one of them."""
    return content.encode("latin1") if isinstance(content, str) else bytes(content)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes in pickles of old protocols; no codec but this one is looked up."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _RefusedError(f"it names the codec {encoding!r}")
    return text.encode("latin1")


def _number(kind: Any, content: Any) -> Any:
    if not isinstance(kind, _Kind) or kind.is_object:
        raise _RefusedError("it names an object in a number's place")
    return np.frombuffer(_bytes(content), kind.numpy(), count=1)[0].item()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(content, kind, shape, order)
    return array


_MODULES = ("numpy.core", "numpy._core")  # before and since numpy 2
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever handed to _reconstruct
    ("numpy", "dtype"): _StandIn(_Kind),
    ("_codecs", "encode"): _StandIn(_encoded),
    **{(module, "set"): _StandIn(set) for module in ("builtins", "__builtin__")},  # since and before Python 3
    **{(module, "frozenset"): _StandIn(frozenset) for module in ("builtins", "__builtin__")},
    **{(f"{module}.multiarray", "_reconstruct"): _StandIn(lambda *_: _Array()) for module in _MODULES},
    **{(f"{module}.multiarray", "scalar"): _StandIn(_number) for module in _MODULES},
    **{(f"{module}.numeric", "_frombuffer"): _StandIn(_from_buffer) for module in _MODULES},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what stands for arrays and sets; anything else is code of somebody's."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _RefusedError(f"it names {module}.{name}") from None


def _without_stand_ins(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is not None and value.value.dtype == object:
            return [_without_stand_ins(held.element) for held in value.value.flat]
        return value.value
    if isinstance(value, dict):
        return {key: _without_stand_ins(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_without_stand_ins(member) for member in value]
    if isinstance(value, tuple):
        return tuple(_without_stand_ins(member) for member in value)
    if isinstance(value, _StandIn | _Kind | _Held):
        raise _RefusedError("it holds a function or a type")
    return value


def read_plain_pickle(file: Path) -> dict[str, Any]:
    """Read a pickle that holds a mapping of plain values and numpy arrays; arrays of objects become lists.

    Raises:
        UsageError: when it is missing, broken, holds no mapping, or names any code, which is then named and not run.
    """
    if not file.is_file():
        raise UsageError(f"no file {file}")
    try:
        with file.open("rb") as stream:
            content = _without_stand_ins(_PlainUnpickler(stream, encoding="latin1").load())
    except _RefusedError as error:
        raise UsageError(
            f"refused {file}: {error}, code that could run when loaded; "
            "expected lists, sets, numbers, strings and arrays"
        ) from error
    except Exception as error:  # noqa: BLE001  (what a broken pickle raises has no end)
        raise UsageError(f"{file} is not a readable pickle (truncated?): {error or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}; expected a mapping")
    return content

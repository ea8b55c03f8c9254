"""Pickles of other programs, read without running what they may hold: plain containers, numbers, strings and arrays.

The retrieval toolbox distributes its lists as pickles. The general unpickler calls whatever function a file names; this
one looks up nothing but what rebuilds an array of numpy's.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minmax.runtime.errors import UsageError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What Python 2's strings of bytes in arrays are rebuilt by; no codec but this one is looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


def _array(kind: Any, shape: tuple[int, ...], code: bytes) -> np.ndarray[Any, Any]:
    """An empty array, to be filled by what follows in the file."""
    return np.ndarray(0, np.int8)


def _number(dtype: np.dtype[Any], content: bytes) -> Any:
    if dtype.hasobject:
        raise pickle.UnpicklingError("it names an object in a number's place")
    return np.frombuffer(content, dtype, count=1)[0].item()


def _array_of_buffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_MODULES = ("numpy.core", "numpy._core")  # before and since numpy 2
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"{module}.multiarray", "_reconstruct"): _array for module in _MODULES},
    **{(f"{module}.multiarray", "scalar"): _number for module in _MODULES},
    **{(f"{module}.numeric", "_frombuffer"): _array_of_buffer for module in _MODULES},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what makes arrays; anything else is code of somebody's."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read_plain_pickle(file: Path) -> dict[str, Any]:
    """Read a pickle that holds a mapping of plain values and numpy arrays.

    Raises:
        UsageError: when it is missing, broken, holds no mapping, or names any code, which is then named and not run.
    """
    if not file.is_file():
        raise UsageError(f"no file {file}")
    try:
        with file.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if str(error).startswith(("it names", "codec")):
            raise UsageError(
                f"refused {file}: {error}, code that could run when loaded; expected lists, numbers, strings and arrays"
            ) from error
        raise UsageError(f"{file} is not a readable pickle ({error})") from error
    except Exception as error:  # noqa: BLE001  (what a broken pickle raises has no end)
        raise UsageError(f"{file} is not a readable pickle (truncated?): {error or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}; expected a mapping")
    return content

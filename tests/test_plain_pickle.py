"""Pickles of other programs: what is read, and that hostile and broken ones end in one line."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from minmax.runtime.errors import UsageError
from minmax.runtime.plain_pickle import read_plain_pickle


class Calls:
    """Pickles to a call, and to the state that its result is given."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


ARRAYS = {
    "floats": np.arange(6.0).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "none": np.zeros((0, 2), np.uint8),
    "one": np.ones((), bool),
    "strings": np.array(["x", "yz"]),
    "objects": np.array(["a", None, 2], dtype=object),
}


@pytest.mark.parametrize("protocol", range(6))
def test_lists_numbers_and_arrays_are_read(tmp_path, protocol):
    plain = {"cids": ["a", "b"], "set": {1, 2}, "nested": [{"ok": (1, 2.5, None, b"\xff")}]}
    content = {**plain, **ARRAYS, "n": np.float64(2.5), "s": np.str_("word")}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_plain_pickle(tmp_path / "x.pkl")
    for name, array in ARRAYS.items():
        read = found.pop(name)
        assert np.array_equal(read, array) and read.dtype == array.dtype.newbyteorder("=")
    assert found == {**plain, "n": 2.5, "s": "word"} and type(found["n"]) is float


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_numbers_and_arrays_of_python_2_and_numpy_1_are_read(tmp_path, core):
    number = Calls(np._core.multiarray.scalar, np.dtype("<i8"), "\x05" + 7 * "\0")
    array = Calls(
        np._core.multiarray._reconstruct, np.ndarray, (0,), "b", state=(1, (1,), np.dtype("<i2"), False, "\xff\0")
    )
    content = pickle.dumps({"n": number, "a": array}, 2).replace(b"numpy._core", core)
    (tmp_path / "x.pkl").write_bytes(content.replace(b"builtins", b"__builtin__"))
    found = read_plain_pickle(tmp_path / "x.pkl")
    assert found["n"] == 5 and found["a"].tolist() == [255]


def nested(depth, copies):
    content = []
    for _ in range(depth):
        content = [content] * copies
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10 * depth + limit)
    try:
        return pickle.dumps({"cids": content})
    finally:
        sys.setrecursionlimit(limit)


def itself():
    content = {}
    content["cids"] = [content]
    return content


# A kind of number that says that numbers are addresses of objects.
FIELDS = {"a": (np.dtype("O"), 0)}
RECORDS = Calls(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), FIELDS, 8, 1, 0))
NAMED_INTS = Calls(np.dtype, "i8", False, True, state=(3, "<", None, ("a",), FIELDS, 8, 1, 0))
RECONSTRUCT = (np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
DUMPED = {
    "numbers as addresses": Calls(np._core.multiarray.scalar, RECORDS, b"A" * 8),
    "an array as addresses": Calls(*RECONSTRUCT, state=(1, (2,), NAMED_INTS, False, b"A" * 16)),
    "records by name": Calls(np.dtype, "i8,O"),
    "a call in an array": np.array([Calls(Path("touched").touch)], dtype=object),
}
BILLIONS = {
    "of numbers": (Calls(*RECONSTRUCT, state=(1, (2**36,), np.dtype("i8"), False, b"A")), "size does not match"),
    "of objects": (Calls(*RECONSTRUCT, state=(1, (2**36,), np.dtype("O"), False, [])), "another size than its content"),
    "of zeros": (Calls(np._core.numeric._frombuffer, 2**36, np.dtype("b1"), (2**36,), "C"), "not a readable"),
}
HOSTILE = {
    **{f"billions {name}": (pickle.dumps({"x": value}, 2), why) for name, (value, why) in BILLIONS.items()},
    **{
        name: (pickle.dumps({"x": value}, 2), "refused .*unsupported (global|class) ") for name, value in DUMPED.items()
    },
    "sets a stand-in's defaults": (
        b"\x80\x02c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__Nstb}.",
        "refused .*object that is given a state",
    ),
    "lists of lists that double": (nested(60, 2), "refused .*nesting"),
    "lists of many lists": (nested(5, 1000), "refused .*nesting"),
    "a list in a list in a list": (nested(500, 1), "refused .*nesting"),
    "holds itself": (pickle.dumps(itself()), "refused .*nesting"),
    "a place for billions": (b"\x80\x02]r\xff\xff\xff\x7f.", "holds a list"),
    "billions of bytes to come": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", "not a readable pickle"),
    "a picture": (b"\x89PNG", "not a readable pickle"),
    "no mapping": (pickle.dumps([1, 2]), "holds a list; expected a mapping"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_broken_pickles_end_in_one_line(case, tmp_path, monkeypatch):
    content, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_plain_pickle(tmp_path / "x.pkl")
    assert "\n" not in str(caught.value) and str(tmp_path / "x.pkl") in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pkl"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"no file {tmp_path}/x.pkl"):
        read_plain_pickle(tmp_path / "x.pkl")

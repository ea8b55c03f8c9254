"""Tables and JSON of one checkpoint, or of two side by side, on several splits."""

import json
from pathlib import Path

import pytest

from minmax.runtime.comparison import compare, file_name, shared_classes
from minmax.runtime.config import MeasuringFlags
from minmax.runtime.errors import UsageError

ONE = MeasuringFlags(checkpoint=Path("b.pt"))
TWO = MeasuringFlags(checkpoint=Path("b.pt"), before=Path("a.pt"))


def measured(config, networks):
    return compare(config, networks, {"day": 1.0, "night": 0.5}, lambda name, network, split: network * split)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_two_checkpoints_stand_side_by_side_split_by_split():
    found = measured(TWO, {"before": 0.2, "checkpoint": 0.4})
    assert found.found == {"before": {"day": 0.2, "night": 0.1}, "checkpoint": {"day": 0.4, "night": 0.2}}
    assert list(found.by_title.items()) == [
        ("day before", 0.2),
        ("day after", 0.4),
        ("night before", 0.1),
        ("night after", 0.2),
    ]
    assert found.of("night", "alone") == {"before": 0.1, "after": 0.2}
    assert found.panels(lambda title, score: (title, score)) == [
        [("day before", 0.2), ("night before", 0.1)],
        [("day after", 0.4), ("night after", 0.2)],
    ]


def test_one_checkpoint_is_called_by_its_splits_alone():
    found = measured(ONE, {"checkpoint": 0.4})
    assert found.by_title == {"day": 0.4, "night": 0.2}
    assert found.of("night", "prediction") == {"prediction": 0.2}


def test_tables_show_counts_as_they_are_shares_in_percent_and_nothing_as_a_dash():
    found = measured(ONE, {"checkpoint": 0.4})
    summary = cells(found.summary(["images", "right %", "none"], lambda score: [7, score, float("nan")]))
    assert summary == [
        ["split", "images", "right %", "none"],
        ["-----", "-----:", "------:", "---:"],
        ["day", "7", "40.0", "-"],
        ["night", "7", "20.0", "-"],
    ]
    by_class = cells(found.by_class("class, %", ("x", "y"), lambda score: [score, float("nan")]))
    assert [by_class[0], *by_class[2:]] == [["class, %", "day", "night"], ["x", "40.0", "20.0"], ["y", "-", "-"]]


def test_what_is_written_is_what_is_printed_and_all_of_it(tmp_path):
    found = measured(TWO, {"before": 0.2, "checkpoint": float("nan")})
    text = found.write(tmp_path, ["A", "B"], {"data": "x"}, lambda split, score: {"of": split, "is": score})
    assert text == "before: a.pt  \nafter: b.pt\n\ndata: x\n\nA\n\nB"
    assert (tmp_path / "results.md").read_text() == text + "\n"
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["data"], results["precision"], results["quick"], results["adabn"]) == ("x", "fp32", False, False)
    assert results["results"]["before"] == {
        "file": "a.pt",
        "day": {"of": "day", "is": 0.2},
        "night": {"of": "night", "is": 0.1},
    }
    assert results["results"]["checkpoint"]["night"] == {"of": "night", "is": None}


def test_networks_of_other_classes_are_not_compared():
    assert shared_classes(TWO, [("x", "y"), ("x", "y")]) == ("x", "y")
    with pytest.raises(UsageError, match="a.pt and b.pt know different classes"):
        shared_classes(TWO, [("x", "y"), ("y", "x")])


def test_titles_become_file_names():
    assert file_name("scenes, day queries") == "scenes--day-queries"
    assert file_name("../a b/", "_") == "a_b"

"""The benchmarks run, in small; what they measure on a quiet machine stands in benchmarks/README.md."""

import json
import os
import subprocess
import sys

import pytest
from script_modules import REPOSITORY, load_module

FOLDER = REPOSITORY / "benchmarks"
FIELDS = {
    "stage",
    "title",
    "ours_seconds",
    "straightforward_seconds",
    "ratio",
    "asked_ratio",
    "asked_seconds",
    "share_of_peak",
    "peak_gflops",
    "peak_memory_gib",
    "threads",
    "machine",
}


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_module("bench", FOLDER / "bench.py")


def test_stages_are_measured_and_merged_into_the_results(tmp_path):
    output = tmp_path / "results.json"
    output.write_text(json.dumps([{"stage": "first-step", "kept": True}, {"stage": "miou", "replaced": True}]))
    command = [sys.executable, FOLDER / "bench.py", "--quick", "--threads", "1", "--output", output]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, "--stage", "miou", "darken-look"], check=True, cwd=tmp_path, env=environment)
    darkened, miou, kept = json.loads(output.read_text())
    assert kept == {"stage": "first-step", "kept": True}
    assert (darkened["stage"], miou["stage"]) == ("darken-look", "miou")
    for record in (darkened, miou):
        assert record.keys() == FIELDS
        assert record["machine"].keys() == {"cpu", "cores", "torch", "date"}
        assert record["ours_seconds"] > 0 and record["threads"] == 1 and record["peak_memory_gib"] > 0.1
        assert record["ratio"] == pytest.approx(record["straightforward_seconds"] / record["ours_seconds"], rel=0.1)
    assert 0 < darkened["share_of_peak"] < 1 and miou["share_of_peak"] is None


def test_forms_that_differ_are_not_timed(bench, monkeypatch):
    monkeypatch.setattr(
        bench.formulation, "count_confusion", lambda predictions, labels: bench.torch.zeros(20, 20).long()
    )
    with pytest.raises(AssertionError, match="not equal"):
        bench.measure("miou", bench.STAGES["miou"], True, 1)


def test_depthwise_filters_are_counted_as_what_they_are(bench, monkeypatch):
    from stages import count_operations

    convolution = bench.torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    images = bench.torch.rand(2, 8, 10, 10, requires_grad=True)
    once = 2 * (2 * 8 * 10 * 10) * 9
    assert count_operations(lambda: convolution(images)) == once
    assert count_operations(lambda: convolution(images).sum().backward()) == 3 * once


def test_the_table_of_the_readme_is_that_of_the_results(bench):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    between = text.partition(bench.MARKERS[0])[2].partition(bench.MARKERS[1])[0]
    records = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert between.strip() == bench.table(records)
    assert {record["stage"] for record in records} <= bench.STAGES.keys()

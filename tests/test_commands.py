"""A chain of scripts, with small scripts in place of the real ones: what is started, resumed, repeated and reported."""

import json
import logging
import subprocess

import pytest

from minmax.runtime import commands
from minmax.runtime.commands import Commands, Job
from minmax.runtime.errors import RunError, UsageError

TRAIN = """
import json, os, pathlib, signal, sys
flags = sys.argv[1:]
given = lambda flag: pathlib.Path(flags[flags.index(flag) + 1])
with open("{log}", "a") as file:
    file.write(json.dumps(["train.py", *flags]) + chr(10))
run = given("--runs") / "task" / given("--name")
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").touch()
if "--silent" in flags:
    sys.exit(5)
print("said on stdout", flush=True)
print("said on stderr", file=sys.stderr, flush=True)
if "--killed" in flags:
    os.kill(os.getpid(), signal.SIGKILL)
if "--fail" in flags:
    for number in range(6):
        print("line", number, file=[sys.stdout, sys.stderr][number % 2], flush=True)
    sys.exit("error: no such thing")
(run / "best.pt").touch()
"""
TEST = """
import json, pathlib, sys
flags = sys.argv[1:]
with open("{log}", "a") as file:
    file.write(json.dumps(["test.py", *flags]) + chr(10))
print("a long table")
print("a warning", file=sys.stderr)
if "--fail" in flags:
    sys.exit(3)
output = pathlib.Path(flags[flags.index("--output") + 1])
output.mkdir(parents=True, exist_ok=True)
found = {{"before": {{}}, "checkpoint": {{"test_day": {{"top1": 0.75}}}}}}
(output / "results.json").write_text(json.dumps({{"results": found}}))
"""
RECIPE = "{day: {jitter: 0.1}, darkener: {}, adapt: {jitter: 0.2}, test: {}}"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A repository with one task; the log holds what was started."""
    path = tmp_path / "log.jsonl"
    path.touch()
    (tmp_path / "task").mkdir()
    for name, source in (("train.py", TRAIN), ("test.py", TEST)):
        (tmp_path / "task" / name).write_text(source.format(log=path.as_posix()))
    monkeypatch.setattr(commands, "REPOSITORY", tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return path


def chain(log, common=("--data", "scenes"), machine=("--threads", "1"), **options):
    return Commands("task", log.parent / "runs", log.parent / "mine.yaml", common, machine, **options)


def is_done(log, name):
    return (log.parent / "runs" / "task" / name / "finished").exists()


def started(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_training_is_started_once_with_all_flags(log):
    runs = log.parent / "runs"
    assert not is_done(log, "day-0")
    assert chain(log).train("train.py", "day-0", "best.pt", "--seed", "7") == runs / "task" / "day-0" / "best.pt"
    given = ["--config", str(log.parent / "mine.yaml"), "--data", "scenes", "--threads", "1", "--seed", "7"]
    assert started(log) == [["train.py", *given, "--name", "day-0", "--runs", str(runs)]]
    assert is_done(log, "day-0") and not is_done(log, "day-1")
    again = chain(log, machine=["--threads", "2"])
    assert again.train("train.py", "day-0", "last.pt", "--seed", "7") == runs / "task" / "day-0" / "last.pt"
    assert len(started(log)) == 1, "a finished training was repeated"
    chain(log).train("train.py", "day-1", "best.pt")
    assert len(started(log)) == 2


@pytest.mark.parametrize(
    ("common", "recipe", "message"),
    [
        ([], RECIPE, "is of `train.py --data scenes`, where `train.py` is asked for"),
        (["--data", "scenes"], RECIPE.replace("0.2", "0.3"), "is of another recipe"),
    ],
)
def test_a_finished_run_of_other_flags_is_not_taken_for_the_one_that_is_asked_for(log, common, recipe, message):
    chain(log).train("train.py", "day", "best.pt")
    (log.parent / "mine.yaml").write_text(recipe)
    with pytest.raises(UsageError) as caught:
        chain(log, common).train("train.py", "day", "best.pt")
    run = log.parent / "runs" / "task" / "day"
    assert str(caught.value) == f"the finished run {run} {message}; choose another --runs, or remove it"
    assert len(started(log)) == 1


def test_a_change_that_a_run_does_not_read_keeps_it(log):
    chain(log).train("train.py", "day", "best.pt")
    (log.parent / "mine.yaml").write_text(RECIPE.replace("0.1", "0.3"))
    moved = Commands("task", (log.parent / "runs").rename(log.parent / "elsewhere"), log.parent / "mine.yaml")
    moved.common = ("--data", "scenes")
    assert moved.train("train.py", "day", "best.pt").is_file() and len(started(log)) == 1


def test_a_training_that_was_stopped_is_resumed(log):
    with pytest.raises(RunError):
        chain(log).train("train.py", "day", "best.pt", "--fail")
    assert not is_done(log, "day")
    assert chain(log).train("train.py", "day", "best.pt").is_file()
    assert ["--resume" in flags for flags in started(log)] == [False, True]
    assert is_done(log, "day")


def test_a_folder_without_a_config_is_started_anew(log):
    (log.parent / "runs" / "task" / "day").mkdir(parents=True)
    chain(log).train("train.py", "day", "best.pt")
    assert "--resume" not in started(log)[0]


@pytest.mark.parametrize(
    ("flag", "quiet", "message"),
    [
        ("--fail", False, "1: its message stands above"),
        ("--fail", True, "1: line 2\nline 3\nline 4\nline 5\nerror: no such thing"),
        ("--killed", False, "-9: its message stands above"),
        ("--killed", True, "-9: said on stdout\nsaid on stderr"),
        ("--silent", True, "5: it said nothing"),
    ],
)
def test_a_failure_shows_what_the_script_said_or_tells_its_last_lines(flag, quiet, message, log, capfd):
    with pytest.raises(RunError) as caught:
        chain(log, quiet=quiet).train("train.py", "day", "best.pt", flag)
    assert str(caught.value) == f"task/train.py ended with exit code {message}"
    out, errors = capfd.readouterr()
    assert quiet == (out == "") == (errors == "")
    assert not is_done(log, "day")


def test_a_quiet_script_that_works_says_nothing(log, capfd):
    chain(log, quiet=True).train("train.py", "day", "best.pt")
    assert capfd.readouterr() == ("", "")
    chain(log).train("train.py", "night", "best.pt")
    assert capfd.readouterr() == ("said on stdout\n", "said on stderr\n")


def test_after_a_failure_nothing_else_is_started(log):
    ours = chain(log)
    ours.train("train.py", "done", "best.pt")
    with pytest.raises(RunError) as first:
        ours.train("train.py", "day", "best.pt", "--fail")
    for start in (lambda: ours.train("train.py", "other", "best.pt"), lambda: ours.test("day", log)):
        with pytest.raises(RunError) as later:
            start()
        assert later.value is first.value
    assert len(started(log)) == 2
    assert ours.train("train.py", "done", "best.pt").is_file(), "what is finished needs no start"


@pytest.mark.parametrize("quiet", [False, True])
def test_what_the_test_finds_is_returned_without_its_table(log, quiet, capfd):
    output = log.parent / "runs" / "task" / "day" / "test"
    found = chain(log, quiet=quiet).test("day", log.parent / "best.pt", "--splits", "test_day")
    assert found == {"test_day": {"top1": 0.75}}
    flags = ["--checkpoint", str(log.parent / "best.pt"), "--output", str(output), "--splits", "test_day"]
    given = ["--config", str(log.parent / "mine.yaml"), "--data", "scenes", "--threads", "1"]
    assert started(log) == [["test.py", *given, *flags]]
    assert capfd.readouterr() == ("", "" if quiet else "a warning\n")


def test_a_test_that_fails_is_a_failure(log):
    with pytest.raises(RunError, match=r"task/test.py ended with exit code 3: its message stands above"):
        chain(log).test("day", log, "--fail")
    with pytest.raises(RunError, match=r"task/test.py ended with exit code 3: a long table\na warning"):
        chain(log, quiet=True).test("day", log, "--fail")


def test_control_c_waits_for_the_script(log, monkeypatch):
    """The terminal tells the script as well; it is given the time to write its checkpoint."""
    waited, wait = [], subprocess.Popen.wait

    def interrupted_once(child, timeout=None):
        waited.append(child)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return wait(child, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted_once)
    with pytest.raises(RunError) as caught:
        chain(log).train("train.py", "day", "best.pt")
    assert str(caught.value) == "stopped; the same command goes on from here"
    assert waited[0].returncode == 0, "the script was left alone"
    assert (log.parent / "runs" / "task" / "day" / "best.pt").is_file()
    assert not is_done(log, "day"), "it may have stopped half-way"


def trainings(ours, *names):
    """Trainings of which each needs the one before."""
    needs = [(), *((name,) for name in names)]
    return [
        Job(name, lambda name=name: ours.train("train.py", name, "best.pt"), needs[i], "train.py", f"{name} titled")
        for i, name in enumerate(names)
    ]


def test_jobs_are_done_in_order_and_what_is_left_is_told(log, caplog):
    caplog.set_level(logging.INFO)
    ours = chain(log)
    ours.train("train.py", "a", "best.pt")
    file = ours.run_of("a") / "finished"
    made = json.loads(file.read_text())
    assert made.pop("seconds") >= 0
    file.write_text(json.dumps(made))  # as before seconds were noted
    jobs = [*trainings(ours, "a", "b"), Job("test b", lambda: 7, ("b",))]
    caplog.clear()
    done = ours.run_jobs(jobs)
    assert list(done) == ["a", "b", "test b"] and done["test b"] == 7
    told = [message.strip() for message in caplog.messages if "$" not in message]
    assert told == ["1 trainings to go, 1 finished", "[2/2] train.py b titled"], "no training has told its time"
    file.write_text(json.dumps(made | {"seconds": 3600}))
    caplog.clear()
    ours.run_jobs(trainings(ours, "a", "c", "d", "e"), 2)
    told = [message.strip() for message in caplog.messages if "titled" in message]
    # Of three hours two trainings at a time make one and a half.
    assert told[0] == "[2/4] train.py c titled, about 1 h 30 min left"


def test_a_stopped_training_tells_no_time(log):
    with pytest.raises(RunError):
        chain(log).train("train.py", "day", "best.pt", "--fail")
    chain(log).train("train.py", "day", "best.pt")
    assert "seconds" not in json.loads((log.parent / "runs" / "task" / "day" / "finished").read_text())

"""Data sets as users have them: links, odd names, broken files, lists and archives that lead out, nights by day."""

import bz2
import gzip
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import action_scripts as action
import cityscapes
import class_folders
import classification_scripts as classification
import clip_sets
import codan
import numpy as np
import place_images
import place_scripts as places_scripts
import pytest
import segmentation_scripts as segmentation
import sfm120k
import street_images
import video_clips
from archive_files import member, tar_of
from class_folders import ImageConfig, open_split
from clip_sets import open_clips
from clips import ClipConfig
from faults import CodeRun, SilentlyWrong, WrittenOutside, fault, files_in, refused, start
from PIL import Image
from place_files import place_picture, write_folders, write_pickle, write_sfm, write_tokyo
from place_images import PlaceConfig
from place_pairs import open_pairs
from retrieval_sets import open_retrieval_sets
from street_images import StreetConfig
from test_checkpoint_faults import hostile_objects, nested
from video_files import save_video

from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.plain_pickle import read_plain_pickle

CLASSES = ("bus", "car")
SPLITS = ("train", "val", "test_day", "test_night")
CLIPS = ("--clips.length", 4, "--clips.size", 32, "--clips.rounds", 1)


def save_picture(file, seed, size=(28, 24)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="jpeg" if file.suffix.lower() in (".jpg", ".jpeg") else "png")


def class_tree(root, classes=CLASSES, count=3):
    for number, split in enumerate(SPLITS):
        for label, name in enumerate(classes):
            for i in range(count):
                save_picture(root / split / name / f"{i}.{('png', 'jpg')[i % 2]}", (number, label, i))
    return root


@pytest.fixture
def tree(tmp_path):
    return class_tree(tmp_path / "data")


def measure_classes(tree, checkpoint, tmp_path, *flags):
    out = tmp_path / "out"
    said = start(
        *(classification.SCRIPTS["test"], "--checkpoint", checkpoint, "--data", tree, "--images.size", 32),
        *("--output", out, *flags),
    )
    results = json.loads((out / "results.json").read_text())["results"] if said.code == 0 else None
    return said, results


# ---------------------------------------------------------------------------------------------- trees of classes

DAY = Path("test_day")


def link(tree, name, target):
    (tree / name).symlink_to(target)


SAME_IMAGES = {
    "a link to its own folder": lambda t: link(t, DAY / "car/car", "../car"),
    "a link to its own folder by its whole path": lambda t: link(t, DAY / "car/again", t / DAY / "car"),
    "two links to their own folder": lambda t: [link(t, DAY / "car" / name, "../car") for name in "ab"],
    "five links to their own folder": lambda t: [link(t, DAY / "car" / name, "../car") for name in "abcde"],
    "two folders that link to each other": lambda t: [
        (t / DAY / "car/a").mkdir(),
        (t / DAY / "car/b").mkdir(),
        link(t, DAY / "car/a/x", "../b"),
        link(t, DAY / "car/b/x", "../a"),
    ],
    "a link that leads to itself": lambda t: link(t, DAY / ".x.jpg", ".x.jpg"),
    "files beside the class folders": lambda t: [save_picture(t / DAY / "stray.jpg", 1), save_picture(t / "x.png", 2)],
    "hidden files": lambda t: [
        (t / DAY / "car" / name).write_bytes(b"x") for name in ("._0.png", ".DS_Store", ".x.jpg")
    ],
    "hidden folders": lambda t: save_picture(t / DAY / ".thumbnails/x.jpg", 1),
    "other files": lambda t: [
        (t / DAY / "car" / name).write_bytes(b"x") for name in ("Thumbs.db", "a.txt", "x.jpg.part")
    ],
    "a folder called like a picture": lambda t: (t / DAY / "car/x.jpg").mkdir(),
    "a pipe called like a picture": lambda t: os.mkfifo(t / DAY / "car/x.jpg"),
    "the class folder itself a link": lambda t: [
        (t / DAY / "car").rename(t / "elsewhere"),
        link(t, DAY / "car", t / "elsewhere"),
    ],
    "the split itself a link": lambda t: [(t / DAY).rename(t / "elsewhere"), link(t, DAY, t / "elsewhere")],
    "upper-case endings": lambda t: [
        file.rename(file.with_suffix(file.suffix.upper())) for file in (t / DAY / "car").iterdir()
    ],
    "folders below a class": lambda t: [
        (t / DAY / "car/deep/er").mkdir(parents=True),
        (t / DAY / "car/0.png").rename(t / DAY / "car/deep/er/0.png"),
    ],
}


@fault(
    *("class folders", "links, hidden files and others among the images", "each image counts once, nothing else does"),
    trials=list(SAME_IMAGES),
)
def test_each_image_once(trial, tree, checkpoint, tmp_path):
    SAME_IMAGES[trial](tree)
    said, results = measure_classes(tree, checkpoint, tmp_path)
    assert said.code == 0, said.out
    counts = {split: results["checkpoint"][split]["count"] for split in ("test_day", "test_night")}
    if counts != {"test_day": 6, "test_night": 6}:
        raise SilentlyWrong(counts)


REFUSED = {
    "an empty class folder": (lambda t: empty(t / DAY / "car"), "holds no images", "car"),
    "a class missing in one split": (lambda t: shutil.rmtree(t / DAY / "car"), "holds the classes bus", "bus, car"),
    "a class too many": (lambda t: save_picture(t / DAY / "cat/0.png", 1), "bus, car, cat", "expected bus, car"),
    "no class folders": (lambda t: [shutil.rmtree(t / DAY / name) for name in CLASSES], "no class folders"),
    "a broken link to a picture": (
        lambda t: link(t, DAY / "car/x.jpg", "/no/disk/x.jpg"),
        "car/x.jpg",
        "not there",
    ),
    "a broken link to a class": (lambda t: link(t, DAY / "cat", "/no/such/disk/cat"), "test_day/cat", "not there"),
    "a link that leads to itself": (lambda t: link(t, DAY / "car/x.jpg", "x.jpg"), "car/x.jpg", "not there"),
    "a class with a link to another": (lambda t: link(t, DAY / "car/more", t / DAY / "bus"), "bus and car at once"),
    "an empty picture": (lambda t: (t / DAY / "car/x.jpg").write_bytes(b""), "test_day/car/x.jpg", "cannot be read"),
    "a text called picture": (lambda t: (t / DAY / "car/x.jpg").write_text("<html>"), "car/x.jpg", "cannot be read"),
    "a class name with a newline": (lambda t: (t / DAY / "car").rename(t / DAY / "c\nar"), "c\\nar", "rename"),
    "a class name that is not UTF-8": (lambda t: rename_bytes(t / DAY / "car", b"c\xe9"), "c\\udce9", "rename"),
    "a class name with a tab": (lambda t: (t / DAY / "car").rename(t / DAY / "c\tar"), "c\\tar", "rename"),
}


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def rename_bytes(path, name):
    path.rename(path.with_name(os.fsdecode(name)))


@fault(
    *("class folders", "that hold something else than images of their class", "refused, named"), trials=list(REFUSED)
)
def test_refused_tree(trial, tree, checkpoint, tmp_path):
    harm, *words = REFUSED[trial]
    harm(tree)
    said, _ = measure_classes(tree, checkpoint, tmp_path)
    refused(said, *(words if trial not in LISTED_BELOW else ["cannot be read"]))
    assert all(word in said.out for word in words)


LISTED_BELOW = ("an empty picture", "a text called picture")  # each on a line of its own
NAMES = (
    "my cars",
    "車",
    "Ça alors",
    "-rf",
    "--data",
    "$HOME",
    "$\\frac{1}$",
    "a|b",
    "*",
    "'\"",
    "x" * 250,
    "#1",
    "%s",
    "{}",
)


@fault(
    *("class folders", "class names with spaces, signs, other scripts or 250 letters", "trained on and measured"),
    trials=list(NAMES),
)
def test_class_names(trial, tmp_path):
    tree, runs = class_tree(tmp_path / "data", (trial, "other")), tmp_path / "runs"
    flags = ("--data", tree, "--runs", runs, "--quick", "--optim.batch-size", 2, "--optim.epochs", 1)
    said = start(classification.SCRIPTS["train_day"], *flags, "--model", "shufflenet_v2_x0_5")
    assert said.code == 0, said.out
    said, results = measure_classes(tree, runs / "classification/day/best.pt", tmp_path)
    assert said.code == 0, said.out
    assert trial in results["checkpoint"]["test_night"]["per_class"]
    assert trial in (tmp_path / "out/results.md").read_text() and (tmp_path / "out/confusion.png").is_file()


# ------------------------------------------------------------------------------------------------ names of files

FILE_NAMES = {
    "not UTF-8": b"caf\xe9",
    "250 bytes": b"n" * 246,
    "a colon": b"12:30",
    "a newline": b"a\nb",
    "a dash": b"-rf",
    "a dollar": b"$x$_$\\frac$",
    "another script": "車".encode(),
    "spaces": b" a  b ",
    "escapes": b"\x1b[31mred\r",
    "a percent": b"%s%d",
}
MEASURED = ("classification", "places", "actions", "segmentation")


def odd_tree(task, root, name):
    """A data set with one file of that name, the script that measures it and its flags."""
    if task == "classification":
        class_tree(root)
        for split in SPLITS:
            rename_bytes(root / split / "car/0.png", name + b".png")
        return classification.SCRIPTS["test"], ["--data", root, "--images.size", 32]
    if task == "places":
        write_folders(root, 2)
        rename_bytes(root / "test/place0/night/0.jpg", name + b".jpg")
        rename_bytes(root / "test/place0/day/0.jpg", name + b".jpg")
        return places_scripts.SCRIPTS["test"], ["--data", root, "--images.size", 48]
    if task == "actions":
        for split in ("test_day", "test_night"):
            for label in ("Run", "Sit"):
                save_video(root / split / label / "x.mp4", frames=4)
            rename_bytes(root / split / "Run/x.mp4", name + b".mp4")
        return action.SCRIPTS["test"], ["--data", root, *CLIPS]
    name = name[: 250 - len("_gtFine_labelIds.png")]
    streets(root, 2)
    for kind, ending in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png")):
        rename_bytes(root / kind / "val/ulm" / f"0{ending}", name + ending.encode())
    return segmentation.SCRIPTS["test"], ["--data", root, "--images.size", 32, 48]


def streets(root, count=2, splits=("train", "val")):
    for split in splits:
        for i in range(count):
            save_street(root, split, i)
    return root


def save_street(root, split, i, ids=None):
    save_picture(root / "leftImg8bit" / split / "ulm" / f"{i}_leftImg8bit.png", (len(split), i), (64, 48))
    labels = root / "gtFine" / split / "ulm" / f"{i}_gtFine_labelIds.png"
    labels.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((48, 64), 7, np.uint8)
    pixels[:20] = 23
    if ids is not None:
        for row, label_id in enumerate(ids):
            pixels[row :: len(ids)] = label_id
    Image.fromarray(pixels).save(labels)


@pytest.fixture(scope="session")
def networks(checkpoint, segmenter, recogniser):
    return {"classification": checkpoint, "segmentation": segmenter, "places": checkpoint, "actions": recogniser}


@fault(
    *("names of files", "bytes that are no text, line breaks, 250 letters, signs", "measured; every report is written"),
    trials=[(task, name) for task in MEASURED for name in FILE_NAMES],
)
def test_file_names(trial, networks, tmp_path):
    task, name = trial
    module, flags = odd_tree(task, tmp_path / "data", FILE_NAMES[name])
    before = () if task == "segmentation" else ("--before", networks[task])
    said = start(module, *flags, "--checkpoint", networks[task], *before, "--output", tmp_path / "out")
    assert said.code == 0, said.out
    (tmp_path / "out/results.md").read_text(encoding="utf-8")
    json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    said.out.encode("utf-8")
    for file in (tmp_path / "out").rglob("*.txt"):
        assert all(line.isprintable() for line in file.read_text(encoding="utf-8").splitlines())


@fault(
    *("names of files", "of training images", "trained; the run's log and pictures are written"),
    trials=list(FILE_NAMES),
)
def test_file_names_in_training(trial, networks, tmp_path):
    odd_tree("classification", tmp_path / "data", FILE_NAMES[trial])
    flags = ("--data", tmp_path / "data", "--runs", tmp_path / "runs", "--quick", "--optim.batch-size", 2)
    flags = (*flags, "--checkpoint", networks["classification"], "--night.source", "gamma", "--optim.epochs", 1)
    said = start(classification.SCRIPTS["train"], *flags)
    assert said.code == 0, said.out
    (tmp_path / "runs/classification/adapt/log.txt").read_text(encoding="utf-8")


@fault(
    *("names of files", "a data folder whose name is no text", "measured, or refused in one line"),
    trials=[(task, name) for task in MEASURED for name in ("not UTF-8", "a newline", "a dollar", "a dash")],
)
def test_folder_names(trial, networks, tmp_path):
    task, name = trial
    module, _ = odd_tree(task, tmp_path / "data", b"x")
    target = tmp_path / os.fsdecode(b"d" + FILE_NAMES[name])
    (tmp_path / "data").rename(target)
    flags = [
        "--data",
        target,
        *(CLIPS if task == "actions" else ["--images.size", *([32, 48] if task == "segmentation" else [48])]),
    ]
    said = start(module, *flags, "--checkpoint", networks[task], "--output", tmp_path / "out")
    assert said.code in (0, 2), said.out
    if said.code == 0:
        (tmp_path / "out/results.md").read_text(encoding="utf-8")
        json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------- videos


def normal_light(root, darker=1, prefix="NormalLight", count=4):
    """The layout of NormalLight and ARID, with lists."""
    lists = root / "raw/list_cvt"
    lists.mkdir(parents=True)
    for part, names in (("train", "abcd"[:count]), ("test", "n")):
        rows = []
        for label, name in enumerate(("Run", "Sit")):
            for i in names:
                path = f"{name}/{name}_{i}.avi"
                dim = 8 if part == "test" else darker
                save_video(root / "raw/data" / path, frames=6, height=16, width=24, darker=dim)
                rows.append(f"{len(rows)}\t{label}\t{path}\n")
        (lists / f"{prefix}_split1_{part}.txt").write_text("".join(rows))
    return root


def train_actions(data, tmp_path, recogniser, script="train"):
    flags = ["--data", data, "--runs", tmp_path / "runs", "--workers", 0, "--optim.epochs", 1, "--optim.batch-size", 2]
    flags += ["--clips.length", 4, "--clips.interval", 1, "--clips.size", 32, "--clips.validation", 0.3]
    more = ["--checkpoint", recogniser, "--night.source", "gamma"] if script == "train" else action.SMALL
    return start(action.SCRIPTS[script], *flags, *more)


ARID = {
    "a folder ARID with its own lists": lambda r: normal_light(r / "ARID", 8, "ARID"),
    "a folder ARID whose videos were brightened": lambda r: normal_light(r / "ARID", 1, "ARID"),
    "a folder arid_v1.5": lambda r: normal_light(r / "arid_v1.5", 8),
    "a link to ARID": lambda r: [normal_light(r / "ARID", 8), (r / "data").symlink_to(r / "ARID")] and r / "data",
    "dark videos under another name": lambda r: normal_light(r / "mine", 8, "mine"),
    "dark videos without lists": lambda r: (
        [
            normal_light(r / "mine", 8),
            shutil.rmtree(r / "mine/raw/list_cvt"),
        ]
        and r / "mine"
    ),
    "ARID without lists": lambda r: (
        [normal_light(r / "ARID", 8), shutil.rmtree(r / "ARID/raw/list_cvt")] and r / "ARID"
    ),
}


@fault(
    *("zero-shot", "ARID's own lists, or dark videos, as training data", "refused, with what to give instead"),
    trials=[(case, script) for case in ARID for script in ("train", "train_day")],
)
def test_arid(trial, recogniser, tmp_path):
    case, script = trial
    data = ARID[case](tmp_path)
    refused(train_actions(data, tmp_path, recogniser, script), "zero-shot", "NormalLight")
    assert not list(tmp_path.glob("runs/*/*/best.pt"))


@fault(
    *("zero-shot", "ARID's lists to be measured, NormalLight's to train on", "measured; trained"),
    trials=["measured", "night of its own", "trained"],
)
def test_arid_by_night(trial, videos, recogniser, tmp_path):
    data = normal_light(tmp_path / ("NormalLight" if trial == "trained" else "ARID"), 1, "ARID")
    if trial == "trained":
        assert train_actions(data, tmp_path, recogniser).code == 0
        return
    where = ("--data", data) if trial == "measured" else ("--data", videos, "--night", data)
    said = start(action.SCRIPTS["test"], "--checkpoint", recogniser, *where, *CLIPS, "--output", tmp_path / "out")
    assert said.code == 0, said.out
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]["checkpoint"]
    assert results["test_night"]["count"] == 2


OUTWARD = {
    "../": "Sit/../../../../../secret.avi",
    "../ at the start": "../../../secret.avi",
    "an absolute path": "ABSOLUTE",
    "a link to a file outside": "Sit/link.avi",
    "a link to a folder outside": "Sit/out/secret.avi",
    "a zero byte": "Sit/a\0b.avi",
}


@fault(
    *("lists", "of videos that lead out of the data folder", "refused, the list and the path named"),
    trials=[(case, split) for case in OUTWARD for split in ("train", "test_night")],
)
def test_list_leads_out(trial, tmp_path):
    case, split = trial
    root = normal_light(tmp_path / "deep/er/data", count=2)
    secret = save_video(tmp_path / "secret.avi", frames=6)
    (tmp_path / "outside").mkdir()
    save_video(tmp_path / "outside/secret.avi", frames=6)
    (root / "raw/data/Sit/link.avi").symlink_to(secret)
    (root / "raw/data/Sit/out").symlink_to(tmp_path / "outside")
    file = root / f"raw/list_cvt/NormalLight_split1_{'train' if split == 'train' else 'test'}.txt"
    path = str(secret) if OUTWARD[case] == "ABSOLUTE" else OUTWARD[case]
    file.write_text(file.read_text() + f"9\t1\t{path}\n")
    with pytest.raises(UsageError, match="leads out") as told:
        open_clips(str(root), split, ClipConfig(4, 1, 32, validation=0.4), cache=tmp_path / "runs")
    assert file.name in str(told.value) and "\n" not in str(told.value)


BAD_LINES = ["9\t1", "x", "9\tone\tSit/Sit_a.avi", "9\t-1\tSit/Sit_a.avi", "9\t99999999999999999999\tSit/Sit_a.avi"]
BAD_LINES += ["9\t1\t" + "x" * 5000 + ".avi", "9\t1\t", "9\t1\tSit", "9\t0\tSit/Sit_a.avi", "\ufeff9\t1\tgone.avi"]
BAD_LINES += ["9\t1\tgone.avi", "9 1 Sit/Sit_a.avi", "9\t1\tRun/Run_a.avi", b"9\t1\tcaf\xe9.avi"]


@fault(*("lists", "of videos with a bad line", "refused in one line, the list named"), trials=range(len(BAD_LINES)))
def test_bad_line(trial, tmp_path):
    root = normal_light(tmp_path / "data", count=1)
    file = root / "raw/list_cvt/NormalLight_split1_train.txt"
    line = BAD_LINES[trial]
    file.write_bytes(file.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(UsageError) as told:
        open_clips(str(root), "train", ClipConfig(4, 1, 32), cache=tmp_path / "runs")
    assert "train.txt" in str(told.value) and "\n" not in str(told.value) and len(str(told.value)) < 1000


# --------------------------------------------------------------------------------------------- lists of places

SFM_HARMS = {
    "cids": [None, 5, "abc", {}, [1, 2], ["../../../x"] * 24, ["/etc/passwd"] * 24, [None] * 24, ["a" * 5000] * 24, []],
    "qidxs": [None, 3, ["x"], [10**30], [-1], [1.5], [float("nan")], [float("inf")], [True], [[1]], {"a": 1}],
    "pidxs": [[10**6] * 16, [-5] * 16, [None] * 16, [0]],
    "cluster": [[10**30] * 24, ["a"] * 24, [1.5] * 24, [0], nested(60)],
}


@fault(
    *("lists", "of places with wrong types, lengths or numbers", "refused in one line, the list named"),
    trials=[(key, i) for key, values in SFM_HARMS.items() for i in range(len(values))],
)
def test_sfm_list(trial, tmp_path, monkeypatch):
    key, number = trial
    file = write_sfm(tmp_path, places=8) / "retrieval-SfM-120k.pkl"
    lists = read_plain_pickle(file)
    lists["train"][key] = SFM_HARMS[key][number]
    write_pickle(lists, file)
    with pytest.raises(UsageError) as told:
        open_pairs(str(tmp_path), "train", PlaceConfig(), cache=tmp_path / "runs")
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000


ANSWERS = [None, 5, [], {}, {"ok": 1}, {"ok": ["x"]}, {"ok": [99]}, {"ok": [-1]}, {"ok": [10**30]}, {"ok": [0.5]}]
ANSWERS += [{"ok": [float("inf")]}, {"ok": [float("nan")]}, {"ok": "01"}, {"ok": [0], "junk": [0]}, {"ok": [True]}]
ANSWERS += [{"ok": [0], "bbx": box} for box in ("1234", [1, 2], [5, 5, 1, 1], [0, 0, float("inf"), 9], [None] * 4, 7)]
ANSWERS += [{"ok": [0], "bbx": [float("nan")] * 4}, {"ok": [0], "bbx": [0, 0, 10**400, 5]}]


@fault(*("lists", "of queries with impossible answers", "refused in one line"), trials=range(len(ANSWERS)))
def test_answers(trial, tmp_path):
    file = write_tokyo(tmp_path) / "gnd_247tokyo1k.pkl"
    lists = read_plain_pickle(file)
    lists["gnd"][1] = ANSWERS[trial]
    write_pickle(lists, file)
    with pytest.raises(UsageError, match="gnd_247tokyo1k.pkl, query 1") as told:
        open_retrieval_sets(str(tmp_path), PlaceConfig(), cache=tmp_path / "runs")
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000


OUT_NAMES = [
    "../../../secret",
    "/etc/hosts",
    "a/../../../secret",
    "link",
    "out/secret",
    "",
    ".",
    5,
    None,
    b"x",
    "n" * 5000,
]


@fault(
    *("lists", "of places whose images lead out of their folder", "refused"),
    trials=[(column, i) for column in ("imlist", "qimlist") for i in range(len(OUT_NAMES))],
)
def test_places_lead_out(trial, tmp_path):
    column, number = trial
    folder = write_tokyo(tmp_path / "deep/data")
    place_picture(tmp_path / "outside/secret.jpg", 1, 1)
    (folder / "jpg/link.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (folder / "jpg/out").symlink_to(tmp_path / "outside")
    file = folder / "gnd_247tokyo1k.pkl"
    lists = read_plain_pickle(file)
    lists[column][1] = OUT_NAMES[number]
    write_pickle(lists, file)
    with pytest.raises(UsageError) as told:
        open_retrieval_sets(str(tmp_path / "deep/data"), PlaceConfig(), cache=tmp_path / "runs")
    assert len(str(told.value)) < 1500


@fault(
    *("lists", "of places that would run code when they are unpickled", "refused as such; no code runs"),
    trials=[(kind, name) for kind in ("train", "test") for name in hostile_objects(Path("x"))],
)
def test_place_code(trial, checkpoint, tmp_path):
    kind, name = trial
    canary = tmp_path / "canary"
    hostile = hostile_objects(canary)[name]
    if kind == "train":
        file, script = write_sfm(tmp_path, 2) / "retrieval-SfM-120k.pkl", "train"
        flags = ("--runs", tmp_path / "runs")
        write_pickle({"train": {"cids": hostile}, "val": {}}, file)
    else:
        file, script, flags = write_tokyo(tmp_path) / "gnd_247tokyo1k.pkl", "test", ("--output", tmp_path / "out")
        write_pickle({"imlist": ["a"], "qimlist": ["b"], "gnd": [hostile]}, file)
    said = start(places_scripts.SCRIPTS[script], "--checkpoint", checkpoint, "--data", tmp_path, *flags)
    if canary.exists():
        raise CodeRun(name)
    refused(said, file, "refused")


# ------------------------------------------------------------------------------------------------ segmentation


def measure_streets(root, segmenter, tmp_path, *flags):
    flags = ("--data", root, "--images.size", 32, 48, "--output", tmp_path / "out", *flags)
    return start(segmentation.SCRIPTS["test"], "--checkpoint", segmenter, *flags)


TRAIN_IDS = ([0, 1, 2, 8, 10, 13, 255], [0, 2, 255], [0, 10], [0, 1, 2, 5, 18], [255], list(range(19)))


@fault(
    *("labels of streets", "train ids under the name of label ids", "refused; what is expected is named"),
    trials=[(i, flag) for i in range(len(TRAIN_IDS)) for flag in ("data", "night")],
)
def test_train_ids(trial, segmenter, tmp_path):
    number, flag = trial
    for i in range(3):
        save_street(tmp_path / "odd", "val", i, TRAIN_IDS[number])
    streets(tmp_path / "right", 1, ("val",))
    where = ("odd", "right") if flag == "data" else ("right", "odd")
    said = measure_streets(tmp_path / where[0], segmenter, tmp_path, "--night", tmp_path / where[1])
    refused(said, "train ids", "label ids", tmp_path / "odd")


VOID_IDS = ([7, 23, 255], [7, 8, 11, 21, 23, 26, 0, 255], [33, 255], [24, 255, 0, 1])


@fault(
    *("labels of streets", "255 for void among label ids", "measured; 255 counts as void"),
    trials=range(len(VOID_IDS)),
)
def test_void_as_255(trial, segmenter, tmp_path):
    save_street(tmp_path / "data", "val", 0, VOID_IDS[trial])
    said = measure_streets(tmp_path / "data", segmenter, tmp_path, "--labels", "full")
    assert said.code == 0, said.out
    (scores,) = json.loads((tmp_path / "out/results.json").read_text())["results"].values()
    confusion = scores["data, val"]["confusion"]
    void = sum(label_id in (0, 1, 255) for label_id in VOID_IDS[trial])
    rows = [(len(range(row, 48, len(VOID_IDS[trial])))) for row, i in enumerate(VOID_IDS[trial]) if i in (0, 1, 255)]
    if sum(confusion[19]) != 64 * sum(rows) or not void:
        raise SilentlyWrong(f"{sum(confusion[19])} void pixels, expected {64 * sum(rows)}")


def spoil_labels(kind, file):
    image = Image.open(file)
    ids = np.array(image)
    if kind == "missing":
        file.unlink()
    elif kind == "another size":
        image.resize((32, 24), Image.Resampling.NEAREST).save(file)
    elif kind == "turned":
        image.transpose(Image.Transpose.ROTATE_90).save(file)
    elif kind == "16 bits":
        Image.fromarray(ids.astype(np.uint16)).save(file)
    elif kind == "unknown ids":
        Image.fromarray(ids + 100).save(file)
    elif kind == "text":
        file.write_text("labels")
    else:
        image.convert(kind).save(file)


LABELS = {
    **{kind: f"{kind} pixels" for kind in ("RGB", "RGBA", "LA", "1")},
    **{"16 bits": "pixels", "another size": "different sizes", "turned": "different sizes"},
    **{"unknown ids": "holds the ids", "missing": "without labels", "text": "0_gtFine_labelIds.png"},
}


@fault(*("labels of streets", "colours, 16 bits, other sizes, none", "refused, the file named"), trials=list(LABELS))
def test_labels(trial, segmenter, tmp_path):
    root = streets(tmp_path / "data", 2, ("val",))
    spoil_labels(trial, root / "gtFine/val/ulm/0_gtFine_labelIds.png")
    said = measure_streets(root, segmenter, tmp_path)
    assert said.code == 2 and LABELS[trial] in said.out and "0_gtFine_labelIds.png" in said.out, said.out


@fault(
    *("labels of streets", "streets darkened by another program, in folders of cities", "trained; paired by name"),
    trials=["as the authors", "flat", "at the size of training", "one missing", "one twice", "the day itself"],
)
def test_darkened_elsewhere(trial, segmenter, tmp_path):
    root, dark = streets(tmp_path / "data", 4), tmp_path / "darkened"
    shutil.copytree(root / "leftImg8bit/train", dark)
    if trial == "flat":
        for file in list(dark.rglob("*.png")):
            file.rename(dark / file.name)
    elif trial == "at the size of training":
        for file in dark.rglob("*.png"):
            Image.open(file).resize((48, 32)).save(file)
    elif trial == "one missing":
        next(dark.rglob("*.png")).unlink()
    elif trial == "one twice":
        file = next(dark.rglob("*.png"))
        shutil.copy(file, dark / file.name)
    flags = ("--data", root, "--runs", tmp_path / "runs", "--images.size", 32, 48, "--optim.batch-size", 2)
    dark = root / "leftImg8bit/train" if trial == "the day itself" else dark
    flags = (*flags, "--checkpoint", segmenter, "--darkened", dark, "--workers", 0, "--optim.epochs", 1)
    said = start(segmentation.SCRIPTS["train"], *flags)
    if trial.startswith(("one", "the day")):
        refused(said, "--darkened", "_leftImg8bit.png")
    else:
        assert said.code == 0, said.out


# ------------------------------------------------------------------------------- broken files in every layout


def layout(name, root):
    """A file of a data set, and what opens the set."""
    runs = root.parent / "runs"
    if name == "class folders":
        class_tree(root)
        return root / "val/car/1.jpg", lambda: open_split(str(root), "val", ImageConfig(32), cache=runs)
    if name in ("streets", "labels"):
        streets(root)
        file = "gtFine/val/ulm/1_gtFine_labelIds.png" if name == "labels" else "leftImg8bit/val/ulm/1_leftImg8bit.png"
        return root / file, lambda: cityscapes.open_streets(str(root), "val", StreetConfig((32, 48)), cache=runs)
    if name in ("SfM's images", "SfM's list"):
        folder = write_sfm(root, 2)
        image = sorted(file for file in (folder / "ims").rglob("*") if file.is_file())[0]
        file = image if name == "SfM's images" else folder / "retrieval-SfM-120k.pkl"
        return file, lambda: open_pairs(str(root), "train", PlaceConfig(), cache=runs)
    if name in ("Tokyo's images", "Tokyo's list"):
        folder = write_tokyo(root, 2)
        file = folder / ("jpg/night1.jpg" if name == "Tokyo's images" else "gnd_247tokyo1k.pkl")
        return file, lambda: open_retrieval_sets(str(root), PlaceConfig(), cache=runs)
    if name == "folders of places":
        write_folders(root, 2)
        return root / "train/place0/day/1.jpg", lambda: open_pairs(str(root), "train", PlaceConfig(), cache=runs)
    config = ClipConfig(4, 1, 32, validation=0.4)
    if name == "videos":
        for label in ("Run", "Sit"):
            save_video(root / "val" / label / "x.mp4", frames=9)
        return root / "val/Run/x.mp4", lambda: open_clips(str(root), "val", config, cache=runs)
    normal_light(root, count=2)
    return root / "raw/list_cvt/NormalLight_split1_train.txt", lambda: open_clips(
        str(root), "train", config, cache=runs
    )


LAYOUTS = ("class folders", "streets", "labels", "SfM's images", "SfM's list", "Tokyo's images", "Tokyo's list")
LAYOUTS += ("folders of places", "videos", "lists of videos")


@fault(
    *("broken files", "one that ends too early, in every layout", "refused, named; a cut at the very end may be read"),
    trials=[(name, seed) for name in LAYOUTS for seed in range(4)],
)
def test_cut(trial, tmp_path):
    name, seed = trial
    file, opened = layout(name, tmp_path / "data")
    whole = file.read_bytes()
    # The last bytes of a picture may be its comment's, those of a text a line that is whole.
    file.write_bytes(whole[: random.Random(seed).randrange(len(whole) * 3 // 4)])
    try:
        opened()
    except UsageError as error:
        assert file.name in str(error) or "lists of videos" in name, error
    else:
        if name != "lists of videos":  # a list may be cut at the end of a line
            raise SilentlyWrong(f"{file} cut to {file.stat().st_size} of {len(whole)} bytes was taken")


@fault(
    *("broken files", "one byte is another, in every layout", "refused, named, or read as data"),
    trials=[(name, seed) for name in LAYOUTS for seed in range(4)],
)
def test_changed(trial, tmp_path):
    name, seed = trial
    file, opened = layout(name, tmp_path / "data")
    content, drawn = bytearray(file.read_bytes()), random.Random(seed)
    content[drawn.randrange(len(content))] ^= 1 + drawn.randrange(255)
    file.write_bytes(content)
    try:
        opened()
    except UsageError as error:
        assert str(tmp_path / "data") in str(error)


@fault(
    *("broken files", "fewer than the share that may be left out", "measured without them; they are named"),
    trials=[("classification", seed) for seed in range(4)] + [("actions", seed) for seed in range(4)],
)
def test_left_out(trial, networks, tmp_path, caplog):
    task, seed = trial
    module, flags = odd_tree(task, tmp_path / "data", b"odd")
    file = next((tmp_path / "data/test_day").rglob("odd.*"))
    file.write_bytes(file.read_bytes()[: random.Random(seed).randrange(100)])
    flag = "--clips.skip-corrupt" if task == "actions" else "--images.skip-corrupt"
    out = ("--output", tmp_path / "out")
    refused(start(module, *flags, "--checkpoint", networks[task], *out), "cannot be read", flag)
    said = start(module, *flags, "--checkpoint", networks[task], *out, flag, 0.5)
    assert said.code == 0, said.out
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]["checkpoint"]
    assert results["test_day"]["count"] == results["test_night"]["count"] - 1
    assert "left out 1 unreadable" in caplog.text and file.name in caplog.text


VANISHES = {
    "classification": (class_folders, "find_problems", "test_night/car/odd.png"),
    "places": (place_images, "find_problems", "test/place0/night/odd.jpg"),
    "actions": (video_clips, "count_all", "test_night/Run/odd.mp4"),
    "segmentation": (street_images, "find_problems", "gtFine/val/ulm/odd_gtFine_labelIds.png"),
}


@fault(
    *("broken files", "one that vanishes between check and use, or before the check", "one line that names it"),
    trials=[(task, when) for when in ("before the check", "after the check") for task in sorted(MEASURED)],
)
def test_vanishes(trial, networks, tmp_path, monkeypatch):
    task, when = trial
    module, flags = odd_tree(task, tmp_path / "data", b"odd")
    owner, check, lost = VANISHES[task]
    lost = tmp_path / "data" / lost
    assert lost.is_file()
    seen = []
    fingerprint, checked = owner.fingerprint_files, getattr(owner, check)

    def see_or_lose(files, *rest):
        files = list(files)
        if lost in files:
            seen.append(lost)
            if when == "before the check":
                lost.unlink(missing_ok=True)
        return fingerprint(files, *rest)

    def then_lose(*arguments):
        found = checked(*arguments)
        if seen:
            lost.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(owner, "fingerprint_files", see_or_lose)
    if when == "after the check":
        monkeypatch.setattr(clip_sets if task == "actions" else owner, check, then_lose)
    said = start(module, *flags, "--checkpoint", networks[task], "--output", tmp_path / "out")
    refused(said, "odd", "any more", code=1)


# ----------------------------------------------------------------------------------------------------- archives


def pictures(split):
    return {f"{split}/{name}/{i}.jpg": os.urandom(60) for name in codan.CODAN_CLASSES for i in range(2)}


def pack(kind, *members):
    """An archive of the kind, whole but for `members`."""
    if kind == "CODaN":
        return bz2.compress(tar_of(*members, files=pictures("val")))
    return gzip.compress(tar_of(*members, files={f"ef/cd/ab/{i}abcdef": os.urandom(60) for i in range(12)}))


def unpack(kind, packed, folder):
    """Unpack the bytes of an archive into folder/data; the folders that were made."""
    folder.mkdir(exist_ok=True)
    if kind == "CODaN":
        (folder / "codan_val.tar.bz2").write_bytes(packed)
        codan.main(codan.Config(archives=folder, output=folder / "data"))
    else:
        (folder / sfm120k.ARCHIVE).write_bytes(packed)
        sfm120k.unpack(folder / sfm120k.ARCHIVE, folder / "data/ims")
    return folder / "data"


def assert_recovers(kind, packed, folder):
    """A broken archive leaves nothing and ends in one line; the second run, with a whole one, completes."""
    with pytest.raises(RunError) as told:
        unpack(kind, packed, folder)
    assert "\n" not in str(told.value)
    archive = "codan_val.tar.bz2" if kind == "CODaN" else sfm120k.ARCHIVE
    left = {name for name in files_in(folder.parent) if name.name not in (archive, "outside.txt")}
    if left:
        raise WrittenOutside(sorted(map(str, left)))
    count = len(files_in(unpack(kind, pack(kind), folder)))
    assert count == (20 if kind == "CODaN" else 12)


@fault(
    *("archives", "one that ends too early, cut at any byte", "nothing is unpacked; the next run completes"),
    trials=[(kind, seed) for kind in ("CODaN", "SfM") for seed in range(12)],
)
def test_archive_cut(trial, tmp_path):
    kind, seed = trial
    packed = pack(kind)
    assert_recovers(kind, packed[: random.Random(seed).randrange(len(packed))], tmp_path / "here")


@fault(
    *("archives", "one byte is another", "nothing is unpacked, or all of it; nothing outside"),
    trials=[(kind, seed) for kind in ("CODaN", "SfM") for seed in range(12)],
)
def test_archive_changed(trial, tmp_path):
    kind, seed = trial
    packed, drawn = bytearray(pack(kind)), random.Random(seed)
    packed[drawn.randrange(len(packed))] ^= 1 + drawn.randrange(255)
    try:
        made = unpack(kind, packed, tmp_path / "here")
    except RunError as error:
        assert "\n" not in str(error)
        assert_recovers(kind, packed, tmp_path / "here")
    else:  # of gzip's header, which says nothing of what is inside
        assert len(files_in(made)) == (20 if kind == "CODaN" else 12)


LEADING_OUT = {
    "a path with ../": [member("val/../../../escaped.jpg", b"x"), member("../../xx/0abcde", b"x")],
    "an absolute path": [member("/etc/val/Car/escaped.jpg", b"x")],
    "a hard link outside": [member("val/Car/x.jpg", kind=tarfile.LNKTYPE, linkname="../outside.txt")],
    "a link to walk through": [
        member("val/Car/up", kind=tarfile.SYMTYPE, linkname="../../.."),
        member("val/Car/up/escaped.jpg", b"x"),
    ],
}
ODD_MEMBERS = {
    "a symbolic link": [member("val/Car/x.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "a hard link": [member("val/Car/x.jpg", kind=tarfile.LNKTYPE, linkname="val/Car/0.jpg")],
    "a device": [member("val/Car/x.jpg", kind=tarfile.CHRTYPE)],
    "a pipe": [member("val/Car/x.jpg", kind=tarfile.FIFOTYPE)],
    "a bomb of zeros": [member(f"val/Car/b{i}.jpg", bytes(2**21)) for i in range(20)],
    "a file where a folder is": [member("val/Car", b"x")],
}


@fault(
    *("archives", "members that lead out of the folder", "nothing is written outside; the next run completes"),
    trials=[(kind, case) for kind in ("CODaN", "SfM") for case in LEADING_OUT],
)
def test_archive_leads_out(trial, tmp_path):
    kind, case = trial
    check_hostile(kind, case, LEADING_OUT[case], tmp_path)


@fault(
    *("archives", "links, devices, pipes, bombs", "nothing is written outside; the next run completes"),
    trials=[(kind, case) for case in ODD_MEMBERS for kind in ("CODaN", "SfM")],
)
def test_archive_odd(trial, tmp_path):
    kind, case = trial
    check_hostile(kind, case, ODD_MEMBERS[case], tmp_path)


def check_hostile(kind, case, members, tmp_path):
    (tmp_path / "outside.txt").write_text("mine")
    packed = pack(kind, *members)
    try:
        made = unpack(kind, packed, tmp_path / "here")
    except RunError as error:
        assert "\n" not in str(error)
        assert_recovers(kind, packed, tmp_path / "here")
    else:
        inside = {name for name in files_in(made) if not (made / name).resolve().is_relative_to(made.resolve())}
        if inside or any(file.is_symlink() for file in made.rglob("*")):
            raise WrittenOutside(inside)
    assert (tmp_path / "outside.txt").read_text() == "mine"
    if list(tmp_path.rglob("escaped*")) and "absolute" not in case:
        raise WrittenOutside(list(tmp_path.rglob("escaped*")))


# ---------------------------------------------------------------------------------------------------- zero-shot

NIGHTS = {
    "the split is a link": lambda t: [shutil.rmtree(t / "train"), (t / "train").symlink_to("test_night")],
    "a class is a link": lambda t: [shutil.rmtree(t / "train/car"), link(t, "train/car", t / "test_night/car")],
    "a class holds a link": lambda t: link(t, "train/car/more", t / "test_night/car"),
    "one picture is a link": lambda t: link(t, "train/car/x.png", t / "test_night/car/0.png"),
    "one picture is a hard link": lambda t: os.link(t / "test_night/car/0.png", t / "train/car/x.png"),
    "one picture is a copy": lambda t: shutil.copy(t / "test_night/car/0.png", t / "train/car/x.png"),
    "all are copies": lambda t: [shutil.rmtree(t / "train"), shutil.copytree(t / "test_night", t / "train")],
    "validation is a link": lambda t: [shutil.rmtree(t / "val"), (t / "val").symlink_to("test_night")],
    "validation holds a copy": lambda t: shutil.copy(t / "test_night/car/0.png", t / "val/car/x.png"),
    "the night is a link to train": lambda t: [shutil.rmtree(t / "test_night"), link(t, "test_night", "train")],
}


@fault(
    *("zero-shot", "night images in train or val, by links or as copies", "refused before training; a file is named"),
    trials=[(case, script) for case in NIGHTS for script in ("train", "train_day", "train_darkener")],
)
def test_nights_by_day(trial, tree, checkpoint, tmp_path):
    case, script = trial
    NIGHTS[case](tree)
    flags = ("--data", tree, "--runs", tmp_path / "runs", "--quick", "--optim.batch-size", 2)
    flags = (*flags, *(() if script == "train_day" else ("--checkpoint", checkpoint)))
    refused(start(classification.SCRIPTS[script], *flags), "zero-shot", tree)


def nights_of(task, root):
    """A data set whose training part is its night, and what opens it."""
    if task == "streets":
        night = root / "NighttimeDrivingTest/leftImg8bit/test/night"
        streets(root / "data")
        shutil.move(root / "data/leftImg8bit/train/ulm", night)
        shutil.rmtree(root / "data/leftImg8bit/train")
        (root / "data/leftImg8bit/train").symlink_to(night)
        return lambda: cityscapes.open_streets(str(root / "data"), "train", StreetConfig((32, 48)), cache=root)
    if task == "a city":
        night = root / "Dark_Zurich_val_anon/rgb_anon/val/night/GOPR0356"
        streets(root / "data")
        shutil.move(root / "data/leftImg8bit/train/ulm", night)
        (root / "data/leftImg8bit/train/ulm").symlink_to(night)
        return lambda: cityscapes.open_streets(str(root / "data"), "train", StreetConfig((32, 48)), cache=root)
    if task in segmentation.PUBLISHED or task == "one image of ACDC":
        night = segmentation.publish_night(root, "ACDC" if task == "one image of ACDC" else task)
        streets(root / "data")
        image = night / segmentation.PUBLISHED[night.name][0].format("train", "Chicago_0001")
        file = root / "data/leftImg8bit/train/ulm/0_leftImg8bit.png"
        if task == "one image of ACDC":
            file.unlink()
            file.symlink_to(image)
        else:
            shutil.rmtree(file.parent)
            file.parent.symlink_to(image.parent)
        return lambda: cityscapes.open_streets(str(root / "data"), "train", StreetConfig((32, 48)), cache=root)
    if task in ("places", "copies of places"):
        write_folders(root, 2)
        shutil.rmtree(root / "train/place0/day")
        if task == "places":
            (root / "train/place0/day").symlink_to(root / "test/place0/night")
        else:
            shutil.copytree(root / "test/place0/night", root / "train/place0/day")
        return lambda: open_pairs(str(root), "train", PlaceConfig(), cache=root)
    for label in ("Run", "Sit"):
        save_video(root / "test_night" / label / "x.mp4", frames=9)
    if task == "videos":
        (root / "train").symlink_to("test_night")
    else:
        shutil.copytree(root / "test_night", root / "train")
    return lambda: open_clips(str(root), "train", ClipConfig(4, 1, 32), cache=root)


@fault(
    *("zero-shot", "nights as training data of the other tasks", "refused"),
    trials=[
        "streets",
        "a city",
        *segmentation.PUBLISHED,
        "one image of ACDC",
        "places",
        "copies of places",
        "videos",
        "copies of videos",
    ],
)
def test_nights_of_tasks(trial, tmp_path):
    opened = nights_of(trial, tmp_path)
    with pytest.raises(UsageError, match="zero-shot"):
        opened()

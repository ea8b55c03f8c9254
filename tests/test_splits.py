"""The guard that keeps nights out of training and choosing, in all four openers, and what loaders hand over."""

import threading
import time

import cityscapes
import class_folders
import clip_sets
import place_pairs
import pytest
import torch
from cityscapes import StreetConfig, open_streets
from class_folders import ImageConfig, open_split
from clip_sets import open_clips
from clips import ClipConfig
from place_images import PlaceConfig
from place_pairs import open_pairs
from torchvision.transforms.v2 import functional

from media import data_files
from media.pictures import as_intensities
from minmax.runtime import file_checks
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.runtime.file_checks import check_once, find_problems
from minmax.runtime.splits import NIGHT_SPLITS, DayPictures, Labelled, check_split, evenly_spaced, refuse_night

RUNTIME = Runtime(torch.device("cpu"))


class Plain(Labelled):
    def __init__(self, split, count=2):
        super().__init__(split, ("a",), [0] * count)

    def name(self, index):
        return str(index)

    def fingerprint(self):
        return self.split


NIGHT, DAY = Plain("test_night"), Plain("test_day")
OPENERS = {
    "classification": (class_folders, "SceneImages", lambda split: open_split("scenes", split, ImageConfig(), None)),
    "segmentation": (cityscapes, "SceneStreets", lambda split: open_streets("scenes", split, StreetConfig((32, 32)))),
    "places": (place_pairs, "ScenePlaces", lambda split: open_pairs("scenes", split, PlaceConfig(32), quick=True)),
    "action": (clip_sets, "SceneClips", lambda split: open_clips("scenes", split, ClipConfig(), None)),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", OPENERS)
def test_no_opener_gives_night_images_to_train_on_or_to_choose_by(task, split, monkeypatch, tmp_path):
    module, scenes, open_it = OPENERS[task]
    monkeypatch.setattr(module, scenes, lambda *_, **__: NIGHT)
    with pytest.raises(ValueError, match="'test_night' holds night images"):
        open_it(split)


@pytest.mark.parametrize("task", [task for task in OPENERS if task != "places"])
def test_no_opener_passes_day_images_for_a_night(task, monkeypatch):
    module, scenes, open_it = OPENERS[task]
    monkeypatch.setattr(module, scenes, lambda *_, **__: DAY)
    with pytest.raises(ValueError, match="opened as test_night and holds no night images"):
        open_it("test_night")


@pytest.mark.parametrize("split", ["test_day", "test_night"])
def test_cityscapes_has_no_test_split_that_could_pass_for_day_or_night(split, streets, tmp_path):
    with pytest.raises(UsageError, match=f"has no split {split}: Cityscapes' layout has train and val, both by day"):
        open_streets(str(streets / "Cityscapes"), split, StreetConfig((32, 48)), cache=tmp_path)


def test_a_night_is_what_its_split_says():
    assert NIGHT_SPLITS == ("test_night",)
    assert [Plain(split).is_night for split in ("train", "val", "test_day", "test_night")] == [False] * 3 + [True]
    assert check_split(NIGHT, "test_night") is NIGHT and check_split(DAY, "val") is DAY
    refuse_night(DAY)
    for use in (refuse_night, lambda night: DayPictures(night, [])):
        with pytest.raises(ValueError, match="zero-shot adaptation must not see them"):
            use(NIGHT)


def test_day_pictures_are_the_whole_images_of_every_epoch():
    pictures = DayPictures(DAY, [(torch.zeros(3), 0), (torch.ones(3), 0)])
    assert len(pictures) == 2 and torch.equal(pictures[7, 1], torch.ones(3))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 300, 511, 512, 1000])
def test_at_most_so_many_evenly_spaced(count):
    chosen = evenly_spaced(range(count), 256)
    assert len(chosen) == min(count, 256) and chosen[:1] == list(range(min(count, 1)))
    gaps = {after - before for before, after in zip(chosen, chosen[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1, "not evenly spaced"


def test_pixels_become_intensities_as_before():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    assert torch.equal(RUNTIME.intensities(pixels), functional.to_dtype(pixels, torch.float32, scale=True))
    clips = pixels.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    assert torch.equal(RUNTIME.intensities(clips), as_intensities(clips))
    floats = torch.rand(2, 4, 8, 8)
    assert torch.equal(RUNTIME.intensities(floats), floats)


def test_copies_of_nights_are_found_with_each_file_read_once(tmp_path, monkeypatch):
    files = {domain: [tmp_path / f"{domain}{i}.jpg" for i in range(20)] for domain in ("day", "night")}
    for domain, members in files.items():
        for i, file in enumerate(members):
            file.write_text(f"{domain:>5} {i:02d}")  # all of one size
    read = []
    monkeypatch.setattr(data_files, "file_digest", lambda file: read.append(file) or file.read_text())
    data_files.refuse_shared(files["day"], files["night"], "train")
    assert sorted(read) == sorted(files["day"] + files["night"])
    files["day"][7].write_text(files["night"][3].read_text())
    with pytest.raises(UsageError, match=r"day7\.jpg of train is .*night3\.jpg of the night"):
        data_files.refuse_shared(files["day"], files["night"], "train")


@pytest.mark.parametrize("limit, threads", [(60.0, False), (0.0, True)])
def test_problems_are_told_by_position_and_nothing_is_checked_twice(tmp_path, monkeypatch, limit, threads):
    monkeypatch.setattr(file_checks, "_WORTH_THREADS", limit)
    checked, workers = [], set()

    def problem(item):
        time.sleep(3e-4)
        checked.append(item)
        workers.add(threading.get_ident())
        return f"{item} is odd" if item % 97 == 3 else None

    record = tmp_path / "checked"
    assert find_problems(range(100, 450), problem, record, "") == {n - 100: f"{n} is odd" for n in (100, 197, 294, 391)}
    assert sorted(checked) == [*range(100, 450)]
    assert (len(workers) > 1) == threads  # small files are checked faster by one
    checked.clear()
    assert find_problems(range(100, 450), lambda item: checked.append(item), record, "") == {}
    assert checked == [100, 197, 294, 391]  # what was wrong may be mended by now
    assert find_problems(range(100, 450), problem, record, "") == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "\xff", "[]", "null", '{"found": null}', '{"found": [5]}', '{"found": [5, true]}', '{"frames": [5, 5]}'],
)
def test_a_damaged_record_of_a_check_is_not_believed_and_made_anew(text, tmp_path):
    record = tmp_path / "record"
    record.write_text(text, encoding="latin-1")
    checked = []
    for _ in range(2):
        assert check_once([2, 3], lambda item: checked.append(item) or 10 * item, record, "") == [20, 30]
    assert checked == [2, 3]


def test_where_no_record_can_be_written_a_check_only_warns(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert check_once([2], lambda item: item, tmp_path / "file" / "record", "") == [2]
    assert "could not write" in caplog.text

"""Videos of actions: layouts, list files, frames of a clip, views, broken files, and colour."""

import colorsys

import numpy as np
import pytest
import torch
from clip_sets import open_clips
from clip_views import DayClips, TrainingClips, WholeClips, augment, crop_centre
from clips import ClipConfig, SceneClips, frames_of_clip
from hls_shift import AUTHORS_SHIFT, hls_to_rgb, rgb_to_hls, shift_hls
from video_files import save_truncated, save_video
from video_trees import find_videos, has_split

from media.video_frames import count_frames
from minmax.runtime.errors import UsageError
from scenes import MOTIONS, render_clips
from scenes.motion import draw_motion, render_clip
from scenes.sprites import Placed, Sprite

CONFIG = ClipConfig(length=3, interval=2, size=16, rounds=2, validation=0.3)
ACTIONS = ("Drink", "Jump")


@pytest.mark.parametrize(
    ("count", "start", "expected"),
    [
        (10, 0.0, [0, 3, 6]),
        (10, 0.999, [3, 6, 9]),
        (10, 0.5, [2, 5, 8]),
        (7, 0.9, [0, 3, 6]),
        (5, 0.9, [0, 3, 1]),  # too short: a loop
        (1, 0.3, [0, 0, 0]),
    ],
)
def test_the_frames_of_a_clip(count, start, expected):
    assert frames_of_clip(count, 3, 3, start) == expected


@pytest.fixture
def normal_light(tmp_path):
    """NormalLight's layout with lists of two splits; four videos of each action by day, one by night."""
    root = tmp_path / "NormalLight"
    lists = root / "raw" / "list_cvt"
    lists.mkdir(parents=True)
    for split in (1, 2):
        for part, names in (("train", ("a", "b", "c", "d")), ("test", (f"night_{split}",))):
            rows = []
            for label, action in enumerate(ACTIONS):
                for name in names:
                    path = f"{action}/{action}_{name}.avi"
                    save_video(root / "raw" / "data" / path, frames=7, height=16, width=24)
                    rows.append(f"{len(rows)}\t{label}\t{path}\n")
            (lists / f"ARID_split{split}_{part}.txt").write_text("".join(rows))
    return root


def names_of(found):
    return sorted(video.name for video in found[1])


def test_lists_tell_splits_and_train_gives_a_share_to_validation(normal_light):
    train, val, night = (find_videos(normal_light, split, CONFIG) for split in ("train", "val", "test_night"))
    assert train[0][:2] == ACTIONS
    assert len(train[1]) == 6 and len(val[1]) == 2 and not set(names_of(train)) & set(names_of(val))
    assert names_of(night) == ["Drink/Drink_night_1.avi", "Jump/Jump_night_1.avi"]
    second = find_videos(normal_light, "test_night", ClipConfig(split=2))
    assert names_of(second) == ["Drink/Drink_night_2.avi", "Jump/Jump_night_2.avi"]
    assert has_split(normal_light, "test_night", CONFIG) and not has_split(normal_light, "test_day", CONFIG)
    with pytest.raises(UsageError, match="no videos of train in"):
        find_videos(normal_light, "train", ClipConfig(split=3))


def test_numbers_of_labels_are_named_by_the_mapping_or_the_folders(normal_light):
    assert find_videos(normal_light, "test_night", CONFIG)[0][7] == "Stand", "ARID's actions keep their numbers"
    (normal_light / "raw" / "list_cvt" / "mapping_table.txt").write_text("0\tsip\n1\thop\n")
    classes, videos = find_videos(normal_light, "test_night", CONFIG)
    assert classes == ("sip", "hop") and [video.label for video in videos] == [0, 1]
    _, reordered = find_videos(normal_light, "test_night", CONFIG, ("hop", "sip"))
    assert [video.label for video in reordered] == [1, 0]


@pytest.mark.parametrize("below", ["raw/data", "data", "."])
def test_without_lists_all_videos_are_day_or_all_are_night(below, tmp_path):
    for action in ACTIONS:
        for name in "abc":
            save_video(tmp_path / below / action / f"{name}.mp4", frames=2, height=16, width=16)
    train, val = (names_of(find_videos(tmp_path, split, CONFIG)) for split in ("train", "val"))
    assert len(train) == 4 and len(val) == 2 and not set(train) & set(val)
    assert len(find_videos(tmp_path, "test_night", CONFIG)[1]) == 6
    with pytest.raises(UsageError, match="no videos of test_day"):
        find_videos(tmp_path, "test_day", CONFIG)


def test_a_list_without_tabs_is_refused_with_its_line(normal_light):
    file = normal_light / "raw" / "list_cvt" / "ARID_split1_train.txt"
    file.write_text(file.read_text() + "9 0 Drink/Drink_c.avi\n")
    with pytest.raises(UsageError, match="line 9: .* is not id, label and path with tabs between them"):
        find_videos(normal_light, "train", CONFIG)


def test_lists_that_contradict_the_mapping_or_each_other_are_refused(normal_light):
    lists = normal_light / "raw" / "list_cvt"
    (lists / "mapping_table.txt").write_text("0\tDrink\n")
    with pytest.raises(UsageError, match=r"has the label 1, which .*mapping_table.txt does not name"):
        find_videos(normal_light, "train", CONFIG)
    (lists / "mapping_table.txt").write_text("0 Drink\n")
    with pytest.raises(UsageError, match="line 1: '0 Drink' is not label and name"):
        find_videos(normal_light, "train", CONFIG)
    (lists / "mapping_table.txt").unlink()
    (lists / "other_split1_train.txt").write_text("0\t0\tDrink/Drink_a.avi\n")
    with pytest.raises(UsageError, match="holds more than one list of train: .*ARID_split1_train.txt, .*other_split1"):
        find_videos(normal_light, "train", CONFIG)
    with pytest.raises(UsageError, match="shows Jump; the network knows Drink"):
        find_videos(normal_light, "test_night", CONFIG, ("Drink",))


def test_a_class_tree_with_other_classes_or_none_is_refused(tmp_path):
    save_video(tmp_path / "train" / "Run" / "a.mp4", frames=2, height=16, width=16)
    with pytest.raises(UsageError, match="holds the classes Run; expected Run, Sit"):
        find_videos(tmp_path, "train", CONFIG, ("Run", "Sit"))
    (tmp_path / "train" / "Sit").mkdir()
    with pytest.raises(UsageError, match="Sit holds no videos"):
        find_videos(tmp_path, "train", CONFIG)
    with pytest.raises(UsageError, match="no data at .*nowhere; expected"):
        find_videos(tmp_path / "nowhere", "train", CONFIG)


def test_what_was_checked_is_remembered(tmp_path, monkeypatch):
    for action in ACTIONS:
        for number in range(3):
            save_video(tmp_path / "train" / action / f"{number}.mp4", frames=4 + number, height=16, width=16)
    save_truncated(tmp_path / "train" / "Drink" / "cut.mp4", height=16, width=16)
    (tmp_path / "val").mkdir()
    flags = (str(tmp_path), "train", ClipConfig(skip_corrupt=0.2))
    first = open_clips(*flags, cache=tmp_path / "cache")
    asked = []

    def counted(file):
        asked.append(file.name)
        return count_frames(file)

    monkeypatch.setattr("video_clips.count_frames", counted)
    assert open_clips(*flags, cache=tmp_path / "cache").counts == first.counts == [4, 5, 6] * 2
    assert asked == ["cut.mp4"]  # what was broken may be mended by now


class Numbered(SceneClips):
    """Clips whose pixels tell video and frame, so that views can be traced back."""

    def __init__(self, split="train", count=4, frames=9):
        super(SceneClips, self).__init__(split, ACTIONS, [i % 2 for i in range(count)], [frames] * count, interval=2)

    def load(self, index, frames):
        return torch.stack([torch.full((3, 40, 50), 20 * index + frame, dtype=torch.uint8) for frame in frames])


def test_day_and_night_views_show_the_same_frames_under_geometries_of_their_own():
    dataset = TrainingClips(Numbered(), CONFIG, seed=1)
    for index in range(4):
        views = dataset[3, index]
        assert torch.equal(views.day, views.night), "even pictures show the frames alone"
        shown = views.day[0, :, 0, 0].int() - 20 * index
        assert shown.diff().tolist() == [2, 2] and views.label == index % 2
        assert torch.equal(dataset[3, index].day, views.day), "the same draw again"
    assert any(not torch.equal(dataset[3, i].day, dataset[4, i].day) for i in range(4))
    pictures = torch.randint(0, 255, (3, 3, 40, 50), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(augment(pictures, 16, generator), augment(pictures, 16, generator))


def test_without_flips_clips_are_the_same_crops_never_mirrored():
    class Slope(Numbered):
        def load(self, index, frames):
            return torch.linspace(0, 255, 50).to(torch.uint8).expand(len(frames), 3, 40, 50)

    turned = 0
    for position in [(epoch, index) for epoch in range(5) for index in range(4)]:
        mirrored, plain = (TrainingClips(Slope(), CONFIG, seed=1, flip=flip)[position] for flip in (True, False))
        for some, never in zip(mirrored[:2], plain[:2], strict=True):
            assert never[0, 0, 0, 0] < never[0, 0, 0, -1]
            is_turned = bool(some[0, 0, 0, 0] > some[0, 0, 0, -1])
            assert torch.equal(some.flip(-1) if is_turned else some, never)
            turned += is_turned
        assert DayClips(Slope(), CONFIG, seed=1, flip=False)[position][0, 0].diff().min() >= 0
    assert 10 <= turned <= 30


def test_one_geometry_holds_for_all_frames_of_a_view():
    picture = torch.randint(0, 255, (1, 3, 40, 50), dtype=torch.uint8).expand(4, -1, -1, -1)
    for seed in range(8):
        view = augment(picture, 24, torch.Generator().manual_seed(seed))
        assert view.shape == (3, 4, 24, 24) and view.dtype == torch.uint8
        assert all(torch.equal(view[:, 0], view[:, i]) for i in range(4))


def test_whole_clips_spread_over_the_video_or_are_drawn_alike_in_every_run():
    clips = Numbered(frames=21)
    uniform = WholeClips(clips, ClipConfig(length=3, size=16, rounds=4, sampling="uniform"))[1][0]
    assert uniform.shape == (4, 3, 3, 16, 16)
    assert (uniform[:, 0, 0, 0, 0] - 20).tolist() == [2, 6, 10, 14]
    random = WholeClips(clips, ClipConfig(length=3, size=16, rounds=4))
    assert torch.equal(random[1][0], random[1][0])
    assert len(set(random[1][0][:, 0, 0, 0, 0].tolist())) > 1
    assert WholeClips(clips, CONFIG, rounds=1)[0][0].shape[0] == 1


def test_whole_frames_are_squared_and_their_centre_kept():
    frames = torch.zeros(2, 3, 64, 32, dtype=torch.uint8)
    frames[:, :, 16:48, 8:24] = 255
    shown = crop_centre(frames, 28)  # brought to 32x32, the middle 28 kept
    assert shown.shape == (3, 2, 28, 28)
    assert shown[0, 0, 14, 14] == 255 and shown[0, 0, 2, 2] == 0 and shown[0, 0, 14, 2] == 0


@pytest.mark.parametrize("dataset", [TrainingClips, DayClips])
def test_nothing_is_trained_on_a_night_split(dataset):
    with pytest.raises(ValueError, match="zero-shot"):
        dataset(Numbered(split="test_night"), CONFIG, 0)


def test_hue_lightness_and_saturation_equal_the_standard_library_and_return():
    colours = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    hue, lightness, saturation = rgb_to_hls(colours)
    for row, *found in zip(colours.tolist(), hue.tolist(), lightness.tolist(), saturation.tolist(), strict=True):
        assert found == pytest.approx(colorsys.rgb_to_hls(*row), abs=1e-5)
    torch.testing.assert_close(hls_to_rgb(hue, lightness, saturation), colours, atol=1e-5, rtol=0)
    grey = torch.full((1, 3), 0.4)
    torch.testing.assert_close(hls_to_rgb(*rgb_to_hls(grey)), grey)


def test_a_shift_of_colour_is_one_for_all_frames_and_within_bounds():
    clips = torch.rand(1, 3, 1, 8, 8).expand(3, -1, 4, -1, -1) * 0.4 + 0.3
    shifted = shift_hls(clips, 1.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(shifted[:, :, 0], shifted[:, :, i]) for i in range(4))
    assert not torch.equal(shifted[0], shifted[1])
    change = (rgb_to_hls(shifted)[1] - rgb_to_hls(clips)[1]).abs().max()
    assert 0 < change <= AUTHORS_SHIFT[1] + 1e-5 and shifted.min() >= 0 and shifted.max() <= 1
    assert shift_hls(clips, 0.0, torch.Generator()) is clips


def test_built_in_clips_are_balanced_and_the_same_for_every_count():
    few, labels = render_clips("day", len(MOTIONS), 3, 16, seed=5)
    more, _ = render_clips("day", 2 * len(MOTIONS), 3, 16, seed=5)
    assert few.shape == (len(MOTIONS), 3, 16, 16, 3) and sorted(labels) == list(range(len(MOTIONS)))
    assert (few == more[: len(MOTIONS)]).all()


@pytest.mark.parametrize("domain", ["day", "night"])
def test_a_standing_thing_changes_by_noise_alone_and_noise_in_every_frame(domain):
    standing = next(i for i in range(6) if render_clips("day", 6, 1, 8, seed=2)[1][i] == 0)
    clip = render_clip(domain, standing, 12, 32, seed=2).astype(float)
    spread = clip.std(axis=0)
    assert (spread.max(axis=2) > 0).mean() > 0.5, "noise differs from frame to frame"
    assert abs(clip.mean(axis=(1, 2, 3)) - clip.mean()).max() < 2, "light does not"


def test_every_motion_but_standing_moves_the_thing():
    sprite = Sprite(0)
    sprite.box(-1.0, 0.0, 1.0, 2.0, (0.5, 0.5, 0.5))
    placed = Placed(sprite, 0.5, 8.0, 1)
    for motion, name in enumerate(MOTIONS):
        moved = [move(placed) for move in draw_motion(motion, 8, np.random.default_rng(3))]
        places = {(m.x, m.z, float(m.sprite.shapes[0].polygons[0, 0, 1])) for m in moved}
        assert (len(places) == 1) == (name == "standing"), name
        assert all(m.z > 1.0 for m in moved)

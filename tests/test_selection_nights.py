"""The nights that checkpoints are chosen by: dark, repeatable, per image or clip, and none that training offers."""

from typing import get_args

import pytest
import torch

from darkening.night_view import NightSource
from darkening.selection_nights import SELECTION_NIGHTS, by_day, selection_numbers
from minmax.runtime.splits import Labelled
from scenes import render_labelled

NAMES = sorted(SELECTION_NIGHTS)


@pytest.fixture(scope="module")
def day():
    return torch.from_numpy(render_labelled("day", 24, 48, seed=5)[0]).permute(0, 3, 1, 2) / 255.0


def generator_of(seed=0):
    return torch.Generator().manual_seed(seed)


def test_none_of_them_can_be_trained_on():
    assert len(SELECTION_NIGHTS) == 3
    assert not set(SELECTION_NIGHTS) & {source.replace("-", "_") for source in get_args(NightSource)}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_dark_in_range_and_a_function_of_the_generator(name, day):
    night, kept = SELECTION_NIGHTS[name], day.clone()
    torch.manual_seed(1)
    first = night(day, generator_of())
    torch.manual_seed(2)  # the global generator is not used
    assert torch.equal(first, night(day, generator_of()))
    assert not torch.equal(first, night(day, generator_of(1)))
    assert torch.equal(day, kept)
    assert first.shape == day.shape and first.min() >= 0 and first.max() <= 1
    means = first.mean(dim=(1, 2, 3))
    # Glare and noise come on top of the drawn 0.05 to 0.25.
    assert means.min() > 0.03 and means.max() < 0.3 and means.max() - means.min() > 0.1
    assert (means < day.mean(dim=(1, 2, 3))).all()
    seen = [
        float(torch.corrcoef(torch.stack(both))[0, 1]) for both in zip(first.flatten(1), day.flatten(1), strict=True)
    ]
    assert sum(seen) / len(seen) > 0.5, "nothing of the scene is left"


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_has_one_draw_and_its_frames_noise_of_their_own(name, day):
    clips = day[:2, :, None].repeat(1, 1, 5, 1, 1)
    shown = SELECTION_NIGHTS[name](clips, generator_of())
    assert shown.shape == clips.shape
    frames = shown[0].transpose(0, 1)
    levels = frames.mean(dim=(1, 2, 3))
    assert float(levels.max() - levels.min()) < 0.01, "frames of one clip are of several exposures"
    assert torch.equal(frames[0], frames[1]) is (name == "crushed")
    torch.testing.assert_close(
        SELECTION_NIGHTS[name](clips[:1], generator_of()), shown[:1]
    )  # what comes after a clip does not change it


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_and_white_images_of_any_size_stay_finite(name, level):
    for size in ((1, 1), (7, 300), (300, 7)):
        shown = SELECTION_NIGHTS[name](torch.full((1, 3, *size), level), generator_of())
        assert torch.isfinite(shown).all() and shown.shape == (1, 3, *size)


def test_the_long_exposure_smears_along_a_line():
    day = torch.zeros(1, 3, 101, 101)
    day[..., 50, 50] = 1.0
    night = SELECTION_NIGHTS["long_exposure"]
    lit = night(day, generator_of(3)) - night(torch.zeros_like(day), generator_of(3))
    rows, columns = (lit[0].mean(dim=0) > 0.02).nonzero().T
    reach = float(((rows - rows[0]) ** 2 + (columns - columns[0]) ** 2).max()) ** 0.5
    assert 2 <= reach <= 9 and len(rows) <= 25  # 2 to 8 % of the width, and no blot


def test_the_score_is_the_mean_of_day_and_of_the_nights():
    metrics = dict(zip((by_day, *SELECTION_NIGHTS.values()), (0.9, 0.3, 0.6, 0.0), strict=True))
    found = selection_numbers(images_of("val"), lambda nights: [metrics[night] for night in nights])
    nights = dict(zip(SELECTION_NIGHTS, (0.3, 0.6, 0.0), strict=True))
    assert found == pytest.approx({"day": 0.9, **nights, "darkened": 0.3, "score": 0.6})


def test_nothing_is_ever_selected_on_a_night():
    with pytest.raises(ValueError, match="holds night images"):
        selection_numbers(images_of("test_night"), lambda nights: [1.0 for _ in nights])


def images_of(split):
    class Named(Labelled):
        def name(self, index):
            return str(index)

        def fingerprint(self):
            return split

    return Named(split, ("a",), [0, 0])

"""Night views: what is drawn per image and per clip, from which generator, and what the flags refuse."""

import pytest
import torch
import torch.nn.functional as F

from darkening import Darkener, DarkenerSettings, RequestConfig
from darkening.camera import CameraConfig
from darkening.heuristics import HEURISTICS, augmix_view, day_view
from darkening.night_view import NightConfig, NightView, build_night_view
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError

CPU = Runtime(torch.device("cpu"))


def generator_of(seed=0):
    return torch.Generator().manual_seed(seed)


def show_exposure(images, exposure, generator, draws):
    return exposure.expand_as(images)


def test_each_image_has_one_exposure():
    shown = NightView(show_exposure, (0.0, 0.5), noise=0)(torch.zeros(6, 3, 4, 5), generator_of())
    assert torch.equal(shown, shown[:, :1, :1, :1].expand_as(shown))
    assert len(shown[:, 0, 0, 0].unique()) == 6


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_each_clip_has_one_exposure_and_one_noise_for_all_frames(noise):
    shown = NightView(show_exposure, (0.0, 0.5), noise)(torch.zeros(4, 3, 5, 8, 9), generator_of())
    assert shown.shape == (4, 3, 5, 8, 9)
    assert torch.equal(shown, shown[:, :, :1].expand_as(shown))
    assert len(shown[:, 0, 0, 0, 0].unique()) == 4


def test_frames_keep_their_places_in_a_clip():
    clip = torch.rand(2, 3, 4, 5, 6, generator=generator_of())
    assert torch.equal(NightView(day_view, (0.0, 0.2))(clip, generator_of()), clip)
    halved = NightView(lambda images, exposure, generator, draws: images / 2, (0.0, 0.2))(clip, generator_of())
    assert torch.equal(halved, clip / 2)


def test_a_clip_is_darkened_as_its_frames_would_be():
    clip = torch.rand(2, 3, 4, 8, 8, generator=generator_of())
    view = NightView(HEURISTICS["gamma"], (0.05, 0.3))
    frames = [view(clip[:, :, t], generator_of(1)) for t in range(4)]
    torch.testing.assert_close(view(clip, generator_of(1)), torch.stack(frames, dim=2))


def test_equal_generators_give_equal_views():
    view = NightView(HEURISTICS["short-exposure"], (0.0, 0.2))
    images = torch.rand(3, 3, 16, 16, generator=generator_of())
    torch.manual_seed(1)
    first = view(images, generator_of(5))
    torch.manual_seed(2)  # the global generator is not used
    assert torch.equal(first, view(images, generator_of(5)))
    assert not torch.equal(first, view(images, generator_of(6)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (0.1, 0.4), (0.3, 0.3)])
def test_exposures_fill_their_range_evenly(low, high):
    drawn = NightView(day_view, (low, high), noise=0).exposure_map(4000, 1, 1, generator_of()).flatten()
    assert low <= drawn.min() and drawn.max() <= high + 1e-6
    assert float(drawn.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low) + 1e-6)
    assert float(drawn.std()) == pytest.approx((high - low) / 12**0.5, rel=0.03, abs=1e-6)


def test_noise_is_drawn_per_pixel_and_per_cell():
    noise = NightView(day_view, (0.0, 0.0), noise=0.1, cell=16).exposure_map(8, 256, 256, generator_of())
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.005)
    # Neighbours share nearly all of the smooth cell noise, so what differs is the pixels' own.
    assert float(noise.diff(dim=3).std()) == pytest.approx(0.1 * 2**0.5, rel=0.03)
    # The mean of a cell has nearly nothing of the pixels' noise; bilinear interpolation leaves about 0.6 of the cells'.
    assert 0.05 < float(F.avg_pool2d(noise, 16).std()) < 0.08


def test_the_cell_size_is_obeyed():
    coarse = NightView(day_view, (0.0, 0.0), noise=0.1, cell=64).exposure_map(8, 256, 256, generator_of())
    assert float(F.avg_pool2d(coarse, 64).std()) > 0.04
    fine = NightView(day_view, (0.0, 0.0), noise=0.1, cell=8).exposure_map(8, 256, 256, generator_of())
    assert float(F.avg_pool2d(fine, 64).std()) < 0.02


@pytest.mark.parametrize("side", [1, 7, 15, 17])
def test_images_smaller_than_a_cell_have_noise_too(side):
    found = NightView(day_view, (0.0, 0.2)).exposure_map(2, side, side, generator_of())
    assert found.shape == (2, 1, side, side) and torch.isfinite(found).all()


def test_a_night_leaves_the_day_images_alone():
    images = torch.rand(2, 3, 8, 8, generator=generator_of())
    kept = images.clone()
    for night in (day_view, *HEURISTICS.values()):
        NightView(night, (0.0, 0.2))(images, generator_of())
        assert torch.equal(images, kept)
    assert torch.equal(NightView(day_view, (0.0, 0.2))(images, generator_of()), kept)


RANGE = "expected two numbers, 0.0 <= LOW <= HIGH <= 1.0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"exposure": (0.3, 0.1)}, f"exposure 0.3 0.1: {RANGE}"),
        ({"exposure": (-0.1, 0.2)}, f"exposure -0.1 0.2: {RANGE}"),
        ({"exposure": (0.1, 1.2)}, f"exposure 0.1 1.2: {RANGE}"),
        ({"exposure": (float("nan"), 0.2)}, f"exposure nan 0.2: {RANGE}"),
        ({"noise": -0.1}, "noise -0.1: expected 0 or more"),
        ({"noise": float("nan")}, "noise nan: expected 0 or more"),
        ({"cell": 0}, "cell 0: expected 1 or more"),
        ({"contrast": (0.0, 5.0)}, "contrast 0.0 5.0: expected two numbers, 0.0 <= LOW <= HIGH <= 4.0"),
    ],
)
def test_values_out_of_range_are_refused_with_one_message(flags, message):
    with pytest.raises(UsageError) as caught:
        NightConfig(**flags)
    assert str(caught.value) == message


def test_without_a_darkener_nights_are_dim_and_photographed():
    images = torch.rand(3, 3, 16, 16, generator=generator_of(1))
    view = build_night_view(NightConfig(exposure=(0.1, 0.1)), None, CPU)
    expected = NightView("dim", (0.1, 0.1), camera=CameraConfig(share=1.0))
    assert torch.equal(view(images, generator_of()), expected(images, generator_of()))
    kept = NightConfig(camera=CameraConfig(share=0.5, blurred=1.0))
    assert build_night_view(kept, None, CPU).camera == kept.camera
    learned = Darkener(DarkenerSettings())
    with pytest.raises(UsageError, match="share 0: expected more than 0"):
        build_night_view(NightConfig(camera=CameraConfig(blurred=1.0)), learned, CPU)


def test_learned_nights_need_a_darkener_and_others_refuse_one():
    with pytest.raises(UsageError, match="--night.source learned: needs --darkener PATH"):
        build_night_view(NightConfig(source="learned"), None, CPU)
    for source in ("gamma", "brightness", "short-exposure", "day"):
        with pytest.raises(UsageError, match=f"--night.source {source}: does not use --darkener"):
            build_night_view(NightConfig(source=source), Darkener(DarkenerSettings(width=4)), CPU)


def test_exposures_that_the_darkener_was_not_trained_on_are_refused():
    with pytest.raises(UsageError) as caught:
        build_night_view(NightConfig(exposure=(0.05, 0.8)), Darkener(DarkenerSettings(width=4)), CPU)
    expected = "--night.exposure 0.05 0.8: expected 0.0 to 0.5, what the darkener was trained on"
    assert str(caught.value) == expected
    brighter = Darkener(DarkenerSettings(width=4), RequestConfig((0.0, 0.8)))
    assert build_night_view(NightConfig(exposure=(0.05, 0.8)), brighter, CPU).exposure == (0.05, 0.8)


def test_the_learned_view_is_the_frozen_darkener():
    darkener = Darkener(DarkenerSettings(width=4))
    images = torch.rand(2, 3, 8, 8, generator=generator_of())
    view = build_night_view(NightConfig(exposure=(0.1, 0.1), noise=0.0), darkener, CPU)
    torch.testing.assert_close(view(images, generator_of()), darkener.darken(images, torch.tensor(0.1)))
    assert not any(parameter.requires_grad for parameter in darkener.parameters())


def test_the_other_views_are_the_heuristics_with_the_configured_draws():
    config = NightConfig(source="gamma", exposure=(0.1, 0.3), noise=0.5, cell=7)
    view = build_night_view(config, None, CPU)
    assert (view.night, view.exposure, view.noise, view.cell) == (HEURISTICS["gamma"], (0.1, 0.3), 0.5, 7)
    assert build_night_view(NightConfig(source="day"), None, CPU).night is day_view


def test_a_request_that_follows_the_day_keeps_ratios_between_cells_and_the_mean():
    cells = torch.tensor([[0.2, 0.4], [0.6, 0.8]]).repeat_interleave(32, 0).repeat_interleave(32, 1)
    day = cells.expand(1, 3, 64, 64)
    asked = []

    def night(images, exposure, generator, draws):
        asked.append(exposure)
        return images

    for power in (0.0, 1.0, 2.0):
        view = NightView(night, (0.1, 0.1), noise=0.0, cell=32, contrast=(power, power))
        view(day, torch.Generator())
    even, kept, parted = (request.expand(1, 1, 64, 64) for request in asked)
    assert even.min() == even.max()
    for request in (kept, parted):
        assert float(request.mean()) == pytest.approx(0.1, rel=1e-5)
    # Corners lie beyond the centres of the cells, where nothing is interpolated.
    corner = [(0, 0), (0, 63), (63, 0), (63, 63)]
    for request, power in ((kept, 1.0), (parted, 2.0)):
        shares = torch.stack([request[0, 0, i, j] / request[0, 0, 0, 0] for i, j in corner])
        expected = (torch.tensor([0.21, 0.41, 0.61, 0.81]) / 0.21) ** power
        torch.testing.assert_close(shares, expected, rtol=1e-4, atol=0)


def test_every_frame_of_a_clip_follows_its_own_brightness_by_the_power_of_the_clip():
    powers = []

    def night(images, exposure, generator, draws):
        left, right = exposure[:, 0, 0, 0], exposure[:, 0, 0, -1]
        powers.extend(((right / left).log() / torch.tensor(0.81 / 0.21).log()).tolist())
        return images

    frame = torch.tensor([0.2, 0.8]).repeat_interleave(32).expand(3, 64, 64)
    clips = frame[None, :, None].expand(4, 3, 5, 64, 64)
    NightView(night, (0.1, 0.1), noise=0.0, cell=32, contrast=(0.0, 2.0))(clips, torch.Generator().manual_seed(0))
    by_clip = torch.tensor(powers).view(4, 5)
    assert torch.allclose(by_clip, by_clip[:, :1].expand(4, 5), atol=1e-4)
    assert len(set(by_clip[:, 0].round(decimals=3).tolist())) == 4
    assert by_clip.min() >= 0.0 and by_clip.max() <= 2.0


def test_augmix_mixes_each_image_by_itself_as_the_generator_says():
    images = torch.rand(3, 24, 24, generator=generator_of()).expand(6, 3, 24, 24)
    view = NightView(augmix_view, (0.0, 0.2))
    state = torch.random.get_rng_state()
    mixed = view(images, generator_of(1))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left as it was"
    assert mixed.shape == images.shape and 0 <= mixed.min() <= mixed.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in mixed}) == 6
    torch.manual_seed(5)
    assert torch.equal(view(images, generator_of(1)), mixed)
    assert not torch.equal(view(images, generator_of(2)), mixed)
    assert (mixed - images).abs().mean() < 0.3, "still the picture"

"""What a camera adds to a night, by hand and learned: each effect alone, its ranges, clips, and training."""

import dataclasses
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from darkening import Darkener, DarkenerSettings, fit_darkener, load_darkener, save_darkener
from darkening.camera import DRAWS, MOVED_DRAWS, CameraConfig, blur, photograph
from darkening.camera_view import CameraView
from darkening.heuristics import HEURISTICS, dimmed
from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
from darkening.night_view import LearnedNight, NightConfig, NightView, build_night_view
from darkening.training import initial_darkener
from minmax.features import FeatureModel
from minmax.keep import class_divergence
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import UsageError
from minmax.similarity import feature_similarity

PLAIN = CameraConfig(
    share=1.0, saturation=(1.0, 1.0), contrast=(1.0, 1.0), blurred=0.0, noisy=0.0, white_balance=0.0
)  # changes nothing
CPU = Runtime(torch.device("cpu"))


def generator_of(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 16, 24, generator=generator_of()) * 0.9 + 0.02


def draws_of(count=4, value=None):
    if value is not None:
        return torch.full((count, DRAWS), value)
    return torch.rand(count, DRAWS, generator=generator_of(1))


def taken(images, noise=0.0, value=0.5, quantised=False, **changed):
    config = dataclasses.replace(PLAIN, **changed)
    pixels = torch.randn(images.shape, generator=generator_of(2)) * noise
    return photograph(images, config, draws_of(len(images), value), pixels, quantised)


def test_a_camera_without_effects_takes_the_scene_as_it_is(images):
    torch.testing.assert_close(taken(images), images, rtol=0, atol=1e-5)


def test_share_0_leaves_every_picture_and_half_leaves_about_half():
    scenes = torch.rand(400, 3, 4, 4, generator=generator_of())
    config = CameraConfig(share=0.5, saturation=(0.2, 0.3))
    changed = (photograph(scenes, config, draws_of(400), torch.zeros_like(scenes)) != scenes).flatten(1).any(dim=1)
    assert 0.4 < changed.float().mean() < 0.6
    none = photograph(scenes, dataclasses.replace(config, share=0.0), draws_of(400), torch.zeros_like(scenes))
    assert torch.equal(none, scenes)


def test_no_saturation_is_grey_of_the_same_mean(images):
    grey = taken(images, saturation=(0.0, 0.0))
    torch.testing.assert_close(grey, images.mean(dim=1, keepdim=True).expand_as(images), rtol=0, atol=1e-5)


def test_half_the_contrast_halves_the_distance_from_the_mean(images):
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(taken(images, contrast=(0.5, 0.5)), (images + mean) / 2, rtol=0, atol=1e-5)


def test_a_blurred_point_has_the_deviation_asked_for_and_keeps_its_light():
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1.0
    spread = blur(point, torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), most=3.0)
    away = (torch.arange(41) - 20.0) ** 2
    for picture, deviation in zip(spread[:, 0], (1.0, 2.0), strict=True):
        assert float(picture.sum()) == pytest.approx(1.0, abs=1e-4)
        assert float((picture.sum(dim=0) * away).sum()) == pytest.approx(deviation**2, rel=0.01)
        assert float((picture.sum(dim=1) * away).sum()) == pytest.approx(deviation**2, rel=0.01)


def test_no_blur_changes_nothing_and_a_flat_picture_stays_flat(images):
    torch.testing.assert_close(blur(images, torch.zeros(4, 1, 1, 1), 1.5), images)
    flat = torch.full((1, 3, 9, 5), 0.3)
    torch.testing.assert_close(blur(flat, torch.full((1, 1, 1, 1), 1.5), 1.5), flat)


def test_noise_has_the_variance_of_its_electrons():
    level, well, read = 0.5, 1000.0, 4.0
    flat = torch.full((1, 3, 200, 200), level)
    noisy = taken(flat, noise=1.0, noisy=1.0, full_well=(well, well), read_noise=(read, read))
    light = noisy**2.2
    expected = ((level**2.2 * well + read**2) ** 0.5) / well
    assert float(light.mean()) == pytest.approx(level**2.2, rel=0.01)
    assert float(light.std()) == pytest.approx(expected, rel=0.02)


def test_a_wrong_white_moves_red_and_blue_in_linear_light_only():
    flat = torch.full((1, 3, 4, 4), 0.4)
    wrong = taken(flat, value=1.0, white_balance=0.2, share=1.01 - 0.01)
    torch.testing.assert_close(wrong, flat)  # a draw of 1 is not below the share of 1: not photographed
    wrong = taken(flat, value=0.999, white_balance=0.2)
    light = (wrong / flat)[0, :, 0, 0] ** 2.2
    torch.testing.assert_close(light, torch.tensor([1.2, 1.0, 1.2]), rtol=0, atol=2e-3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**20), contrast=st.floats(0.1, 4.0))
def test_pictures_are_in_range_finite_and_of_8_bits(seed, contrast):
    scene = torch.rand(2, 3, 7, 5, generator=generator_of(seed)) ** contrast
    draws = torch.rand(2, DRAWS, generator=generator_of(seed))
    picture = photograph(scene, CameraConfig(share=1.0), draws, torch.randn(scene.shape, generator=generator_of(seed)))
    assert picture.shape == scene.shape and torch.isfinite(picture).all()
    assert picture.min() >= 0 and picture.max() <= 1
    torch.testing.assert_close(picture * 255, (picture * 255).round(), rtol=0, atol=1e-3)


def test_gradients_reach_scene_and_draws_also_in_black_and_white():
    scene = torch.tensor([0.0, 1.0, 0.3]).view(1, 1, 1, 3).expand(1, 3, 4, 3).clone().requires_grad_()
    draws = draws_of(1, 0.3).requires_grad_()
    photograph(scene, CameraConfig(share=1.0), draws, torch.ones(1, 3, 4, 3), quantised=False).sum().backward()
    assert torch.isfinite(scene.grad).all() and torch.isfinite(draws.grad).all()
    assert (draws.grad[0, 1:MOVED_DRAWS] != 0).any()


@pytest.mark.parametrize(
    ("flags", "name", "message"),
    [
        ({"share": 1.5}, "share", "1.5: expected a share in [0, 1]"),
        ({"saturation": (0.5, 0.2)}, "saturation", "0.5 0.2: expected two numbers, 0.0 <= LOW <= HIGH <= 1.0"),
        ({"full_well": (0.0, 5.0)}, "full_well", "0.0 5.0: expected two numbers, 1.0 <= LOW <= HIGH <= 1000000.0"),
        ({"white_balance": 1.0}, "white_balance", "1.0: expected a share in [0, 1)"),
    ],
)
def test_ranges_that_no_camera_has_are_refused(flags, name, message):
    with pytest.raises(UsageError) as refused:
        CameraConfig(**flags)
    assert str(refused.value) == f"{name} {message}"


def test_flags_that_would_do_nothing_are_refused():
    with pytest.raises(UsageError, match="share 0: expected more than 0 beside other settings"):
        NightConfig("gamma", camera=CameraConfig(blurred=0.1))
    with pytest.raises(UsageError, match="curve gamma: expected its default beside view camera"):
        DarkenerSettings(view="camera", curve="gamma", width=3)
    with pytest.raises(UsageError, match="camera .*: expected its default beside view pixels"):
        DarkenerSettings(camera=CameraConfig(share=0.5))
    with pytest.raises(UsageError, match="--init starting-point: it is of another view; add --darkener.view pixels"):
        initial_darkener("starting-point", DarkenerSettings(view="camera"))


def test_augmix_is_the_same_for_all_frames_of_a_clip():
    still = torch.rand(2, 3, 1, 16, 16, generator=generator_of()).expand(2, 3, 4, 16, 16)
    clips = build_night_view(NightConfig("augmix"), None, CPU)(still, generator_of())
    assert torch.equal(clips, clips[:, :, :1].expand_as(clips)) and not torch.equal(clips, still)


def test_dim_nights_lie_between_brightness_and_gamma_and_reach_the_request(images):
    asked = torch.full((4, 1, 1, 1), 0.2)
    factor = HEURISTICS["brightness"](images, asked, generator_of())
    torch.testing.assert_close(dimmed(images, asked, torch.zeros(4)), factor, rtol=0, atol=1e-5)
    power = HEURISTICS["gamma"](images, asked, generator_of())
    torch.testing.assert_close(dimmed(images, asked, torch.ones(4)), power, rtol=0, atol=2e-3)
    for share in (0.0, 0.3, 0.7, 1.0):
        dark = dimmed(images, asked, torch.full((4,), share))
        torch.testing.assert_close(dark.mean(dim=(1, 2, 3)), torch.full((4,), 0.2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("source", ["dim", "learned"])
def test_the_frames_of_a_clip_share_their_night_and_camera_but_not_its_noise(source):
    still = torch.rand(2, 3, 1, 8, 8, generator=generator_of()).expand(2, 3, 5, 8, 8)
    for noisy in (0.0, 1.0):
        camera = CameraConfig(share=1.0, noisy=noisy)
        darkener = Darkener(DarkenerSettings(view="camera", camera=camera)) if source == "learned" else None
        config = NightConfig(source, noise=0.0, exposure=(0.1, 0.3), camera=CameraConfig() if darkener else camera)
        clips = build_night_view(config, darkener, CPU)(still, generator_of())
        same = torch.isclose(clips, clips[:, :, :1], atol=1e-6).all()
        assert bool(same) is (noisy == 0.0)
        assert not torch.allclose(clips[0], clips[1])


def test_a_learned_camera_starts_as_the_dim_night_behind_a_camera(images):
    darkener = Darkener(DarkenerSettings(view="camera"))
    asked, draws, noise = torch.full((4, 1, 1, 1), 0.1), draws_of(), torch.randn(images.shape, generator=generator_of())
    with torch.no_grad():
        learned = darkener(images, asked, draws, noise).image
    by_hand = photograph(HEURISTICS["dim"](images, asked, None, draws), CameraConfig(share=1.0), draws, noise)
    # The draws pass through logit and sigmoid, so a level of 8 bits may fall to the other side.
    assert float((learned - by_hand).abs().max()) <= 1.01 / 255


def test_a_tilt_moves_draws_but_leaves_every_one_possible():
    estimator = CameraView(CameraConfig())
    torch.nn.init.constant_(estimator.layers[-1].bias, 100.0)
    even = torch.rand(2000, DRAWS, generator=generator_of())
    moved = estimator.moved(torch.rand(2000, 3, 4, 4), torch.full((2000, 1, 1, 1), 0.1), even)
    assert torch.equal(moved[:, MOVED_DRAWS:], even[:, MOVED_DRAWS:])
    assert (moved[:, :MOVED_DRAWS].mean(dim=0) > 0.75).all()
    assert moved[:, :MOVED_DRAWS].min() < 0.1 and moved[:, :MOVED_DRAWS].max() <= 1.0
    assert (moved[:, :MOVED_DRAWS].argsort(dim=0) == even[:, :MOVED_DRAWS].argsort(dim=0)).float().mean() > 0.99


def test_similarity_alone_trains_a_camera_and_moves_it_to_less_similar_pictures():
    darkener = Darkener(DarkenerSettings(view="camera"))
    day = torch.rand(16, 3, 16, 16, generator=generator_of())
    asked = torch.full((16, 1, 1, 1), 0.3)
    optimizer = torch.optim.Adam(darkener.parameters(), 3e-3)

    def similarity(seed):
        generator = generator_of(seed)
        draws = torch.rand(16, DRAWS, generator=generator)
        darkening = darkener(day, asked, draws, torch.randn(day.shape, generator=generator))

        def features(pictures):
            return [pictures[..., 1:, :] - pictures[..., :-1, :]]  # edges

        losses = DarkeningLoss(similarity=1.0)(day, darkening, asked, features(darkening.image), features(day))
        assert set(losses) == {"similarity"}
        return losses["similarity"]

    before = float(similarity(99).detach())
    for step in range(60):
        optimizer.zero_grad()
        similarity(step).backward()
        optimizer.step()
    assert float(similarity(99).detach()) < before - 0.02


def test_a_darkener_with_a_camera_survives_its_file_and_refuses_a_second_camera(tmp_path, images):
    camera = CameraConfig(share=0.9, blur=(0.5, 2.0))
    darkener = Darkener(DarkenerSettings(view="camera", camera=camera))
    torch.nn.init.normal_(darkener.estimator.layers[-1].weight)
    save_darkener(darkener, tmp_path / "darkener.pt")
    again = load_darkener(tmp_path / "darkener.pt")
    assert again.settings == darkener.settings and again.settings.camera == camera
    asked = torch.full((4, 1, 1, 1), 0.1)
    with torch.no_grad():
        one, two = (LearnedNight(d)(images, asked, generator_of(), draws_of()) for d in (darkener, again))
    assert torch.equal(one, two)
    with pytest.raises(UsageError, match="this darkener has a camera of its own"):
        build_night_view(NightConfig(camera=CameraConfig(share=1.0)), again, CPU)


def test_recognisable_nights_are_those_that_the_model_still_predicts_as_by_day():
    """By similarity alone nights hide more, and change more predictions, than when these count too."""
    torch.manual_seed(0)
    day = [torch.rand(8, 3, 24, 24) * torch.rand(8, 1, 1, 1).clamp(min=0.3) for _ in range(6)]
    network = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(3, 8, 5, stride=2), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    )
    network.add_module("head", nn.Linear(8, 4))
    nn.init.normal_(network.head.weight, std=4.0)
    model = FeatureModel(network, ["relu"], example=day[0])
    changed, similar = [], []
    for weight in (0.0, 10.0):
        loss = replace(OBEDIENT_LOSS, recognisable=weight)
        darkener = fit_darkener(DarkenerSettings(view="camera"), day, model, epochs=20, lr=1e-2, clip=1.0, loss=loss)
        dark = torch.cat([NightView(darkener, (0.05, 0.4))(images, generator_of()) for images in day])
        with torch.no_grad():
            (by_night, hidden), (by_day, seen) = model.with_features(dark), model.with_features(torch.cat(day))
        changed.append(float(class_divergence(by_night, by_day)))
        similar.append(float(feature_similarity(hidden, seen)))
    assert changed[1] < 0.9 * changed[0]
    assert similar[0] < similar[1]


def test_recognisable_nights_need_predictions():
    settings, loss = DarkenerSettings(view="camera"), replace(OBEDIENT_LOSS, recognisable=0.3)
    with pytest.raises(ValueError, match="encoder: recognisable nights need its predictions"):
        fit_darkener(settings, [torch.rand(2, 3, 8, 8)], lambda images: [images], epochs=1, loss=loss)

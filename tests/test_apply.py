"""Darkening of files and the contact sheet: formats, resuming, broken files, full disks, refusals."""

import errno
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from script_modules import run_ranks
from video_files import save_video

from darkening import Darkener, DarkenerSettings, apply, load_darkener, preview, save_darkener
from darkening.night_view import NightConfig
from media.pictures import (
    PICTURE_SUFFIXES,
    as_codes,
    as_intensities,
    decode_picture,
    find_pictures,
    read_picture,
    write_picture,
)
from minmax.runtime.checkpoints import _temporary_prefix
from minmax.runtime.config import replace_settings
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError

RUNTIME = Runtime(torch.device("cpu"))
NAMES = ("a.png", "b.jpg", "trip/c.png", "trip/d.jpg", "trip/deep er/e.png")
DAY, GAMMA = NightConfig(source="day"), NightConfig(source="gamma")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("darkener") / "untrained.pt"
    save_darkener(Darkener(DarkenerSettings(width=8)), file)
    return str(file)


def paint(file, seed=0, height=20, width=24):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    write_picture(image, file)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for seed, name in enumerate(NAMES):
        paint(folder / name, seed)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def files_below(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != apply.SETTINGS_FILE)
    return {path.relative_to(folder).as_posix(): path for path in found}


def contents(folder):
    return {name: path.read_bytes() for name, path in files_below(folder).items()}


def darken(source, output, night=GAMMA, **flags):
    apply.main(apply.Config(input=source, output=output, night=night, workers=0, device="cpu", **flags))
    return contents(output) if output.is_dir() else output.read_bytes()


def test_a_folder_is_darkened_with_its_tree(photos, tmp_path, checkpoint):
    before = contents(photos)
    found = darken(photos, tmp_path / "dark", NightConfig(), darkener=checkpoint)
    assert set(found) == set(NAMES)
    for name in NAMES:
        assert read_picture(tmp_path / "dark" / name).shape == (1, 3, 20, 24)
    assert contents(photos) == before


@pytest.mark.parametrize("suffix", [*sorted(PICTURE_SUFFIXES), ".JPG", ".Png"])
def test_every_format_is_read_and_written(suffix, tmp_path):
    paint(tmp_path / "in" / f"x{suffix}")
    darken(tmp_path / "in", tmp_path / "out", DAY)
    source, target = tmp_path / "in" / f"x{suffix}", tmp_path / "out" / f"x{suffix}"
    with Image.open(source) as before, Image.open(target) as after:
        assert (after.format, after.mode, after.size) == (before.format, "RGB", (24, 20))
    tolerance = 0.2 if suffix.lower() in (".jpg", ".jpeg", ".webp") else 0.0
    assert (read_picture(target) - read_picture(source)).abs().mean() <= tolerance


def test_intensities_are_rounded_and_clamped_not_wrapped_around(tmp_path):
    codes = torch.tensor([-51.0, 0.4, 0.6, 99.5001, 254.6, 306.0])
    write_picture((codes / 255).expand(3, 2, 6), tmp_path / "x.png")
    assert (read_picture(tmp_path / "x.png")[0, 0, 0] * 255).round().tolist() == [0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("entries", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\10\0\1\1\22\0\2\0\0\0\2" + b"6\0\0\0"])
def test_photos_whose_entries_tell_no_orientation_are_as_stored(entries, ending, tmp_path):
    file = tmp_path / f"phone.{ending}"
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(file, exif=entries)
    assert decode_picture(file).shape == (3, 20, 40)


def test_a_single_file_is_darkened_as_asked_each_time_to_a_file_or_into_a_folder(photos, tmp_path):
    means = []
    for exposure in (0.3, 0.05):
        night = NightConfig(source="brightness", exposure=(exposure, exposure), noise=0.0)
        found = darken(photos / "a.png", tmp_path / "dark.png", night)
        means.append(float(read_picture(tmp_path / "dark.png").mean()))
    assert means == pytest.approx([0.3, 0.05], abs=0.015)
    assert darken(photos / "a.png", tmp_path / "folder", night) == {"a.png": found}


def test_files_in_hidden_folders_are_no_pictures(tmp_path):
    for folder in ("seen", ".thumbnails"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    assert find_pictures(tmp_path) == [tmp_path / "seen" / "a.png"]


def test_finished_files_are_skipped(photos, tmp_path):
    output = tmp_path / "dark"
    first = darken(photos, output)
    times = {name: path.stat().st_mtime_ns for name, path in files_below(output).items()}
    (output / "a.png").write_bytes(b"mine")  # a file that is there is never touched
    times["a.png"] = (output / "a.png").stat().st_mtime_ns
    assert darken(photos, output) == first | {"a.png": b"mine"}
    assert {name: path.stat().st_mtime_ns for name, path in files_below(output).items()} == times


@pytest.mark.parametrize("source", ["learned", "short-exposure"])
def test_an_interrupted_and_continued_run_equals_an_uninterrupted_one(
    source, photos, tmp_path, checkpoint, monkeypatch
):
    night = NightConfig(source=source)
    chosen = {"darkener": checkpoint} if source == "learned" else {}
    whole = darken(photos, tmp_path / "whole", night, **chosen)
    written = []

    def write_three(image, file):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(file)
        write_picture(image, file)

    with monkeypatch.context() as patch:
        patch.setattr(apply, "write_picture", write_three)
        with pytest.raises(KeyboardInterrupt):
            darken(photos, tmp_path / "parts", night, **chosen)
    assert len(contents(tmp_path / "parts")) == 3
    (tmp_path / "parts" / "a.png").unlink()
    assert darken(photos, tmp_path / "parts", night, **chosen) == whole


def test_the_seed_decides_and_each_file_has_its_own_draws(tmp_path):
    for name in ("x.png", "y.png"):
        paint(tmp_path / "in" / name, seed=1)
    first, again = darken(tmp_path / "in", tmp_path / "1"), darken(tmp_path / "in", tmp_path / "2")
    other = darken(tmp_path / "in", tmp_path / "3", seed=1)
    assert first == again
    assert all(first[name] != other[name] for name in first)
    assert first["x.png"] != first["y.png"]


def test_a_full_disk_leaves_no_half_written_and_no_temporary_file(photos, tmp_path, monkeypatch):
    write, output = Path.write_bytes, tmp_path / "dark"

    def write_two_and_a_half(file, content):
        if len(files_below(output)) < 2:
            return write(file, content)
        write(file, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_two_and_a_half)
        with pytest.raises(RunError, match=f"could not write {output}.*No space left on device"):
            darken(photos, output)
    assert set(contents(output)) == {"a.png", "b.jpg"}
    assert darken(photos, output) == darken(photos, tmp_path / "whole")


def test_a_missing_darkener_is_refused(photos, tmp_path):
    with pytest.raises(UsageError, match="no checkpoint at nowhere.pt"):
        darken(photos, tmp_path / "dark", NightConfig(), darkener="nowhere.pt")
    assert not (tmp_path / "dark").exists()


def test_the_contact_sheet_has_a_row_per_exposure_and_a_column_per_image(photos, tmp_path, checkpoint):
    sheet = tmp_path / "sheets" / "sheet.png"
    preview.main(
        preview.Config(
            input=photos, output=sheet, darkener=checkpoint, exposures=(0.3, 0.1), count=3, size=32, device="cpu"
        )
    )
    with Image.open(sheet) as found:
        margin = found.width - (3 * 34 - 2)
        assert found.height == 3 * 34 - 2 and margin > 0
        pixels = np.asarray(found.convert("RGB"))
    day = pixels[:32, margin : margin + 32]
    expected = preview._square(read_picture(photos / "a.png"), 32)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(day / 255, expected, atol=0.003)
    assert set(contents(sheet.parent)) == {"sheet.png"}


def test_the_contact_sheet_shows_requests_that_follow_the_day():
    darkener = load_darkener("starting-point")
    day = torch.full((1, 3, 32, 32), 0.2)
    day[..., :16] = 0.8
    ratios = []
    for contrast in (0.0, 1.0):
        sheet = np.asarray(preview.contact_sheet(darkener, day, RUNTIME, (0.2,), contrast))[-32:, -32:].astype(float)
        ratios.append(sheet[:, 4:12].mean() / sheet[:, 20:28].mean())
    assert ratios[0] < 1.5 < 2.5 < ratios[1]


def test_other_settings_into_the_same_folder_are_refused(photos, tmp_path):
    darken(photos, tmp_path / "dark", NightConfig(source="gamma"))
    with pytest.raises(UsageError, match=r"darkened with other settings \(night\)"):
        darken(photos, tmp_path / "dark", NightConfig(source="gamma", exposure=(0.1, 0.1)))
    with pytest.raises(UsageError, match=r"darkened with other settings \(seed\)"):
        darken(photos, tmp_path / "dark", NightConfig(source="gamma"), seed=1)


def test_another_folder_with_equal_names_does_not_count_as_done(photos, tmp_path):
    darken(photos, tmp_path / "dark")
    paint(tmp_path / "others" / "a.png", seed=9)
    before = contents(tmp_path / "dark")
    with pytest.raises(UsageError, match=rf"holds what was darkened from {photos}, so that .*others .*count as done"):
        darken(tmp_path / "others", tmp_path / "dark")
    assert contents(tmp_path / "dark") == before
    (tmp_path / "link").symlink_to(photos)
    assert darken(tmp_path / "link", tmp_path / "dark") == before


def test_default_exposures_show_something(photos, tmp_path):
    """Training draws from 0 on; files that people look at are not black."""
    night = apply.Config(input=photos, output=tmp_path).night
    assert night.exposure == (0.05, 0.2) and replace_settings(night, exposure=NightConfig().exposure) == NightConfig()


@pytest.mark.parametrize("source", ["learned", "brightness"])
def test_several_exposures_of_each_file_are_made_by_one_command(source, photos, tmp_path):
    """Each as by a command of its own, with the same noise, and resumable like the rest."""
    exposures = (0.05, 0.1, 0.25)
    night = NightConfig(source=source, exposure=apply.SHOWN_EXPOSURES)
    save_video(photos / "trip" / "v.mp4", frames=3)
    found = darken(photos, tmp_path / "dark", night, exposures=exposures)
    sources = [*NAMES, "trip/v.mp4"]
    expected = {name.replace(".", f"@{exposure:g}.") for name in sources for exposure in exposures}
    assert set(found) == expected
    alone = darken(photos, tmp_path / "alone", replace_settings(night, exposure=(0.1, 0.1)))
    assert all(found[name.replace(".", "@0.1.")] == alone[name] for name in NAMES)
    for name in ("trip/c@0.05.png", "trip/v@0.05.mp4"):
        (tmp_path / "dark" / name).unlink()
    (tmp_path / "dark" / "a@0.05.png").write_bytes(b"mine")
    again = darken(photos, tmp_path / "dark", night, exposures=exposures)
    assert set(again) == expected and again["a@0.05.png"] == b"mine"
    (tmp_path / "dark" / "a@0.05.png").write_bytes(found["a@0.05.png"])
    if source == "brightness":
        means = [float(read_picture(tmp_path / "dark" / f"a@{exposure:g}.png").mean()) for exposure in exposures]
        assert means == pytest.approx(exposures, abs=0.02)
    with pytest.raises(UsageError, match=r"other settings \(exposures\)"):
        darken(photos, tmp_path / "dark", night, exposures=(0.05, 0.1))


def test_several_exposures_of_one_file(photos, tmp_path):
    night = replace_settings(GAMMA, exposure=apply.SHOWN_EXPOSURES)
    apply.main(apply.Config(input=photos / "a.png", output=tmp_path / "dark.png", night=night, exposures=(0.1, 0.2)))
    assert {path.name for path in tmp_path.glob("*.png")} == {"dark@0.1.png", "dark@0.2.png"}


def test_a_broken_video_is_told_once_for_all_exposures(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mp4").write_bytes(b"")
    with pytest.raises(RunError, match="1 of 1 file cannot be darkened") as caught:
        darken(tmp_path / "in", tmp_path / "out", replace_settings(GAMMA, exposure=(0.05, 0.2)), exposures=(0.1, 0.2))
    assert str(caught.value).count("broken.mp4") == 1


def test_bytes_and_intensities_are_each_others_inverse():
    codes = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(as_intensities(codes), codes / 255.0)
    assert torch.equal(as_codes(as_intensities(codes)), codes)


GAMMA_AT_TENTH = NightConfig(source="gamma", exposure=(0.1, 0.1))
SHOWN_DAY = NightConfig(source="day", exposure=apply.SHOWN_EXPOSURES)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (apply, {"workers": -1}, "--workers -1: expected 0 or more"),
        (apply, {"threads": -1}, "--threads -1: expected 0 or more"),
        (apply, {"size": (4, 8)}, "--size 4 8: expected two numbers, 8 or more each"),
        (apply, {"exposures": (0.1, 1.5)}, "--exposures 0.1 1.5: expected numbers from 0 to 1, each once"),
        (apply, {"exposures": (0.1, 0.10000001)}, "--exposures 0.1 0.10000001"),  # would be one file
        (apply, {"exposures": (0.1,), "night": GAMMA_AT_TENTH}, "--night.exposure 0.1 0.1: .* --exposures"),
        (apply, {"exposures": (0.1,), "night": SHOWN_DAY}, "--night.source day"),
        (apply, {"shard": "0/2"}, "--shard 0/2: expected i/n, such as 1/3, 2/3 and 3/3"),
        (apply, {"shard": "3/2"}, "--shard 3/2: expected i/n"),
        (apply, {"shard": "2"}, "--shard 2: expected i/n"),
        (preview, {"exposures": ()}, "--exposures"),
        (preview, {"exposures": (0.1, 1.5)}, "--exposures"),
        (preview, {"contrast": 5.0}, "--contrast 5.0"),
        (preview, {"cell": 0}, "--cell 0"),
        (preview, {"count": 0}, "--count 0"),
        (preview, {"size": 4}, "--size 4"),
        (preview, {"output": Path("sheet.jpg")}, "--output sheet.jpg: expected a .png file"),
    ],
)
def test_values_that_cannot_work_are_refused(script, flags, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        script.Config(**({"input": tmp_path, "output": tmp_path / "sheet.png"} | flags))


SHARES = [{"a.png", "broken.png", "trip/d.jpg", "trip/walk.mp4"}, {"b.jpg", "trip/c.png", "trip/deep er/e.png"}]


@pytest.fixture
def mixed(photos):
    save_video(photos / "trip/walk.mp4", frames=3)
    (photos / "broken.png").write_bytes(b"no picture")
    return photos


def test_shares_make_together_what_one_run_makes(mixed, tmp_path, caplog):
    whole, output = darken(mixed, tmp_path / "whole", skip_corrupt=True), tmp_path / "shared"
    output.mkdir()
    left = [output / f"{_temporary_prefix(output / name)}99999999.tmp" for name in ("a.png", "b.jpg")]
    for file in left:
        file.write_text("of a process that was killed")
    caplog.set_level("INFO")
    with pytest.raises(RunError, match=r"^share 1/2: 1 of 4 files cannot be darkened:\n.*broken.png"):
        darken(mixed, output, shard="1/2")
    assert [file.exists() for file in left] == [False, True]
    assert set(contents(output)) == SHARES[0] - {"broken.png"} | {left[1].name}
    assert darken(mixed, output, shard="2/2") == whole
    assert "share 2/2: 3 files darkened into" in caplog.text and "done already" not in caplog.text


def test_a_share_that_was_started_with_other_settings_in_the_same_moment_is_told(photos, tmp_path, monkeypatch):
    def write_late(image, file):
        write_picture(image, file)
        record = tmp_path / "dark" / apply.SETTINGS_FILE
        record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))

    monkeypatch.setattr(apply, "write_picture", write_late)
    with pytest.raises(UsageError, match=r"darkened with other settings \(seed\)"):
        darken(photos, tmp_path / "dark", shard="1/2")


def test_processes_of_torchrun_take_a_share_each_and_wait_for_each_other(mixed, tmp_path):
    whole = darken(mixed, tmp_path / "whole", skip_corrupt=True)
    flags = ["--input", mixed, "--output", tmp_path / "shared", "--night.source", "gamma", "--workers", "0"]
    command = [sys.executable, "-m", "darkening.apply", *map(str, flags), "--device", "cpu", "--night.exposure"]
    assert run_ranks([*command, *map(str, GAMMA.exposure)]) == [1, 0]  # the first has the broken one
    assert contents(tmp_path / "shared") == whole


def test_a_share_within_the_shares_of_torchrun_is_refused(photos, tmp_path, monkeypatch):
    runtime = Runtime(torch.device("cpu"), world_size=2)
    monkeypatch.setattr(apply, "open_runtime", lambda *_, **__: nullcontext(runtime))
    with pytest.raises(UsageError, match="--shard 1/2: expected none under torchrun"):
        darken(photos, tmp_path / "dark", shard="1/2")
    assert not (tmp_path / "dark").exists()

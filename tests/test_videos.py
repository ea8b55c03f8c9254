"""Videos in and out: exact frames, darkening with the frames, times and sound of the source, broken files, kills."""

import errno
import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import frame_pixels, probe, save_video

from darkening import apply, load_darkener
from darkening.night_view import NightConfig, NightView, build_night_view
from media import video_frames, video_writer
from media.video_frames import BrokenVideo, count_frames, read_frames
from media.video_writer import VideoOptions
from media.videos import darken_video
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.seeding import generator_for

RUNTIME = Runtime(torch.device("cpu"))
DAY, GAMMA = NightConfig(source="day"), NightConfig(source="gamma", exposure=(0.1, 0.1))
UNEVEN = [0, 3, 11, 20, 22, 40, 41, 60, 75, 76, 90, 120]


def levels(frames):
    """The grey level of each frame, from a corner that the bar does not reach."""
    return frames[:, :, -6:, :].float().mean(dim=(1, 2, 3)).tolist()


def expected_levels(numbers):
    return [40 + 6 * (number % 30) for number in numbers]


FILES = {
    "mp4": {"name": "a.mp4"},
    "mkv": {"name": "a.mkv"},
    "avi": {"name": "a.avi"},
    "old avi": {"name": "b.avi", "codec": "mpeg4"},
    "webm": {"name": "a.webm", "codec": "libvpx-vp9"},
    "uneven times": {"name": "v.mp4", "times": UNEVEN, "b_frames": 0},
    "odd size": {"name": "o.mp4", "height": 31, "width": 45},
    "sound": {"name": "s.mp4", "sound": True},
}


def make(tmp_path, name, **options):
    return save_video(tmp_path / name, **options)


@pytest.mark.parametrize("case", FILES)
def test_frames_are_read_by_number(case, tmp_path):
    file = make(tmp_path, **FILES[case])
    assert probe(file).frames == 12
    numbers = [7, 0, 11, 3, 3]
    found = read_frames(file, numbers)
    assert found.shape[:2] == (5, 3) and found.dtype == torch.uint8
    assert levels(found) == pytest.approx(expected_levels(numbers), abs=4)


@pytest.mark.parametrize("case", ["mp4", "mkv", "uneven times", "avi", "webm"])
def test_a_seek_finds_the_same_frames_as_decoding_from_the_start(case, tmp_path, monkeypatch):
    options = dict(FILES[case])
    if case == "uneven times":
        options["b_frames"] = 2
        options["times"] = [int(t) for t in np.cumsum(np.random.default_rng(0).integers(1, 9, 40))]
    file = make(tmp_path, **options, frames=40)
    numbers = [33, 38, 35]
    plain = read_frames(file, numbers)
    assert levels(plain) == pytest.approx(expected_levels(numbers), abs=4)
    monkeypatch.setattr(video_frames, "_SEEK_FROM", 1)
    sought = video_frames._seek_frames(file, set(numbers), None)
    assert set(sought) == (set() if case == "avi" else set(numbers)), "AVI keeps no times"
    assert torch.equal(read_frames(file, numbers), plain)


def test_a_picture_in_motion_with_entries_that_pyav_does_not_know_is_upright(tmp_path):
    """Each frame of such a camera is a JPEG with its EXIF entries, of which newer FFmpeg tells all."""
    sideways = Image.Exif()
    sideways[0x0112], sideways[0x010F] = 6, "maker"
    with av.open(str(tmp_path / "a.avi"), "w") as out:
        track = out.add_stream("mjpeg", rate=10)
        track.width, track.height, track.pix_fmt = 48, 32, "yuvj420p"
        for number in range(3):
            picture = io.BytesIO()
            Image.fromarray(frame_pixels(number, 32, 48)).save(picture, "jpeg", exif=sideways)
            packet = av.Packet(picture.getvalue())
            packet.pts = packet.dts = number
            packet.stream, packet.time_base, packet.duration = track, Fraction(1, 10), 1
            out.mux(packet)
    upright = torch.from_numpy(frame_pixels(1, 32, 48)).permute(2, 0, 1).rot90(-1, (1, 2)).float()
    assert (read_frames(tmp_path / "a.avi", [1])[0].float() - upright).abs().mean() < 8


def test_a_frame_beyond_the_end_is_told(tmp_path):
    with pytest.raises(BrokenVideo, match="ends before its frame 12"):
        read_frames(make(tmp_path, "a.mp4"), [3, 12])


def darken(file, target, night=DAY, options=None, size=None, progress=lambda _: None):
    view = build_night_view(night, None, RUNTIME) if isinstance(night, NightConfig) else night
    start = lambda height, width: view.for_video(height, width, generator_for("test"))  # noqa: E731
    darken_video(file, target, start, RUNTIME, options or VideoOptions(crf=4), size, progress)


@pytest.mark.parametrize("case", FILES)
def test_a_darkened_video_keeps_frames_size_rate_and_sound(case, tmp_path):
    file = make(tmp_path, **FILES[case])
    target = tmp_path / "out" / file.name
    darken(file, target)
    assert probe(target) == probe(file)
    source, result = (read_frames(path, range(12)).float() for path in (file, target))
    assert (source - result).abs().mean() < 4
    with av.open(str(target)) as container:
        odd = case == "odd size"
        assert container.streams.video[0].codec_context.pix_fmt == ("yuv444p" if odd else "yuv420p")
    assert [path.name for path in target.parent.iterdir()] == [file.name]


def times_of(file):
    with av.open(str(file)) as container:
        return [Fraction(frame.pts * frame.time_base) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_each_frame_keeps_its_time(name, tmp_path):
    file = save_video(tmp_path / name, times=UNEVEN)
    darken(file, tmp_path / "out" / name)
    assert times_of(tmp_path / "out" / name) == times_of(file)


def test_the_last_frame_is_shown_as_long_as_before(tmp_path):
    """Two seconds, where the ones before had tenths; the source stores frames in the order they are shown."""
    file = save_video(tmp_path / "a.mkv", times=UNEVEN, last=200, b_frames=0)
    darken(file, tmp_path / "out.mkv")
    for path in (file, tmp_path / "out.mkv"):
        with av.open(str(path)) as container:
            assert container.duration == 3_200_000
            frames = list(container.decode(video=0))
            assert frames[-1].duration * frames[-1].time_base == 2


def packets_of_sound(file):
    with av.open(str(file)) as container:
        streams = container.streams.audio
        return [bytes(packet) for packet in container.demux(streams) if packet.size] if streams else []


def test_sound_that_a_container_cannot_hold_is_left_out_with_a_warning(tmp_path, caplog):
    file = save_video(tmp_path / "s.mp4", sound=True)
    disguised = file.rename(tmp_path / "s.webm")
    darken(disguised, tmp_path / "out" / "s.webm")
    assert "s.webm: its container cannot hold sound as aac, which is left out" in caplog.text
    assert probe(tmp_path / "out" / "s.webm").audio == ()


def test_a_video_has_one_exposure_and_one_noise_map(tmp_path):
    """Every frame of a still video comes out alike, and as the night view makes it of the whole clip."""
    view = build_night_view(NightConfig(), load_darkener("starting-point"), RUNTIME)
    frames = torch.rand(1, 3, 32, 48).expand(6, -1, -1, -1)
    darkener = view.for_video(32, 48, generator_for("draws"))
    parts = torch.cat([darkener(frames[:2]), darkener(frames[2:])])
    torch.testing.assert_close(parts, parts[:1].expand_as(parts))
    whole = view(frames.transpose(0, 1)[None], generator_for("draws"))[0].transpose(0, 1)
    torch.testing.assert_close(parts, whole)
    other = view.for_video(32, 48, generator_for("others"))(frames[:1])
    assert (other - parts[:1]).abs().mean() > 1e-3


@pytest.mark.parametrize("sound", [False, True])
def test_a_learned_night_ends_at_every_number_of_frames_at_a_time(sound, tmp_path):
    """Behind the last whole batch there may be sound and no frame."""
    file, frames = save_video(tmp_path / "a.mkv", frames=6, sound=sound), 6
    view = build_night_view(NightConfig(exposure=(0.1, 0.1)), load_darkener("starting-point"), RUNTIME)
    made = []
    for batch in (*range(1, frames + 2), 0):
        counts, target = [], tmp_path / f"{batch}.mkv"
        darken(file, target, view, VideoOptions(crf=0, batch=batch), progress=counts.append)
        assert sum(counts) == frames and 0 not in counts
        assert probe(target) == probe(file) and len(probe(target).audio) == sound
        assert packets_of_sound(target) == packets_of_sound(file)
        made.append(read_frames(target, range(frames)).float())
    # Sums in another order may round another way.
    assert max(float((one - made[0]).abs().mean()) for one in made) < 0.1


def test_intensities_are_clamped_not_wrapped_around(tmp_path):
    file, target = save_video(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    view = NightView(lambda images, exposure, generator, draws: images * 1.2 + 0.3, (0.1, 0.1))
    darken(file, target, view)
    bright = read_frames(target, [11])[0, :, :16]
    assert bright.max() > 250 and bright[:, :, 33:37].float().mean() > 240, "white became black"


def test_frames_may_be_brought_to_a_size(tmp_path):
    darken(save_video(tmp_path / "a.mp4"), tmp_path / "out.mp4", size=(24, 30))
    facts = probe(tmp_path / "out.mp4")
    assert (facts.height, facts.width, facts.frames) == (24, 30, 12)


def test_a_text_and_a_file_of_sound_alone_say_that_they_are_no_video(tmp_path):
    (tmp_path / "text.avi").write_text("this is not a video\n" * 40)
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        track = out.add_stream("aac", rate=8000)
        track.layout = "mono"
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        piece.sample_rate = 8000
        out.mux(track.encode(piece))
        out.mux(track.encode(None))
    for name, message in (("text.avi", "invalid data found"), ("sound.mp4", "holds no video")):
        for use in (count_frames, lambda file: darken(file, tmp_path / "out.mp4")):
            with pytest.raises(BrokenVideo, match=message):
                use(tmp_path / name)


def apply_to(source, output, night=GAMMA, **flags):
    apply.main(apply.Config(input=source, output=output, night=night, workers=0, device="cpu", **flags))


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "data"
    for name in ("Run/a.mp4", "Run/b.avi", "Sit/c.mkv", "Sit/d.mp4"):
        save_video(folder / name)
    Image.fromarray(frame_pixels(0, 20, 24)).save(folder / "cover.png")
    return folder


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


ALL = [".darkening.json", "Run/a.mp4", "Run/b.avi", "Sit/c.mkv", "Sit/d.mp4", "cover.png"]


def test_a_tree_of_images_and_videos_is_darkened(tree, tmp_path):
    apply_to(tree, tmp_path / "dark")
    assert names_below(tmp_path / "dark") == sorted(ALL)
    for name in ALL[1:-1]:
        assert probe(tmp_path / "dark" / name) == probe(tree / name)
        mean = float(read_frames(tmp_path / "dark" / name, range(12)).float().mean()) / 255
        assert mean == pytest.approx(0.1, abs=0.04)
    times = {name: (tmp_path / "dark" / name).stat().st_mtime_ns for name in ALL[1:]}
    apply_to(tree, tmp_path / "dark")
    assert {name: (tmp_path / "dark" / name).stat().st_mtime_ns for name in ALL[1:]} == times
    with pytest.raises(UsageError, match=r"darkened with other settings \(crf\)"):
        apply_to(tree, tmp_path / "dark", video=VideoOptions(crf=30))
    with pytest.raises(UsageError, match=r"one.png: expected a folder or a video such as .mp4"):
        apply_to(tree / "Run" / "a.mp4", tmp_path / "one.png")


def test_a_full_disk_ends_with_one_line_and_no_half_file(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(video_writer.VideoWriter, "_time", lambda *_: av.error.err_check(-errno.ENOSPC))
    with pytest.raises(RunError, match=r"^could not write .*a.mp4: .*No space left on device; free some space.*"):
        apply_to(tree, tmp_path / "dark")
    assert names_below(tmp_path / "dark") == [".darkening.json", "cover.png"]


def test_a_video_that_ffmpeg_cannot_write_anew_does_not_stop_the_others(tree, tmp_path, monkeypatch):
    write = video_writer.VideoWriter.write

    def refuse(writer, *parts):
        with video_writer._translate_errors():
            if writer.original.container.name.endswith("b.avi"):
                av.error.err_check(-errno.EINVAL)
        write(writer, *parts)

    monkeypatch.setattr(video_writer.VideoWriter, "write", refuse)
    with pytest.raises(
        RunError, match=r"1 of 5 files cannot be darkened:\n.*b.avi: cannot be encoded again: invalid argum"
    ):
        apply_to(tree, tmp_path / "dark")
    assert names_below(tmp_path / "dark") == [name for name in ALL if name != "Run/b.avi"]


def test_videos_may_be_added_to_a_folder_of_images(tree, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (tree / "cover.png").rename(pictures / "cover.png")
    apply_to(pictures, tmp_path / "dark")
    save_video(pictures / "a.mp4")
    apply_to(pictures, tmp_path / "dark")
    assert names_below(tmp_path / "dark") == [".darkening.json", "a.mp4", "cover.png"]


def test_of_several_video_streams_the_first_is_taken(tmp_path):
    with av.open(str(tmp_path / "two.mp4"), "w") as out:
        streams = [out.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, side in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for number in range(4):
            for stream in streams:
                pixels = frame_pixels(number, stream.height, stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")))
        for stream in streams:
            out.mux(stream.encode(None))
    darken(tmp_path / "two.mp4", tmp_path / "out.mp4")
    for name in ("two.mp4", "out.mp4"):
        facts = probe(tmp_path / name)
        assert (facts.height, facts.width, facts.frames) == (32, 32, 4)


def remux(sources, target, first=0.0, gap=0, apart=None, **options):
    """Copy packets, from the key frame before `first` seconds on, as `ffmpeg -ss -c copy`.

    Each source begins `gap` after the one before; `apart` gives the packets new times.
    """
    with av.open(str(target), "w", options=options) as out:
        track = None
        for place, source in enumerate(sources):
            with av.open(str(source)) as given:
                stream = given.streams.video[0]
                track = track or out.add_stream_from_template(stream)
                start = round(first / stream.time_base)
                if first:
                    given.seek(start, stream=stream)
                for number, packet in enumerate(p for p in given.demux(stream) if p.dts is not None):
                    times = (time - start + gap * place for time in (packet.pts, packet.dts))
                    packet.pts, packet.dts = times if apart is None else (apart * number, apart * number)
                    packet.stream = track
                    out.mux(packet)
    return target


def test_frames_that_an_edit_list_leaves_out_are_not_counted(tmp_path, monkeypatch):
    cut = remux([save_video(tmp_path / "a.mp4", frames=30)], tmp_path / "cut.mp4", first=0.7)
    with av.open(str(cut)) as container:
        assert any(packet.is_discard for packet in container.demux(container.streams.video[0]) if packet.size)
    count = probe(cut).frames
    wanted = [count - 6, count - 3, count - 1]
    plain = read_frames(cut, wanted)
    monkeypatch.setattr(video_frames, "_SEEK_FROM", 1)
    assert torch.equal(read_frames(cut, wanted), plain)
    darken(cut, tmp_path / "dark.mp4", GAMMA)
    assert probe(tmp_path / "dark.mp4").frames == count


def test_an_avi_may_repeat_frames_without_storing_them(tmp_path):
    source = save_video(tmp_path / "a.avi", frames=6, codec="mpeg4")
    # Two chunks without a picture between two frames.
    uneven = remux([source], tmp_path / "uneven.avi", apart=3)
    assert probe(uneven).frames == 6
    darken(uneven, tmp_path / "dark.avi", GAMMA)
    assert probe(tmp_path / "dark.avi").frames == 6
    with av.open(str(uneven)) as before, av.open(str(tmp_path / "dark.avi")) as after:
        first, second = ([f.time for f in c.decode(video=0)] for c in (before, after))
    # Of the last frame the decoder only guesses the time.
    assert np.diff(second)[:-1] == pytest.approx(np.diff(first)[:-1], abs=0.11)


def test_an_avi_that_ends_between_two_frames_is_refused(tmp_path):
    """Where no frame is damaged, and its header cannot be asked for a time."""
    file = save_video(tmp_path / "a.avi", frames=60, codec="mpeg4")
    content = file.read_bytes()
    with av.open(str(file)) as container:
        starts = [packet.pos - 8 for packet in container.demux(video=0) if packet.size]
    for number in (20, 40, 56):
        file.write_bytes(content[: starts[number]])
        with pytest.raises(BrokenVideo, match="is cut off$|invalid data"):
            count_frames(file)


def test_a_video_that_changes_its_size_is_refused(tmp_path):
    parts = [save_video(tmp_path / "a.mkv"), save_video(tmp_path / "b.mkv", height=48, width=64)]
    both = remux(parts, tmp_path / "both.mkv", gap=2000)
    with pytest.raises(BrokenVideo, match="changes its size|damaged|cut off|invalid"):
        count_frames(both)

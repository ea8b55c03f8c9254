"""Videos that are cut, damaged, turned, uneven, oddly sized or named, or cannot be written."""

import os
import random
import resource
import shutil
import struct
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from faults import SilentlyWrong, WorkLost, fault, start
from torch.utils.data import DataLoader
from video_files import RATE, frame_pixels, save_video

from darkening import apply
from media.video_frames import BrokenVideo, count_frames, read_frames

DAY = ("--night.source", "day", "--workers", 0, "--device", "cpu", "--video.crf", 4)
KINDS = {"mov": "libx264", "mkv": "libx264", "avi": "mpeg4", "mp4": "libx264", "webm": "libvpx"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A video of each kind with sound where its container holds AAC, made once."""
    folder = tmp_path_factory.mktemp("made")
    for ending, codec in KINDS.items():
        save_video(folder / f"x.{ending}", codec=codec, sound=ending != "webm", height=16, width=24)
    return folder


def darken(source, output, *flags):
    return start(apply, "--input", source, "--output", output, *DAY, *flags)


def named_or_done(said, file, output):
    """A file is named and not written, or written whole; the good one beside it is done. Whether it was done."""
    target = Path(output, file.name)
    if (str(file) in said.out) == target.is_file():
        raise SilentlyWrong(f"{file}: made {target.is_file()}, told: {said.out}")
    if not Path(output, "good.mkv").is_file():
        raise WorkLost("the good video is not done")
    if list(Path(output).rglob("*.tmp")):
        raise WorkLost("half a file was left")
    assert said.code == (0 if target.is_file() else 1), said
    if target.is_file() and count_frames(target) != count_frames(file):
        raise SilentlyWrong(f"{count_frames(target)} frames of {count_frames(file)}")
    return target.is_file()


def beside_a_good_one(tmp_path, made, name, content):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(made / "x.mkv", source / "good.mkv")
    (source / name).write_bytes(content)
    return source


@fault(
    *("videos", "a file cut at any byte", "named, the others done; or darkened whole, where only its end lacks"),
    trials=[(ending, seed) for ending in KINDS for seed in range(8)],
)
def test_cut(trial, tmp_path, made):
    ending, seed = trial
    content = (made / f"x.{ending}").read_bytes()
    content = content[: random.Random(str(trial)).randrange(len(content)) if seed < 7 else 0]
    source = beside_a_good_one(tmp_path, made, f"x.{ending}", content)
    said = darken(source, tmp_path / "out")
    if named_or_done(said, source / f"x.{ending}", tmp_path / "out") and count_frames(source / f"x.{ending}") < 11:
        raise SilentlyWrong("a video that is cut was darkened")
    assert darken(source, tmp_path / "out", "--skip-corrupt").code == 0


@fault(
    *("videos", "one to sixteen bytes are others", "named, or darkened as it decodes; the others done"),
    trials=[(ending, seed) for ending in KINDS for seed in range(16)],
)
def test_changed(trial, tmp_path, made):
    ending, seed = trial
    drawn, content = random.Random(str(trial)), bytearray((made / f"x.{ending}").read_bytes())
    for _ in range(drawn.choice([1, 2, 4, 16])):
        content[drawn.randrange(min(len(content), drawn.choice([800, 10**6])))] = drawn.randrange(256)
    source = beside_a_good_one(tmp_path, made, f"x.{ending}", bytes(content))
    named_or_done(darken(source, tmp_path / "out"), source / f"x.{ending}", tmp_path / "out")


MATRICES = {  # the first two rows of a display matrix, and how a frame (H, W, 3) is shown
    "right": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "unturned": ((1, 0, 0, 1), lambda a: a),
    "half": ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    "left": ((0, -1, 1, 0), lambda a: np.rot90(a)),
    "transposed": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transverse": ((0, -1, -1, 0), lambda a: np.rot90(a.swapaxes(0, 1), 2)),
    "nothing": ((0, 0, 0, 0), lambda a: a),
}


@fault(
    *("videos", "a display matrix that turns, mirrors, scales or is all zeros", "upright"),
    trials=[(name, scale, ending) for name in MATRICES for scale in (1, 0.5, 3) for ending in ("mp4", "mov")],
)
def test_turned(trial, tmp_path):
    name, scale, ending = trial
    (a, b, c, d), turn = MATRICES[name]
    file = save_video(tmp_path / f"x.{ending}", frames=2)
    one = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (round(value * scale * (1 << 16)) for value in (a, b, c, d))
    content = file.read_bytes()
    track = content.index(b"tkhd")
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(content[:track] + content[track:].replace(one, matrix, 1))
    assert darken(file, tmp_path / f"out.{ending}").code == 0
    shown = turn(frame_pixels(0, 32, 48)).astype(float)
    found = read_frames(tmp_path / f"out.{ending}", [0])[0].permute(1, 2, 0).numpy()
    if found.shape != shown.shape or abs(found - shown).mean() > 6:
        raise SilentlyWrong(f"{found.shape}, expected {shown.shape}")
    assert read_frames(file, [0], (24, 30)).shape == (1, 3, 24, 30)


def shown_times(file):
    """When each frame is shown, and how long the last one, in seconds."""
    with av.open(str(file)) as container:
        frames = list(container.decode(video=0))
        tick = container.streams.video[0].time_base
        return [(frame.pts or 0) * tick for frame in frames], frames[-1].duration * tick, tick


@fault(
    *(
        "videos",
        "frames at uneven times, drawn at random, from 0 or later",
        "the same times; the last as long",
    ),
    trials=[(ending, seed) for ending in ("mp4", "mov", "mkv") for seed in range(8)],
)
def test_uneven(trial, tmp_path):
    ending, seed = trial
    drawn = random.Random(str(trial))
    steps = [drawn.choice([1, 2, 3, 10, 200]) for _ in range(drawn.randrange(2, 14))]
    first = drawn.choice([0, 0, 150])
    times = [first + sum(steps[:number]) for number in range(len(steps))]
    file = save_video(tmp_path / f"x.{ending}", frames=len(times), times=times, b_frames=0, last=steps[-1])
    assert darken(file, tmp_path / f"out.{ending}").code == 0
    (before, long, tick), (after, also, other) = shown_times(file), shown_times(tmp_path / f"out.{ending}")
    slack = max(tick, other)
    if len(before) != len(after) or max(abs(x - y) for x, y in zip(before, after, strict=True)) > slack:
        raise SilentlyWrong(f"{before} {after}")
    if ending != "mkv" and abs(long - also) > slack:
        raise SilentlyWrong(f"the last frame is shown for {also}, before {long}")


@fault(
    *("videos", "times below zero, or a start long after zero", "as many frames, as far apart"),
    trials=[(ending, first) for ending in ("mp4", "mkv", "avi", "mov") for first in (-300, -5, 500, 3600 * 100)],
)
def test_start(trial, tmp_path):
    ending, first = trial
    file = save_video(tmp_path / "x.mkv", frames=6, times=[10 * number for number in range(6)], b_frames=0)
    moved = tmp_path / "in" / f"x.{ending}"
    moved.parent.mkdir()
    with av.open(str(file)) as given, av.open(str(moved), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = given.streams.video[0]
        track = out.add_stream_from_template(stream)
        shift = round(Fraction(first, 100) / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, track
                try:
                    out.mux(packet)
                except av.FFmpegError:
                    pytest.skip("a container that holds no such time")
    try:
        count = count_frames(moved)
    except BrokenVideo:  # an edit list shows nothing before zero
        said = darken(moved, tmp_path / "out")
        assert said.code == 1 and "holds no frame" in said.out, said
        return
    assert darken(moved, tmp_path / "out").code == 0
    if count_frames(tmp_path / "out" / moved.name) != count:
        raise SilentlyWrong("other frames")
    before, after = (shown_times(name)[0] for name in (moved, tmp_path / "out" / moved.name))
    gaps = [[b - a for a, b in pairwise(times)] for times in (before, after)]
    if ending != "avi" and max(abs(x - y) for x, y in zip(*gaps, strict=True)) > Fraction(1, 100):
        raise SilentlyWrong(f"{before} {after}")


def sound_packets(file):
    with av.open(str(file)) as container:
        streams = container.streams.audio
        return [bytes(packet) for packet in container.demux(streams) if packet.size] if streams else []


def sound_times(file):
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(container.streams.audio) if packet.size]
        return [float(packet.dts * packet.time_base) for packet in packets]


@fault(
    *("videos", "times of sound that repeat or step back, at random", "the same sound, its times in order"),
    trials=[(ending, seed) for ending in ("mkv", "mp4") for seed in range(8)],
)
def test_sound(trial, tmp_path):
    ending, seed = trial
    drawn = random.Random(seed)
    source = save_video(tmp_path / "x.mkv", sound=True, frames=15)
    packets, content = sound_packets(source), bytearray(source.read_bytes())
    for number in drawn.sample(range(2, len(packets)), 3):
        here, before = content.index(packets[number]), content.index(packets[number - 1])
        time = int.from_bytes(content[before - 3 : before - 1], "big", signed=True) - drawn.choice([0, 0, 1, 60])
        content[here - 3 : here - 1] = time.to_bytes(2, "big", signed=True)
    source.write_bytes(content)
    said = darken(source, tmp_path / f"out.{ending}") if ending == "mkv" else None
    if said is None:  # by way of the library, as a command keeps the kind of a file
        from test_videos import darken as convert

        convert(source, tmp_path / "out.mp4")
    if sound_packets(tmp_path / f"out.{ending}") != packets:
        raise SilentlyWrong("other sound")
    copied, least = sound_times(tmp_path / f"out.{ending}"), 0 if ending == "mkv" else 1e-9
    if any(later - time < least for time, later in pairwise(copied)):
        raise SilentlyWrong(f"times out of order: {copied}")
    assert copied == pytest.approx(list(accumulate(sound_times(source), max)), abs=0.002)


@fault(
    *("videos", "sound of an unknown kind, or one that is no sound", "darkened, left out with a warning"),
    trials=[b"apac", b"zzzz", b"mp4v"],
)
def test_unknown_sound(trial, tmp_path, caplog):
    file = save_video(tmp_path / "x.mp4", sound=True)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"mp4a", trial).replace(b"esds", b"xsds"))
    assert darken(file, tmp_path / "out.mp4").code == 0
    if count_frames(tmp_path / "out.mp4") != 12 or "left out" not in caplog.text:
        raise SilentlyWrong(caplog.text)


SIZES = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (3, 2), (3, 3), (5, 4), (7, 5), (8, 8), (9, 17), (17, 9)]


@fault(
    *("videos", "sizes of 1x1 to 17x9, of one frame or more", "the same size and number of frames, or named"),
    trials=[(size, frames, ending) for size in SIZES for frames, ending in ((1, "mkv"), (3, "mp4"), (2, "webm"))],
)
def test_size(trial, tmp_path):
    (height, width), frames, ending = trial
    # Without loss and in any size; H.264 and VP9 are written from it.
    plain = save_video(tmp_path / "plain.mov", frames, height, width, "png", pix_fmt="rgb24")
    file = tmp_path / "in" / f"x.{ending}"
    file.parent.mkdir()
    shutil.copy(plain, file)
    said = darken(file, tmp_path / "out")
    target = tmp_path / "out" / file.name
    if said.code:
        assert str(file) in said.out and not target.exists() and min(height, width) < 2, said
        return
    shown = read_frames(target, range(frames))
    if shown.shape != (frames, 3, height, width) or count_frames(target) != frames:
        raise SilentlyWrong(f"{shown.shape}")
    if abs(shown.float() - read_frames(file, range(frames)).float()).mean() > 12:
        raise SilentlyWrong("other pixels")


NAMES = {
    **{"colon": b"12:30", "255 bytes": b"n" * 251, "protocol": b"http:", "pipe": b"pipe:1"},
    **{"concat": b"concat:a|b", "leading dash": b"-i", "new line": b"two\nlines", "dollar": b"$(x)"},
    **{"not UTF-8": b"caf\xe9", "percent": b"%03d", "percent s": b"%s%n", "spaces": b" a  b "},
    **{"emoji": "🌙🏽🚀".encode(), "brackets": b"[a]*?", "backslash": b"a\\nb"},
}


@fault(
    *("videos", "names that are not text, too long, or mean something to FFmpeg", "read and written"),
    trials=[(name, ending, how) for name in NAMES for ending in ("mp4", "avi", "mkv") for how in ("file", "folder")],
)
def test_names(trial, tmp_path, made, monkeypatch):
    name, ending, how = trial
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / f"{os.fsdecode(NAMES[name])}.{ending}"
    shutil.copy(made / f"x.{ending}", file)
    monkeypatch.chdir(tmp_path / "in")
    said = start(apply, f"--input={file.name if how == 'file' else '.'}", f"--output={tmp_path / 'out'}", *DAY)
    if said.code or count_frames(tmp_path / "out" / file.name) != count_frames(file):
        raise SilentlyWrong(str(said))


@fault(
    *("videos", "titles in an old encoding, or of control characters", "darkened; told as not kept"),
    trials=[(title, ending) for title in ("XXcaféXX", "XX\x1b[1mXX", "XX\x00\xff\xfeX") for ending in ("mp4", "avi")],
)
def test_titles(trial, tmp_path, caplog):
    title, ending = trial
    file = save_video(tmp_path / f"x.{ending}", title="X" * len(title.encode("latin-1")))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"X" * len(title), title.encode("latin-1")))
    assert darken(file, tmp_path / "out").code == 0
    if count_frames(tmp_path / "out" / file.name) != 12 or "titles and other entries of 1 file" not in caplog.text:
        raise SilentlyWrong(caplog.text)


@fault(
    *("videos", "what a darkened file does not hold: HDR, more bits, further streams", "told once"),
    trials=["HDR", "bits beyond 8", "further video streams", "transparency", "nothing"],
)
def test_told(trial, tmp_path, caplog):
    file = tmp_path / "x.mkv"
    formats = {"HDR": "yuv420p10le", "bits beyond 8": "yuv420p10le", "transparency": "yuva420p"}
    with av.open(str(file), "w") as out:
        for _ in range(2 if trial == "further video streams" else 1):
            stream = out.add_stream("ffv1", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 24, 16, formats.get(trial, "yuv420p")
            if trial == "HDR":
                stream.codec_context.color_trc = 16
        for stream in out.streams.video:
            frame = av.VideoFrame.from_ndarray(frame_pixels(0, 16, 24), format="rgb24").reformat(format=stream.pix_fmt)
            if trial == "HDR":
                frame.color_trc = 16
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    assert darken(file, tmp_path / "out").code == 0
    told = [line for line in caplog.messages if line.startswith("not kept")]
    if (trial == "nothing") != (not told) or (told and trial not in told[0]):
        raise SilentlyWrong(str(told))


@fault(
    *("videos", "no room for a whole file", "named, exit code 1; no half file, smaller ones done"),
    trials=[(ending, seed) for ending in KINDS for seed in range(3)],
)
def test_no_room(trial, tmp_path, made):
    ending, seed = trial
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = beside_a_good_one(tmp_path, made, "note.txt", b"")
    save_video(source / "good.mkv", frames=1)
    save_video(source / f"x.{ending}", codec=KINDS[ending], frames=60, height=96, width=128)
    assert darken(source, tmp_path / "whole").code == 0
    good, size = ((tmp_path / "whole" / name).stat().st_size for name in ("good.mkv", f"x.{ending}"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (random.Random(seed).randrange(good, size - 1), before[1]))
    try:
        said = darken(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if named_or_done(said, source / f"x.{ending}", tmp_path / "out"):
        raise SilentlyWrong("a file of more than the limit was written")
    assert "File too large" in said.out and "free some space" not in said.out, said
    assert darken(source, tmp_path / "out").code == 0


class Nothing(torch.utils.data.Dataset):
    """What a process collects, in which no thread of FFmpeg is."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        import gc

        return gc.collect() * 0


@fault(*("videos", "processes that load data start after videos were read", "they end"), trials=6)
def test_forked(trial, tmp_path, made):
    for number in range(3):
        read_frames(made / "x.mp4", [number])
        with pytest.raises(BrokenVideo):  # whose traceback holds what was open
            read_frames(made / "x.mkv", [400])
        darken(made / "x.mp4", tmp_path / f"{number}.mp4")
    assert list(DataLoader(Nothing(), num_workers=1, batch_size=None, timeout=30)) == [0]

"""Darkening a video: batches with decoding and encoding beside them, against a loop frame by frame, alternately.

    python benchmarks/bench_video.py

The straightforward loop decodes a frame, darkens it by the authors' formulation with the starting point's weights,
encodes it by the same preset, and goes on to the next, with the C library's default allocator.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as darkening.apply does; here for both

import av
import numpy as np
import torch
from bench_darkening import DARKENERS, RUNTIME, THREADS, default_allocator, straightforward

from darkening.darkener_files import STARTING_POINT, load_darkener
from darkening.night_view import NightConfig, build_night_view
from media.video_frames import read_frames
from media.video_writer import VideoOptions
from media.videos import darken_video
from minmax.runtime.devices import keep_large_buffers
from minmax.runtime.seeding import generator_for

ROUNDS = 3
# Height, width, frames, and as many of them as the straightforward loop is given.
VIDEOS = ((240, 320, 48, 12), (1080, 1920, 16, 2))
OPTIONS = VideoOptions()


def sample_video(file, height, width, frames):
    """A moving pattern with grain, H.264 at 25 frames per second."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (height + 64, width + 64, 3))
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        columns, rows = np.meshgrid(np.arange(width) * 320 / width, np.arange(height) * 240 / height)
        for number in range(frames):
            waves = [np.sin(columns / (9 + c) + number / 5) * np.cos(rows / (11 + c)) for c in range(3)]
            down, right = rng.integers(0, 64, 2)
            pixels = 120 + 80 * np.stack(waves, axis=-1) + grain[down : down + height, right : right + width]
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def authors_loop(source, target, darkener, exposure, count):
    """The first frames, one by one."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        original = container.streams.video[0]
        options = {"crf": str(OPTIONS.crf), "preset": "veryfast"}
        stream = out.add_stream("libx264", rate=original.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = original.width, original.height, "yuv420p"
        for _, frame in zip(range(count), container.decode(original), strict=False):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()[None] / 255.0
            with torch.no_grad():
                dark = straightforward(darkener, pixels, exposure).image.clamp(0, 1)
            night = (dark * 255).round().to(torch.uint8)[0].permute(1, 2, 0)
            written = av.VideoFrame.from_ndarray(night.contiguous().numpy(), format="rgb24")
            written.pts, written.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(written))
        out.mux(stream.encode(None))


def bench(folder, height, width, frames, few):
    """One size of video, with each night, by as many threads as asked for."""
    authors = load_darkener(STARTING_POINT)
    source, plain, ours = (folder / name for name in ("day.mp4", "plain.mp4", "ours.mp4"))
    sample_video(source, height, width, frames)
    config = NightConfig(exposure=(0.1, 0.1), noise=0.0)
    views = {"brightness": build_night_view(NightConfig("brightness", exposure=(0.1, 0.1)), None, RUNTIME)}
    for title, name in DARKENERS:
        views[f"{title} ({name})"] = build_night_view(config, load_darkener(name), RUNTIME)
    for threads in THREADS:
        torch.set_num_threads(threads)
        rates = {"straightforward": [], **{title: [] for title in views}}
        for number in range(ROUNDS + 1):  # the first warms up
            default_allocator()
            begin = time.perf_counter()
            authors_loop(source, plain, authors, torch.tensor(0.1), few)
            passed = [("straightforward", few, time.perf_counter() - begin)]
            keep_large_buffers()
            for title, view in views.items():
                begin = time.perf_counter()
                start = lambda *size, view=view: view.for_video(*size, generator_for("bench"))  # noqa: E731
                darken_video(source, ours, start, RUNTIME, OPTIONS)
                passed.append((title, frames, time.perf_counter() - begin))
                if STARTING_POINT in title:
                    first, second = (read_frames(file, range(few)).float() for file in (plain, ours))
                    assert (first - second).abs().mean() < 1, "the two do not darken alike"
            for title, count, seconds in passed:
                if number:
                    rates[title].append(count / seconds)
        slow = statistics.median(rates.pop("straightforward"))
        for title, found in rates.items():
            rate = statistics.median(found)
            print(
                f"darken {width}x{height} video, {title}, {threads} threads: {slow:.2f} -> {rate:.1f} frames/s, "
                f"ratio {rate / slow:.1f}",
                flush=True,
            )


def main():
    """Compare, after checking that both give the same pictures where they should."""
    for size in VIDEOS:
        with tempfile.TemporaryDirectory() as folder:
            bench(Path(folder), *size)


if __name__ == "__main__":
    main()

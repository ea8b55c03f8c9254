"""Darkening a video: batches with decoding and encoding beside them, against a loop frame by frame, alternately.

    python benchmarks/bench_video.py

The straightforward loop has the same darkener and files: it decodes a frame, darkens it, encodes it, and goes on
to the next, with the C library's default allocator.
"""

import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from bench_darkening import default_allocator

from darkening.night_view import NightConfig, build_night_view
from darkening.starting_point import load_starting_point
from darkening.video_frames import read_frames
from darkening.video_writer import VideoOptions
from darkening.videos import darken_video
from minmax.runtime.devices import Runtime, keep_large_buffers
from minmax.runtime.seeding import generator_for

ROUNDS, FRAMES, HEIGHT, WIDTH = 3, 24, 240, 320
OPTIONS = VideoOptions()


def sample_video(file):
    """A moving pattern with grain, H.264 at 25 frames per second."""
    rng = np.random.default_rng(0)
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        for number in range(FRAMES):
            waves = [np.sin(columns / (9 + c) + number / 5) * np.cos(rows / (11 + c)) for c in range(3)]
            pixels = 120 + 80 * np.stack(waves, axis=-1) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def straightforward(source, target, darken):
    """The loop frame by frame."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        original = container.streams.video[0]
        options = {"crf": str(OPTIONS.crf), "preset": "fast"}
        stream = out.add_stream("libx264", rate=original.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = original.width, original.height, "yuv420p"
        for frame in container.decode(original):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()[None] / 255.0
            night = (darken(pixels).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0)
            dark = av.VideoFrame.from_ndarray(night.contiguous().numpy(), format="rgb24")
            dark.pts, dark.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(dark))
        out.mux(stream.encode(None))


def main():
    """Compare, after checking that both give the same pictures."""
    runtime = Runtime(torch.device("cpu"))
    view = build_night_view(NightConfig(), load_starting_point(), runtime)

    def start(height, width):
        return view.for_video(height, width, generator_for("bench"))

    with tempfile.TemporaryDirectory() as folder:
        source, plain, ours = (Path(folder) / name for name in ("day.mp4", "plain.mp4", "ours.mp4"))
        sample_video(source)

        def run_plain():
            straightforward(source, plain, start(HEIGHT, WIDTH))

        def run_ours():
            darken_video(source, ours, start, runtime, OPTIONS)

        times = {"plain": [], "ours": []}
        for number in range(ROUNDS + 1):  # the first warms up
            for name, function, prepare in (
                ("plain", run_plain, default_allocator),
                ("ours", run_ours, keep_large_buffers),
            ):
                prepare()
                begin = time.perf_counter()
                function()
                if number:
                    times[name].append(time.perf_counter() - begin)
        first, second = (read_frames(file, range(FRAMES)).float() for file in (plain, ours))
        assert (first - second).abs().mean() < 1, "the two do not darken alike"
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"darken {FRAMES} frames of {WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads: {medians['plain']:.2f} s "
            f"({FRAMES / medians['plain']:.1f} frames/s) -> {medians['ours']:.2f} s "
            f"({FRAMES / medians['ours']:.1f} frames/s), ratio {medians['plain'] / medians['ours']:.2f}"
        )


if __name__ == "__main__":
    main()

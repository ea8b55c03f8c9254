"""Small video files made with PyAV, of the kinds that people have."""

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags

from media.video_frames import count_frames, open_video, read_frames

RATE = 10


class Facts(NamedTuple):
    """What a file holds."""

    frames: int
    height: int
    width: int
    rate: Fraction
    audio: tuple[str, ...]


def probe(file):
    """The facts of a video, size as it is shown; refused when it is broken."""
    height, width = read_frames(file, [0]).shape[2:]
    with open_video(file) as (container, _):
        contexts = [track.codec_context for track in container.streams.audio]
        audio = tuple(str(context.name) if context else "unknown" for context in contexts)
        return Facts(count_frames(file), height, width, container.streams.video[0].average_rate, audio)


def frame_pixels(number, height, width):
    """A frame that tells its number: a grey level for the whole, and a bright bar that moves."""
    pixels = np.full((height, width, 3), 40 + 6 * (number % 30), np.uint8)
    left = (3 * number) % max(1, width - 4)
    pixels[: height // 2, left : left + 4] = 230
    return pixels


def save_video(
    file,
    frames=12,
    height=32,
    width=48,
    codec="libx264",
    times=None,
    sound=False,
    darker=1,
    pix_fmt=None,
    title=None,
    b_frames=2,
    last=0,
):
    """Write frames that tell their numbers; `times` are in hundredths of a second, one per frame, `last` its length."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # As films are made for the web: the header of a .mov is whole where the file is cut.
    with av.open(str(file), "w", options={"movflags": "faststart"} if file.suffix == ".mov" else {}) as out:
        if title:
            out.metadata["title"] = title
        options = {"bf": "0"} if file.suffix == ".avi" else {"bf": str(b_frames), "g": "5"}
        if codec == "libx264":
            options["crf"] = "5"
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("yuv420p" if height % 2 == width % 2 == 0 else "yuv444p")
        stream.codec_context.time_base = Fraction(1, RATE) if times is None else Fraction(1, 100)
        track = None
        if sound:
            track = out.add_stream("aac", rate=8000)
            track.layout = "mono"
        for number in range(frames):
            pixels = frame_pixels(number, height, width) // darker
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = stream.codec_context.time_base
            if last:
                stream.codec_context.flags |= Flags.frame_duration
                frame.duration = ([*times, times[-1] + last])[number + 1] - times[number]
            out.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        if track is not None:
            for number in range(int(frames / RATE * 8)):
                wave = (0.1 * np.sin(np.arange(1000) / (5 + number % 50))).astype(np.float32)[None]
                piece = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                piece.sample_rate, piece.pts = 8000, 1000 * number
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
        out.mux(stream.encode(None))
    return file


def save_truncated(file, share=0.6, **options):
    """A file that ends in the middle, as after a broken download."""
    save_video(file, **options)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    return file

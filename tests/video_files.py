"""Small video files made with PyAV, of the kinds that people have."""

from fractions import Fraction

import av
import numpy as np

RATE = 10


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
    rotation=0,
    darker=1,
    pix_fmt=None,
    title=None,
):
    """Write frames that tell their numbers; `times` are in hundredths of a second, one per frame."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as out:
        if title:
            out.metadata["title"] = title
        options = {"bf": "0"} if file.suffix == ".avi" else {"bf": "2", "g": "5"}
        if codec == "libx264":
            options["crf"] = "5"
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("yuv420p" if height % 2 == width % 2 == 0 else "yuv444p")
        stream.codec_context.time_base = Fraction(1, RATE) if times is None else Fraction(1, 100)
        if rotation:
            stream.set_display_rotation(rotation)
        track = None
        if sound:
            track = out.add_stream("aac", rate=8000)
            track.layout = "mono"
        for number in range(frames):
            pixels = frame_pixels(number, height, width) // darker
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = stream.codec_context.time_base
            out.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        if track is not None:
            for number in range(int(frames / RATE * 8)):
                wave = (0.1 * np.sin(np.arange(1000) / 5)).astype(np.float32)[None]
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

"""Video files out: frames encoded with the times and the sound of another file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from minmax.runtime.config import require

log = logging.getLogger(__name__)

_CONTAINERS = {".m4v": "mp4", ".mkv": "matroska"}
_H264, _VP9 = "libx264", "libvpx-vp9"
_BT709, _SMPTE170M = 1, 6  # codes of ITU-T H.273


@dataclass(frozen=True)
class VideoOptions:
    """How videos are written."""

    crf: int = 18
    """Constant rate factor of H.264 (of VP9 in .webm): less is better and larger, 0 is lossless."""
    batch: int = 0
    """Frames that are darkened at a time; 0 chooses by their size. Only the noise of cameras depends on it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(0 <= self.crf <= 51, "--video.crf", self.crf, "0 to 51")
        require(self.batch >= 0, "--video.batch", self.batch, "0 or more")


class Shown(NamedTuple):
    """When a frame is shown and for how long (0: unknown), in units of its stream."""

    time: int | None
    duration: int


class VideoWriter:
    """Encodes frames into a file, and copies sound into it; `target` is what the file will be called."""

    def __init__(
        self,
        file: Path,
        target: Path,
        source: InputContainer,
        stream: VideoStream,
        options: VideoOptions,
        size: tuple[int, int] | None,
    ) -> None:
        self.source, self.original, self.options, self.size = source, stream, options, size
        suffix = target.suffix.lower()
        self.keeps_times = suffix != ".avi"
        self.codec = _VP9 if suffix == ".webm" else _H264
        self.name = target.name
        with _as_disk_error():
            self.out = av.open(str(file), "w", format=_CONTAINERS.get(suffix, suffix[1:]))
        self.video: VideoStream | None = None
        self.tracks: dict[int, Any] = {}
        self.converter = VideoReformatter()  # one for all frames, as each sets up tables
        self.count, self.first, self.last = 0, 0, -1

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file; when an error is on its way already, it is the one to tell."""
        with contextlib.suppress(av.FFmpegError) if kind else _as_disk_error():
            self.out.close()

    def _open_streams(self, height: int, width: int) -> VideoStream:
        rate = Fraction(self.original.average_rate or self.original.guessed_rate or 25)
        # AVI tells frames by number alone, so none may be stored before one that is shown earlier.
        fixed = {} if self.keeps_times else {"bf": "0"}
        if self.codec == _VP9:
            fixed = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        else:
            # Twice as fast as "fast", for files no larger; a decibel less of 46 to 49 at crf 18.
            fixed["preset"] = "veryfast"
        video = self.out.add_stream(self.codec, rate=rate, options={"crf": str(self.options.crf), **fixed})
        assert isinstance(video, VideoStream)
        video.width, video.height = width, height
        video.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        context, source = video.codec_context, self.original.codec_context
        context.time_base = (self.original.time_base if self.keeps_times else None) or 1 / rate
        aspect = source.sample_aspect_ratio
        if aspect and self.size is None and (source.height, source.width) == (height, width):
            context.sample_aspect_ratio = aspect
        self.matrix = Colorspace.ITU709 if source.colorspace == Colorspace.ITU709 else Colorspace.ITU601
        context.flags |= Flags.frame_duration  # of the last frame, that is, which no other one ends
        # What the colours are stored by, which need not be what the source says of its own.
        context.colorspace = _BT709 if self.matrix == Colorspace.ITU709 else _SMPTE170M
        context.color_range = ColorRange.MPEG
        for track in self.source.streams.audio:
            sound = track.codec_context  # none where FFmpeg does not know the sound
            codec = sound.codec.canonical_name if sound else "an unknown codec"
            if codec in self.out.supported_codecs:
                self.tracks[track.index] = self.out.add_stream_from_template(track)
            else:
                log.warning("%s: its container cannot hold sound as %s, which is left out", self.name, codec)
        return video

    def write(self, pixels: NDArray[np.uint8], times: list[Shown], sound: list[Packet[Any]]) -> None:
        """Encode frames `(T, H, W, 3)` and copy packets of sound."""
        with _as_disk_error():
            if self.video is None:
                self.video = self._open_streams(pixels.shape[1], pixels.shape[2])
            self.write_sound(sound)
            for picture, shown in zip(pixels, times, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = self.converter.reformat(frame, format=self.video.pix_fmt, dst_colorspace=self.matrix)
                frame.time_base = self.video.codec_context.time_base
                frame.pts = self._time(shown.time)
                if self.keeps_times:
                    frame.duration = shown.duration
                self.out.mux(self.video.encode(frame))

    def write_sound(self, sound: list[Packet[Any]]) -> None:
        """Copy packets of sound; there must have been frames before."""
        with _as_disk_error():
            for packet in sound:
                track = self.tracks.get(packet.stream.index)
                if track is not None and packet.dts is not None:
                    packet.stream = track
                    self.out.mux(packet)

    def _time(self, time: int | None) -> int:
        """When the next frame is shown: as in the source, but always after the last one."""
        base = self.video.codec_context.time_base if self.video else None
        assert base is not None
        if not self.keeps_times:
            # The place among its neighbours, with those that are shown twice and stored once.
            place = self.count if time is None else round(time * Fraction(self.original.time_base or base) / base)
            self.first = place if self.count == 0 else self.first
            time = max(place - self.first, self.last + 1)
        elif time is None or (self.count and time <= self.last):
            rate = Fraction(self.original.average_rate or self.original.guessed_rate or 25)
            time = self.last + max(1, round(1 / (rate * base)))
        self.count, self.last = self.count + 1, time
        return time

    def finish(self) -> None:
        """Write what the encoder still holds."""
        with _as_disk_error():
            if self.video is not None:
                self.out.mux(self.video.encode(None))


@contextlib.contextmanager
def _as_disk_error() -> Iterator[None]:
    """What FFmpeg raises in writing as an OSError: `write_atomically` names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.strerror or str(error)) from error

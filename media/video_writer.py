"""Video files out: frames encoded with the times and the sound of another file."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from media.video_frames import BrokenVideo, mean_rate
from minmax.runtime.config import require

log = logging.getLogger(__name__)

_CONTAINERS = {".m4v": "mp4", ".mkv": "matroska"}
_H264, _VP9 = "libx264", "libvpx-vp9"
# FFmpeg has others of its own, for frames that it cannot encode.
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE),
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.EPIPE),
}
_BT709, _SMPTE170M = 1, 6  # codes of ITU-T H.273


@dataclass(frozen=True)
class VideoOptions:
    """How videos are written."""

    crf: int = 18
    """Constant rate factor of H.264 (of VP9 in .webm): less is better and larger, 0 is lossless."""
    batch: int = 0
    """Frames darkened at a time; 0 chooses by their size. Only the noise of cameras depends on it."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(0 <= self.crf <= 51, "--video.crf", self.crf, "0 to 51")
        require(self.batch >= 0, "--video.batch", self.batch, "0 or more")


class VideoWriter:
    """Encodes frames into a file, and copies sound into it; `target` is what the file will be called."""

    def __init__(
        self,
        file: Path,
        target: Path,
        source: InputContainer,
        stream: VideoStream,
        options: VideoOptions,
        shape: tuple[int, int],
    ) -> None:
        suffix = target.suffix.lower()
        self.original, self.keeps_times = stream, suffix != ".avi"
        self.allows_equal_times = suffix in (".mkv", ".webm")
        self.count, self.first, self.last = 0, 0, -1
        self.sound_from: dict[int, int] = {}  # the earliest time that the next packet of a track may have
        self.converter = VideoReformatter()  # one for all frames, as each sets up tables
        with _translate_errors():
            self.out = av.open(str(file.absolute()), "w", format=_CONTAINERS.get(suffix, suffix[1:]))
            self.video = self._add_video(_VP9 if suffix == ".webm" else _H264, options, shape)
            self.tracks = {track.index: self._add_sound(track, target.name) for track in source.streams.audio}
            self.out.start_encoding()  # settles the time bases

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file; when an error is on its way already, it is the one to tell."""
        with contextlib.suppress(av.FFmpegError) if kind else _translate_errors():
            self.out.close()

    def _add_video(self, codec: str, options: VideoOptions, shape: tuple[int, int]) -> VideoStream:
        rate, source = mean_rate(self.original), self.original.codec_context
        if codec == _VP9:
            fixed = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        else:
            # Twice as fast as "fast" with files no larger, for one decibel less (of 46 to 49 at crf 18). Frames are
            # stored in the order they are shown: AVI tells them by number alone, and .mp4 and .mov would keep neither
            # uneven times nor how long the last frame is shown.
            fixed = {"preset": "veryfast", "bf": "0"}
        video = self.out.add_stream(codec, rate=rate, options={"crf": str(options.crf), **fixed})
        assert isinstance(video, VideoStream)
        video.height, video.width = shape
        video.pix_fmt = "yuv420p" if shape[0] % 2 == shape[1] % 2 == 0 else "yuv444p"
        context = video.codec_context
        context.time_base = (self.original.time_base if self.keeps_times else None) or 1 / rate
        if source.sample_aspect_ratio and (source.height, source.width) == shape:
            context.sample_aspect_ratio = source.sample_aspect_ratio
        self.matrix = Colorspace.ITU709 if source.colorspace == Colorspace.ITU709 else Colorspace.ITU601
        context.flags |= Flags.frame_duration  # for the last frame, which no later one ends
        # How the colours are stored here, which may differ from the source.
        context.colorspace = _BT709 if self.matrix == Colorspace.ITU709 else _SMPTE170M
        context.color_range = ColorRange.MPEG
        return video

    def _add_sound(self, track: AudioStream, name: str) -> Any:
        sound = track.codec_context  # none where FFmpeg does not know the sound
        codec = sound.codec.canonical_name if sound else "an unknown codec"
        if codec in self.out.supported_codecs:
            return self.out.add_stream_from_template(track)
        log.warning("%s: its container cannot hold sound as %s, which is left out", name, codec)
        return None

    def write(self, pixels: NDArray[np.uint8], times: list[tuple[int | None, int]], sound: list[Packet[Any]]) -> None:
        """Copy packets of sound and encode frames `(T, H, W, 3)`, each with its time and duration in the source."""
        with _translate_errors():
            for packet in sound:
                self._copy(packet)
            for picture, (time, duration) in zip(pixels, times, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = self.converter.reformat(frame, format=self.video.pix_fmt, dst_colorspace=self.matrix)
                frame.time_base = self.video.codec_context.time_base
                frame.pts = self._time(time, frame.time_base)
                if self.keeps_times:
                    frame.duration = duration
                self.out.mux(self.video.encode(frame))

    def _copy(self, packet: Packet[Any]) -> None:
        """Copy a packet of sound; times that repeat or step back are moved on as little as can be, as ffmpeg does."""
        track = self.tracks.get(packet.stream.index)
        if track is None or packet.dts is None:
            return
        scale = packet.time_base / track.time_base
        time = max(round(packet.dts * scale), self.sound_from.get(track.index, -(2**62)))
        packet.pts = max(time, round((packet.dts if packet.pts is None else packet.pts) * scale))
        packet.dts, packet.duration = time, round((packet.duration or 0) * scale)
        packet.time_base, packet.stream = track.time_base, track
        self.sound_from[track.index] = time if self.allows_equal_times else time + 1
        self.out.mux(packet)

    def _time(self, time: int | None, base: Fraction) -> int:
        """When the next frame is shown: as in the source, but always after the last one."""
        if not self.keeps_times:
            # The position in time, which counts frames that are shown twice and stored once.
            place = self.count if time is None else round(time * Fraction(self.original.time_base or base) / base)
            self.first = place if self.count == 0 else self.first
            time = max(place - self.first, self.last + 1)
        elif time is None or (self.count and time <= self.last):
            time = self.last + max(1, round(1 / (mean_rate(self.original) * base)))
        self.count, self.last = self.count + 1, time
        return time

    def finish(self) -> None:
        """Write what the encoder still holds."""
        with _translate_errors():
            self.out.mux(self.video.encode(None))


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise what FFmpeg says while writing as an OSError (of the disk) or a BrokenVideo (of the source)."""
    try:
        yield
    except (av.FFmpegError, ValueError, ArithmeticError) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise OSError(error.errno, error.strerror) from error
        said = str(getattr(error, "strerror", "") or error).lower()
        raise BrokenVideo(f"cannot be encoded again: {said}") from error

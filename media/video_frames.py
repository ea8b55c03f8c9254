"""Video files in: frames decoded exactly, and files that are not whole refused."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Kinds of files that are read and written."""

_COUNTED_CONTAINER = "avi"  # its header counts the frames, and it keeps no times
# How much earlier than its header says a whole file may end: headers are rounded, and subtitles may last longer.
_LENIENT_SECONDS, _LENIENT_SHARE = 0.5, 0.02
_SEEK_FROM = 48  # frames that are decoded rather than skipped by a seek


class BrokenVideo(ValueError):
    """A file that is not, or not wholly, a video; says why."""


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds: number of frames, height and width as they are shown, and mean rate in frames per second."""

    frames: int
    height: int
    width: int
    rate: Fraction
    audio: tuple[str, ...] = ()
    """Codecs of the audio streams."""


@contextlib.contextmanager
def _naming_faults() -> Iterator[None]:
    """What FFmpeg raises as a BrokenVideo in a few words."""
    try:
        yield
    except av.FFmpegError as error:
        raise BrokenVideo(str(error.strerror or error).lower()) from error


@contextlib.contextmanager
def open_video(file: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream, closed at the end.

    Raises:
        BrokenVideo: when it holds none, or for what FFmpeg raises meanwhile.
    """
    # Titles and comments may be in any encoding, and nothing depends on them.
    with _naming_faults(), av.open(str(file), metadata_errors="replace") as container:
        # The first one, as players number them; a cover picture is a video stream too.
        shown = (track for track in container.streams.video if not track.disposition & Disposition.attached_pic)
        stream = next(shown, None)
        if stream is None:
            raise BrokenVideo("holds no video, or is cut off")
        yield container, stream


def frames_of(packet: Packet[Any], stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of one packet of a video stream."""
    if packet.is_corrupt:
        raise BrokenVideo("is cut off or damaged")
    for frame in packet.decode():
        assert isinstance(frame, av.VideoFrame)
        if frame.is_corrupt:
            raise BrokenVideo("is cut off or damaged")
        yield frame


class FrameWatch:
    """Looks at every packet and frame of a file: do all frames have one size, and is the end there?"""

    def __init__(self, file: Path) -> None:
        self.file, self.count, self.end = file, 0, 0.0
        self.shape: tuple[int, int] | None = None

    def packet(self, packet: Packet[Any]) -> None:
        """Note when a packet of any stream ends; refuse a damaged one."""
        if packet.is_corrupt:
            raise BrokenVideo("is cut off or damaged")
        if packet.pts is not None and packet.time_base is not None:
            self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def frame(self, frame: av.VideoFrame) -> None:
        """Count a frame; refuse one of another size than the first."""
        shape = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
        self.shape = self.shape or shape
        if shape != self.shape:
            raise BrokenVideo(f"changes its size at frame {self.count}, to {shape[1]}x{shape[0]}")
        self.count += 1

    def require_whole(self, container: InputContainer) -> None:
        """Refuse a file without frames, or one that ends well before its header says."""
        if self.count == 0:
            raise BrokenVideo("holds no frame")
        if container.format.name == _COUNTED_CONTAINER:
            # The number of frames in its header counts repeated ones, which are not stored, so sizes must tell.
            if _ends_inside_a_chunk(self.file):
                raise BrokenVideo("is cut off")
        elif container.duration:
            seconds = container.duration / av.time_base
            if self.end < seconds - max(_LENIENT_SECONDS, _LENIENT_SHARE * seconds):
                raise BrokenVideo(f"ends after {self.end:.1f} of {seconds:.1f} seconds")


def _ends_inside_a_chunk(file: Path) -> bool:
    """Whether an AVI file is shorter than the chunks that it starts say."""
    length = file.stat().st_size
    with file.open("rb") as stream:
        position = 0
        while position + 8 <= length:
            stream.seek(position)
            name, size = struct.unpack("<4sI", stream.read(8))
            if name != b"RIFF" or size in (0, 2**32 - 1):  # padding, or a recording that was never closed
                return False
            position += 8 + size + size % 2
    return position > length + 1


def upright_pixels(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A frame as uint8 RGB `(H, W, 3)`, turned upright, brought to a size (height and width) if one is given."""
    height, width = size or (None, None)
    if frame.rotation % 180 != 0:
        height, width = width, height
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=width, height=height)  # type: ignore[assignment]
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4)) if frame.rotation else pixels


def probe(file: Path) -> VideoFacts:
    """Decode a whole file and say what it holds.

    Raises:
        BrokenVideo: when it is not, or not wholly, a video.
    """
    with open_video(file) as (container, stream):
        stream.thread_type = "AUTO"
        watch = FrameWatch(file)
        for packet in container.demux():
            watch.packet(packet)
            if packet.stream.index == stream.index:
                for frame in frames_of(packet, stream):
                    watch.frame(frame)
        watch.require_whole(container)
        height, width = watch.shape or (0, 0)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        # FFmpeg has no decoder for some sound, such as that of newer phones, which then has no context either.
        contexts = [track.codec_context for track in container.streams.audio]
        audio = tuple(str(context.name) if context else "unknown" for context in contexts)
        return VideoFacts(watch.count, height, width, Fraction(rate), audio)


def read_frames(file: Path, frames: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
    """Frames of a video by number, as counted from 0 in the order they are shown.

    Args:
        file: the video.
        frames: numbers in any order; one may be asked for twice.
        size: height and width to bring them to; None keeps theirs.

    Returns:
        uint8 RGB `(T, 3, H, W)`, upright.

    Raises:
        BrokenVideo: when the file is broken, or ends before one of the frames.
    """
    wanted = set(frames)
    found = None
    if min(frames) >= _SEEK_FROM:
        with contextlib.suppress(BrokenVideo):  # a damage that only seeking meets
            found = _found_by_seeking(file, wanted, size)
    if found is None:
        found = {}
        with open_video(file) as (container, stream):
            decoded = (frame for packet in container.demux(stream) for frame in frames_of(packet, stream))
            for number, frame in enumerate(decoded):
                if number in wanted:
                    found[number] = upright_pixels(frame, size)
                if len(found) == len(wanted):
                    break
    missing = sorted(wanted - found.keys())
    if missing:
        raise BrokenVideo(f"ends before its frame {missing[0]}")
    if len({pixels.shape for pixels in found.values()}) > 1:
        raise BrokenVideo("changes its size")
    return torch.from_numpy(np.stack([found[number] for number in frames])).permute(0, 3, 1, 2)


def _found_by_seeking(
    file: Path, wanted: set[int], size: tuple[int, int] | None
) -> dict[int, NDArray[np.uint8]] | None:
    """Frames by number, decoded from the last key frame before them on; None where a seek is not exact.

    A seek is by time, so the times of all frames are read first, from the packets, without decoding any.
    """
    found: dict[int, NDArray[np.uint8]] = {}
    with open_video(file) as (container, stream):
        if container.format.name == _COUNTED_CONTAINER:  # what times FFmpeg makes up for it need not be in order
            return None
        times = []
        for packet in container.demux(stream):  # none is kept: together they are the whole file
            if packet.size and packet.is_discard:  # an edit list leaves frames out
                return None
            if packet.size:
                times.append(packet.pts)
        known = sorted(time for time in times if time is not None)
        if not len(known) == len(times) == len(set(known)) or max(wanted) >= len(known):
            return None
        numbers = {time: number for number, time in enumerate(known)}
        container.seek(known[min(wanted)], stream=stream, backward=True)
        for packet in container.demux(stream):
            for frame in packet.decode():
                number = numbers.get(frame.pts)  # type: ignore[arg-type]
                # Just behind a key frame there may be frames that need one before it; these are never wanted ones.
                if number in wanted and isinstance(frame, av.VideoFrame) and not frame.is_corrupt:
                    found[number] = upright_pixels(frame, size)
            if len(found) == len(wanted):
                return found
    return found if len(found) == len(wanted) else None


def expected_frames(file: Path) -> int:
    """About how many frames a video has, by its header; 0 where that does not say or cannot be read."""
    try:
        with open_video(file) as (_, stream):
            seconds = float((stream.duration or 0) * (stream.time_base or 0))
            return stream.frames or round(seconds * float(stream.average_rate or 0))
    except BrokenVideo:
        return 0

"""Video files in: frames decoded exactly, and files that are not whole refused."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

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

# How much earlier than its header says a whole file may end: headers are rounded, and subtitles may last longer.
_LENIENT_SECONDS, _LENIENT_SHARE = 0.5, 0.02
_SEEK_FROM = 48  # frames that are decoded rather than skipped by a seek


# Titles in old encodings: PyAV 19 keeps their bytes by itself, older ones raise if they are not told.
_TITLES: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_PQ, _HLG = 16, 18  # of ITU-T H.273
_TECHNICAL = {"major_brand", "minor_version", "compatible_brands", "encoder", "software"}


class BrokenVideo(ValueError):
    """A file that is no video, or a damaged one; the message says why."""


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Raise whatever FFmpeg and PyAV say of foreign bytes as a BrokenVideo."""
    try:
        yield
    except BrokenVideo:
        raise
    except (av.FFmpegError, OSError, ValueError, TypeError, AttributeError) as error:
        raise BrokenVideo(_told(error)) from error
    except (LookupError, ArithmeticError, RuntimeError, EOFError, MemoryError, AssertionError) as error:
        raise BrokenVideo(_told(error)) from error


def _told(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", "") or error).lower().split()) or "is damaged"


@contextlib.contextmanager
def open_video(file: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream; closed at the end.

    Raises:
        BrokenVideo: when it holds no video.
    """
    _keep_from_children()
    with _reading():
        # A whole path, as the start of 12:30.avi reads like a protocol. Titles may be in any encoding.
        container = av.open(str(file.absolute()), **_TITLES)
    with container:
        with _reading():
            # The first one, as players number them; a cover picture is a video stream too.
            shown = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
            if not shown:
                raise BrokenVideo("holds no video, or is cut off")
            if shown[0].codec_context is None or not shown[0].time_base:
                raise BrokenVideo("holds video of an unknown kind")
        yield container, shown[0]


@cache
def _keep_from_children() -> None:
    """Let no process that is forked later collect what PyAV left here: it would wait for FFmpeg's threads, forever.

    Containers, streams and frames refer to each other, so they may be garbage for a while. A fork has no other threads.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)


def video_losses(container: InputContainer, stream: VideoStream) -> list[str]:
    """What a file has beside one stream of 8-bit RGB frames and sound, in words."""
    parts = list(stream.codec_context.format.components) if stream.codec_context.format else []
    others = [track for track in container.streams if track.type != "audio" and track.index != stream.index]
    kinds = {track.type for track in others}
    return [
        what
        for what, there in {
            "titles and other entries": bool({name.lower() for name in container.metadata} - _TECHNICAL),
            "further video streams or cover pictures": "video" in kinds,
            "subtitles": "subtitle" in kinds,
            "further data": bool(kinds - {"video", "subtitle"}),
            "HDR": stream.codec_context.color_trc in (_PQ, _HLG),
            "transparency": any(part.is_alpha for part in parts),
            "bits beyond 8": any(part.bits > 8 for part in parts),
        }.items()
        if there
    ]


def mean_rate(stream: VideoStream) -> Fraction:
    """Frames per second on average, as far as the file tells."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def decode_video(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | Packet[Any]]:
    """Decode the frames of a stream; gives them and all packets of sound in the order of the file.

    Raises:
        BrokenVideo: when a part is damaged, the frames change their size, there is none, or the file ends well before
            its header says.
    """
    with _reading():
        yield from _decode(container, stream)


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | Packet[Any]]:
    count, end, shape = 0, 0.0, None
    for packet in container.demux():
        is_shown = packet.stream.index == stream.index
        frames = stream.decode(packet) if is_shown and not packet.is_corrupt else []
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise BrokenVideo("is cut off or damaged")
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.type == "audio":
            yield packet
        for frame in frames:
            found = (frame.width, frame.height, _to_upright(frame)[0])
            shape = shape or found
            if found != shape:
                raise BrokenVideo(f"changes its size at frame {count}, to {frame.width}x{frame.height}")
            count += 1
            yield frame
    if count == 0:
        raise BrokenVideo("holds no frame")
    # Of an AVI that is shorter than it says, FFmpeg shortens the duration and leaves the number of frames. That number
    # counts repeated frames too, which are not stored.
    if container.format.name == "avi" and (stream.duration or 0) < stream.frames:
        raise BrokenVideo("is cut off")
    if container.format.name.startswith("matroska") and _is_shorter_than_told(Path(container.name)):
        raise BrokenVideo("is cut off")
    seconds = (container.duration or 0) / av.time_base
    if end < seconds - max(_LENIENT_SECONDS, _LENIENT_SHARE * seconds):
        raise BrokenVideo(f"ends after {end:.1f} of {seconds:.1f} seconds")


def _is_shorter_than_told(matroska: Path) -> bool:
    """Whether a file ends before its one segment does; FFmpeg takes what there is."""
    with matroska.open("rb") as file:
        file.seek(len(_EBML))
        file.seek(_read_size(file) or 0, os.SEEK_CUR)
        if file.read(len(_SEGMENT)) != _SEGMENT:
            return False
        size = _read_size(file)
        return size is not None and file.tell() + size > os.fstat(file.fileno()).st_size


def _read_size(file: BinaryIO) -> int | None:
    """A size as Matroska writes it: as many leading zeros as further bytes; all ones where it was not known."""
    first = file.read(1)[0]
    more = 8 - first.bit_length()
    size = int.from_bytes(bytes([first]) + file.read(more), "big") - (1 << 7 * (more + 1))
    return None if size == (1 << 7 * (more + 1)) - 1 else size


def _to_upright(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame is turned upright: whether its axes are swapped, then its columns and its rows reversed."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # there is something beside it that PyAV has no name for
        angle = np.radians(frame.rotation)  # which does not tell whether the frame is mirrored
        (a, b), (c, d) = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
    else:
        if matrix is None:
            return False, False, False
        # A pixel at (x, y) is shown at (ax + cy, bx + dy), scaled and moved.
        (a, b), (c, d) = np.frombuffer(bytes(matrix), np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def upright_pixels(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A frame as uint8 RGB `(H, W, 3)`, turned upright, brought to a size (height and width) if one is given."""
    with _reading():
        across, mirrored, upside_down = _to_upright(frame)
        height, width = (size[::-1] if across else size) if size else (None, None)
        pixels: NDArray[np.uint8]
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)  # type: ignore[assignment]
    if across:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def count_frames(file: Path) -> int:
    """Count the frames of a video by decoding all of them.

    Raises:
        BrokenVideo: when it is no video, or a damaged one.
    """
    with open_video(file) as (container, stream):
        stream.thread_type = "AUTO"
        return sum(isinstance(item, av.VideoFrame) for item in decode_video(container, stream))


def read_frames(file: Path, frames: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
    """Frames of a video by number, as counted from 0 in the order they are shown.

    Args:
        file: the video.
        frames: their numbers in any order, also repeated.
        size: height and width to resize to; None keeps theirs.

    Returns:
        uint8 RGB `(T, 3, H, W)`, upright.

    Raises:
        BrokenVideo: when the file is broken, or ends before one of the frames.
    """
    wanted, found = set(frames), {}
    if min(wanted) >= _SEEK_FROM:
        with contextlib.suppress(BrokenVideo):  # damage that only seeking meets
            found = _seek_frames(file, wanted, size)
    if len(found) < len(wanted):
        found = {}
        with open_video(file) as (container, stream):
            decoded = (item for item in decode_video(container, stream) if isinstance(item, av.VideoFrame))
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


def _seek_frames(file: Path, wanted: set[int], size: tuple[int, int] | None) -> dict[int, NDArray[np.uint8]]:
    """Decode frames from the last key frame before them; some may be missing where a seek is not exact.

    A seek is by time, so the times of all frames are read first, from the packets, without decoding any.
    """
    found: dict[int, NDArray[np.uint8]] = {}
    with open_video(file) as (container, stream), _reading():
        # None of the packets is kept: together they are the whole file.
        packets = ((packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size)
        times = [None if discarded else time for time, discarded in packets]  # an edit list leaves frames out
        known = sorted(time for time in times if time is not None)
        exact = len(times) == len(set(known)) > max(wanted)
        if not exact or container.format.name == "avi":  # whose times FFmpeg makes up, maybe out of order
            return found
        numbers = {time: number for number, time in enumerate(known)}
        container.seek(known[min(wanted)], stream=stream)
        for frame in (frame for packet in container.demux(stream) for frame in stream.decode(packet)):
            number = numbers.get(frame.pts, -1) if frame.pts is not None else -1
            # Right after a key frame there may be frames that need an earlier one; these are never wanted.
            if number in wanted and not frame.is_corrupt:
                found[number] = upright_pixels(frame, size)
            if len(found) == len(wanted):
                break
    return found


def expected_frames(file: Path) -> int:
    """About how many frames a video has, by its header; 0 where that does not say or cannot be read."""
    try:
        with open_video(file) as (_, stream), _reading():
            seconds = (stream.duration or 0) * (stream.time_base or 0)
            return max(0, stream.frames or round(seconds * mean_rate(stream)))
    except BrokenVideo:
        return 0

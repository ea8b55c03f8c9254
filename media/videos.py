"""Video files darkened: frames decoded, darkened in batches, and encoded while the next batch is decoded."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
import torch
from av.packet import Packet
from numpy.typing import NDArray
from torch import Tensor

from media.pictures import as_codes, as_intensities, write_file
from media.video_frames import decode_video, open_video, upright_pixels, video_losses
from media.video_writer import VideoOptions, VideoWriter
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, problem_of_the_machine

ItemT = TypeVar("ItemT")

_BATCHES_AHEAD = 2
_BATCH_PIXELS = {"cpu": 2**18, "other": 2**21}


class _Batch(NamedTuple):
    """Consecutive frames, uint8 `(T, H, W, 3)`, when and how long each is shown, and the sound read with them.

    After the last frame there may be sound without `pixels`.
    """

    pixels: Tensor | None
    times: list[tuple[int | None, int]]
    sound: list[Packet[Any]]


def darken_video(
    source: Path,
    target: Path,
    start: Callable[[int, int], Callable[[Tensor], Tensor]],
    runtime: Runtime,
    options: VideoOptions,
    size: tuple[int, int] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """Darken a video into a file of the same kind, with the same number, size and times of frames and the same sound.

    While one batch of frames is darkened, the next is decoded and the one before encoded. The file is written under
    another name and renamed when it is whole.

    Args:
        source: the video.
        target: the file to write; its ending is one of `VIDEO_SUFFIXES`.
        start: called once with height and width; gives what darkens frames `(T, 3, H, W)` in [0, 1] on the device.
        runtime: the devices.
        options: quality, and frames at a time.
        size: height and width to resize frames to; None keeps theirs.
        progress: called with the number of frames of each batch once it is darkened.

    Of several video streams the first is taken. Frames are turned upright. Where height and width are even, colours are
    stored at half resolution (4:2:0), as players expect; otherwise in full (4:4:4), as half of an odd size would change
    it. AVI keeps a constant rate only; other files keep the time of each frame. Sound is copied where the container can
    hold it, and left out with a warning otherwise.

    Returns:
        What of the source is not in the target, in words; sound that was left out has its warning.

    Raises:
        BrokenVideo: when the source is no video, or a damaged one.
        UnwritableFile: when only this target cannot be written, for its name or its size.
        RunError: when the disk or the memory is full.
    """
    losses: list[str] = []
    batch_pixels = _BATCH_PIXELS["cpu" if runtime.device.type == "cpu" else "other"]

    def convert(temporary: Path) -> None:
        with contextlib.ExitStack() as stack:
            container, stream = stack.enter_context(open_video(source))
            losses.extend(video_losses(container, stream))
            stream.thread_type = "AUTO"
            batches = _batches(decode_video(container, stream), options.batch, batch_pixels, size)
            first = next(batches)
            assert first.pixels is not None
            height, width = first.pixels.shape[1:3]
            writer = stack.enter_context(VideoWriter(temporary, target, container, stream, options, (height, width)))
            darken = start(height, width)
            # These end before the files are closed: no thread works on a closed file.
            decoding, encoding = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
            written: deque[Future[None]] = deque()
            for batch in chain([first], _ahead(batches, decoding)):
                dark, count = np.empty(0, np.uint8), len(batch.times)
                if batch.pixels is not None:
                    try:
                        night = darken(as_intensities(runtime.to_device(batch.pixels.permute(0, 3, 1, 2))))
                    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
                        if problem_of_the_machine(error) is None:
                            raise
                        raise RunError(
                            f"{source}: out of memory for {count} frames of {width}x{height}; lower --video.batch"
                        ) from error
                    dark = as_codes(night).permute(0, 2, 3, 1).contiguous().cpu().numpy()
                    progress(count)
                written.append(encoding.submit(writer.write, dark, batch.times, batch.sound))
                if len(written) > _BATCHES_AHEAD:
                    written.popleft().result()
            for future in written:
                future.result()
            writer.finish()

    write_file(target, convert)
    return losses


def _ahead(items: Iterator[ItemT], pool: ThreadPoolExecutor) -> Iterator[ItemT]:
    """The items, made a few ahead in the pool's single thread."""
    pending = deque(pool.submit(next, items, None) for _ in range(_BATCHES_AHEAD))
    while (item := pending.popleft().result()) is not None:
        pending.append(pool.submit(next, items, None))
        yield item


def _batches(
    items: Iterator[av.VideoFrame | Packet[Any]], length: int, batch_pixels: int, size: tuple[int, int] | None
) -> Iterator[_Batch]:
    """All frames and packets of sound in batches of `length` frames, or, when 0, of about `batch_pixels` pixels."""
    pixels: list[NDArray[np.uint8]] = []
    times: list[tuple[int | None, int]] = []
    sound: list[Packet[Any]] = []
    for item in items:
        if not isinstance(item, av.VideoFrame):
            sound.append(item)
            continue
        pixels.append(upright_pixels(item, size))
        times.append((item.pts, item.duration or 0))
        height, width = pixels[-1].shape[:2]
        if len(pixels) >= (length or max(1, batch_pixels // (height * width))):
            yield _Batch(torch.from_numpy(np.stack(pixels)), times, sound)
            pixels, times, sound = [], [], []
    if pixels or sound:
        yield _Batch(torch.from_numpy(np.stack(pixels)) if pixels else None, times, sound)

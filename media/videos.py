"""Video files darkened: frames decoded, darkened in batches, and encoded while the next batch is decoded."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from media.pictures import as_codes, as_intensities
from media.video_frames import FrameWatch, frames_of, open_video, upright_pixels
from media.video_writer import Shown, VideoOptions, VideoWriter
from minmax.runtime.checkpoints import write_atomically
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError

ItemT = TypeVar("ItemT")

_BATCHES_AHEAD = 2
_BATCH_PIXELS = {"cpu": 2**18, "other": 2**21}


class _Batch(NamedTuple):
    """Frames in a row, uint8 `(T, H, W, 3)`, when and how long each is shown, and the sound that was read with them.

    Without `pixels` it is the sound behind the last frame.
    """

    pixels: Tensor | None
    times: list[Shown]
    sound: list[Packet[Any]]


def darken_video(
    source: Path,
    target: Path,
    start: Callable[[int, int], Callable[[Tensor], Tensor]],
    runtime: Runtime,
    options: VideoOptions,
    size: tuple[int, int] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Darken a video into a file of the same kind with as many frames of the same size and times, and the same sound.

    While one batch of frames is darkened, the next is decoded and the one before encoded. The file is written under
    another name and renamed when it is whole.

    Args:
        source: the video.
        target: the file to write; its ending is one of `VIDEO_SUFFIXES`.
        start: (height, width) to what darkens frames `(T, 3, H, W)` in [0, 1] on the device, called once.
        runtime: the devices.
        options: quality, and frames at a time.
        size: height and width to bring frames to; None keeps theirs.
        progress: is told the number of frames whenever some are darkened.

    Of several video streams the first is taken. Frames are turned upright. Where height and width are even, colours are
    stored at half resolution (4:2:0), as players expect; otherwise in full (4:4:4), as half of an odd size would change
    it. AVI keeps a constant rate only; other files keep the time of each frame. Sound is copied where the container can
    hold it, and left out with a warning otherwise.

    Raises:
        BrokenVideo: when the source is not, or not wholly, a video.
        RunError: when the target cannot be written.
    """
    write_atomically(
        target, lambda temporary: _convert(source, temporary, target, start, runtime, options, size, progress)
    )


def _convert(
    source: Path,
    temporary: Path,
    target: Path,
    start: Callable[[int, int], Callable[[Tensor], Tensor]],
    runtime: Runtime,
    options: VideoOptions,
    size: tuple[int, int] | None,
    progress: Callable[[int], object],
) -> None:
    with contextlib.ExitStack() as stack:
        container, stream = stack.enter_context(open_video(source))
        stream.thread_type = "AUTO"
        writer = stack.enter_context(VideoWriter(temporary, target, container, stream, options, size))
        # Left before the files are closed: no thread works on a closed file.
        decoding, encoding = (stack.enter_context(_one_thread()) for _ in range(2))
        darken: Callable[[Tensor], Tensor] | None = None
        written: deque[Future[None]] = deque()
        for batch in _ahead(_batches(source, container, stream, options.batch, size, runtime), decoding):
            if batch.pixels is None:  # no frame came after this sound
                written.append(encoding.submit(writer.write_sound, batch.sound))
                continue
            count, height, width = batch.pixels.shape[:3]
            darken = darken or start(height, width)
            try:
                dark = darken(as_intensities(runtime.to_device(batch.pixels.permute(0, 3, 1, 2))))
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"{source}: out of memory for {count} frames of {width}x{height}; lower --video.batch"
                ) from error
            pixels = as_codes(dark).permute(0, 2, 3, 1).contiguous().cpu().numpy()
            written.append(encoding.submit(writer.write, pixels, batch.times, batch.sound))
            if len(written) > _BATCHES_AHEAD:
                written.popleft().result()
            progress(count)
        for future in written:
            future.result()
        writer.finish()


@contextlib.contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(items: Iterator[ItemT], pool: ThreadPoolExecutor) -> Iterator[ItemT]:
    """The items, made in the pool's one thread a few at a time before they are asked for."""
    pending = deque(pool.submit(next, items, None) for _ in range(_BATCHES_AHEAD))
    while (item := pending.popleft().result()) is not None:
        pending.append(pool.submit(next, items, None))
        yield item


def _batches(
    source: Path,
    container: InputContainer,
    stream: VideoStream,
    length: int,
    size: tuple[int, int] | None,
    runtime: Runtime,
) -> Iterator[_Batch]:
    """All frames of the video and all packets of its sound, so many frames at a time."""
    pixels: list[NDArray[np.uint8]] = []
    times: list[Shown] = []
    sound: list[Packet[Any]] = []
    watch = FrameWatch(source)
    for packet in container.demux():
        watch.packet(packet)
        if packet.stream.index != stream.index:
            if packet.stream.type == "audio":
                sound.append(packet)
            continue
        for frame in frames_of(packet, stream):
            watch.frame(frame)
            pixels.append(upright_pixels(frame, size))
            times.append(Shown(frame.pts, frame.duration or 0))
            height, width = pixels[-1].shape[:2]
            most = _BATCH_PIXELS["cpu" if runtime.device.type == "cpu" else "other"]
            if len(pixels) >= (length or max(1, most // (height * width))):
                yield _Batch(torch.from_numpy(np.stack(pixels)), times, sound)
                pixels, times, sound = [], [], []
    watch.require_whole(container)
    if pixels:
        yield _Batch(torch.from_numpy(np.stack(pixels)), times, sound)
    elif sound:
        yield _Batch(None, [], sound)

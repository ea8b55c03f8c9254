"""What training and evaluation see of a split: augmented pairs of views of the same frames, or whole clips."""

import torch
from clips import ClipConfig, LabelledClips, frames_of_clip
from torch import Tensor

from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import OnePerExample, Views, refuse_night

ASPECT = (0.8, 1.25)
LARGEST_SIDE = 9 / 7  # of the crop: the authors' 288 to 224
WHOLE_SIDE = 8 / 7  # their 256
_AT_ONCE = 64  # frames decoded together


class TrainingClips(OnePerExample[Views]):
    """Views `(3, T, size, size)` of the same frames of day videos for training, indexed by (epoch, video).

    Frames, and the geometry of each view, are drawn from (seed, epoch, video) alone, so the number of workers and
    restarts change nothing. One geometry holds for all frames of a view.

    Args:
        clips: a day split.
        config: length, interval and size.
        seed: of the draws.
        darkened: the same videos darkened in advance; None for nights made online.
        flip: whether half of the views are mirrored; nothing else depends on it.

    Raises:
        ValueError: for a night split; nothing is ever trained on one.
    """

    def __init__(
        self,
        clips: LabelledClips,
        config: ClipConfig,
        seed: int,
        darkened: LabelledClips | None = None,
        flip: bool = True,
    ) -> None:
        refuse_night(clips)
        super().__init__(clips)
        self.clips, self.config, self.seed, self.darkened, self.flip = clips, config, seed, darkened, flip

    def __getitem__(self, position: tuple[int, int]) -> Views:
        """The views of video `position[1]` in epoch `position[0]`."""
        epoch, index = position
        generator = generator_for(self.seed, "clip", epoch, index)
        frames = draw_frames(self.clips, index, self.config, generator)
        day = self.clips.load(index, frames)
        night = day if self.darkened is None else self.darkened.load(index, frames)
        return Views(
            augment(day, self.config.size, generator, self.flip),
            augment(night, self.config.size, generator, self.flip),
            torch.tensor(self.clips.labels[index]),
        )


def draw_frames(clips: LabelledClips, index: int, config: ClipConfig, generator: torch.Generator) -> list[int]:
    """Frames of a clip that begins anywhere in the video."""
    start = float(torch.rand((), generator=generator))
    return frames_of_clip(clips.counts[index], config.length, clips.interval, start)


def augment(frames: Tensor, size: int, generator: torch.Generator, flip: bool = True) -> Tensor:
    """Change all frames by one random geometry: aspect, zoom, crop and flip.

    Args:
        frames: uint8 `(T, 3, H, W)`.
        size: side of the crop.
        generator: of the draws.
        flip: whether half of the views are mirrored.

    Returns:
        uint8 `(3, T, size, size)`.

    As in the authors' code, frames of any shape are resized to width : height = a^2 : 1, with a or 1 / a in
    [0.8, 1.25], and a shorter side of 1 to 9/7 of the crop.
    """
    from torchvision.transforms.v2 import functional

    aspect, side, top, left, inverted, flipped = torch.rand(6, generator=generator).tolist()
    ratio = (ASPECT[0] + aspect * (ASPECT[1] - ASPECT[0])) ** (-2 if inverted < 0.5 else 2)
    short = round(size * (1 + side * (LARGEST_SIDE - 1)))
    height, width = (short, round(short * ratio)) if ratio >= 1 else (round(short / ratio), short)
    resized: Tensor = functional.resize(frames, [height, width], antialias=True)
    top, left = int(top * (height - size + 1)), int(left * (width - size + 1))
    cropped = resized[..., top : top + size, left : left + size]
    if flip and flipped < 0.5:
        cropped = cropped.flip(-1)
    return cropped.transpose(0, 1).contiguous()


def crop_centre(frames: Tensor, size: int) -> Tensor:
    """Resize frames to a square of 8/7 of the size and crop its centre, for evaluation.

    Args:
        frames: uint8 `(T, 3, H, W)`.
        size: side of the crop.

    Returns:
        uint8 `(3, T, size, size)`.
    """
    from torchvision.transforms.v2 import functional

    if frames.shape[-2:] == (size, size):  # built-in clips
        return frames.transpose(0, 1).contiguous()
    side = round(size * WHOLE_SIDE)
    resized = functional.resize(frames, [side, side], antialias=True)
    centre: Tensor = functional.center_crop(resized, [size, size])
    return centre.transpose(0, 1).contiguous()


class WholeClips(OnePerExample[tuple[Tensor, Tensor]]):
    """Clips of each video for evaluation, uint8 `(rounds, 3, T, H, W)`, with their label.

    Args:
        clips: any split.
        config: length, interval, size and how clips are chosen.
        rounds: clips per video; by default those of the config.
    """

    def __init__(self, clips: LabelledClips, config: ClipConfig, rounds: int | None = None) -> None:
        super().__init__(clips)
        self.clips, self.config = clips, config
        self.rounds = config.rounds if rounds is None else rounds

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The clips of one video and its label."""
        if self.rounds == 1 or self.config.sampling == "uniform":
            starts = [(number + 0.5) / self.rounds for number in range(self.rounds)]
        else:
            starts = torch.rand(self.rounds, generator=generator_for("rounds", index)).tolist()
        count, interval = self.clips.counts[index], self.clips.interval
        chosen = [frames_of_clip(count, self.config.length, interval, start) for start in starts]
        # Each frame is decoded once, however many rounds show it; a few at a time, as they have the video's own size.
        distinct = sorted({frame for frames in chosen for frame in frames})
        parts = [distinct[start : start + _AT_ONCE] for start in range(0, len(distinct), _AT_ONCE)]
        shown = torch.cat([crop_centre(self.clips.load(index, part), self.config.size) for part in parts], dim=1)
        places = {frame: place for place, frame in enumerate(distinct)}
        rounds = torch.stack([shown[:, [places[frame] for frame in frames]] for frames in chosen])
        return rounds, torch.tensor(self.clips.labels[index])


class DayClips(OnePerExample[Tensor]):
    """Day clips without labels, uint8 RGB `(3, T, H, W)`, indexed by (epoch, video): what a darkener is trained on.

    Raises:
        ValueError: for a night split.
    """

    def __init__(self, clips: LabelledClips, config: ClipConfig, seed: int, flip: bool = True) -> None:
        refuse_night(clips)
        super().__init__(clips)
        self.clips, self.config, self.seed, self.flip = clips, config, seed, flip

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        """A clip of video `position[1]`, of other frames and another crop in every epoch."""
        epoch, index = position
        generator = generator_for(self.seed, "day clip", epoch, index)
        frames = self.clips.load(index, draw_frames(self.clips, index, self.config, generator))
        return augment(frames, self.config.size, generator, self.flip)

"""Labelled clips: the interface of every split, how frames are chosen from a video, and the built-in clips."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from minmax.runtime.errors import check
from minmax.runtime.splits import NIGHT_SPLITS, Labelled, Split
from scenes import MOTIONS, render_clips
from scenes.night import Domain

SCENES = "scenes"
SCENE_SEEDS: dict[Split, int] = {"train": 31, "val": 32, "test_day": 33, "test_night": 34}
SCENE_COUNTS: dict[Split, int] = {"train": 320, "val": 80, "test_day": 160, "test_night": 160}
QUICK_CLIPS = 32


@dataclass(frozen=True)
class ClipConfig:
    """How clips are read."""

    length: int = 16
    """Frames of a clip."""
    interval: int = 2
    """Step between the frames taken from a video; built-in clips are rendered at their length and taken whole."""
    size: int = 224
    """Side of the square that the network sees, in pixels; whole frames are resized to 8/7 of it before the crop."""
    rounds: int = 20
    """Clips per video in evaluation, their probabilities averaged; 1 in training's own validation."""
    sampling: Literal["random", "uniform"] = "random"
    """Where the rounds start: at random (the same in every run), or evenly spread over the video."""
    split: int = 1
    """Number of the data set's own split whose list files are read (list_cvt/*_split1_train.txt and so on)."""
    validation: float = 0.1
    """Share of each class's training videos that is held out for validation when there is no split val."""
    skip_corrupt: float = 0.0
    """Largest share of unreadable videos that may be left out, in [0, 1]; by default none."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("length", "interval", "rounds", "split"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        check(self, "size", self.size >= 16, "16 or more")
        check(self, "validation", 0 < self.validation < 1, "a share in (0, 1)")
        check(self, "skip_corrupt", 0 <= self.skip_corrupt <= 1, "a share in [0, 1]")


def frames_of_clip(count: int, length: int, interval: int, start: float) -> list[int]:
    """Choose the frames of a clip from a video.

    Args:
        count: frames of the video.
        length: frames of the clip.
        interval: from one of its frames to the next.
        start: where it begins, from 0 (as early as possible) to 1 (as late as possible).

    A video that is too short is repeated from its start.
    """
    free = count - ((length - 1) * interval + 1)
    first = min(int(start * (free + 1)), free) if free > 0 else 0
    return [(first + i * interval) % count for i in range(length)]


class LabelledClips(Labelled):
    """A split: clips with class labels.

    Args:
        split: which.
        classes: in the order of the labels.
        labels: of each clip.
        counts: frames of each.
        interval: from one frame of a clip to the next.
    """

    def __init__(
        self, split: Split, classes: tuple[str, ...], labels: Sequence[int], counts: Sequence[int], interval: int
    ) -> None:
        super().__init__(split, classes, labels)
        self.counts, self.interval = list(counts), interval

    @abstractmethod
    def load(self, index: int, frames: Sequence[int]) -> Tensor:
        """Frames of one video, uint8 RGB `(T, 3, H, W)`, in the order asked for; a frame may be asked for twice."""


class SceneClips(LabelledClips):
    """Built-in clips, rendered once and kept in memory."""

    def __init__(self, split: Split, count: int, config: ClipConfig, cache: Path) -> None:
        domain: Domain = "night" if split in NIGHT_SPLITS else "day"
        self.clips, labels = render_clips(domain, count, config.length, config.size, SCENE_SEEDS[split], cache)
        super().__init__(split, MOTIONS, labels.tolist(), [config.length] * count, interval=1)

    def load(self, index: int, frames: Sequence[int]) -> Tensor:
        """Frames of one clip, uint8 RGB `(T, 3, H, W)`."""
        return torch.from_numpy(self.clips[index][np.asarray(frames)]).permute(0, 3, 1, 2)

    def name(self, index: int) -> str:
        """Split and number."""
        return f"scenes/{self.split}/{index:04d}"

    def fingerprint(self) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.clips.tobytes()).hexdigest()[:16]

"""Accuracy on a split of clips, by day, by real night, or in a hand-made night for selecting a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from clip_views import WholeClips
from clips import ClipConfig, LabelledClips
from torch import Tensor, nn

from darkening.selection_nights import SelectionNight, by_day, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.comparison import Verdicts
from minmax.runtime.devices import Runtime, require_finite
from minmax.runtime.seeding import generator_for
from minmax.runtime.splits import Labelled


@dataclass(frozen=True)
class ClipAccuracy(Verdicts):
    """What a network says of each video, and the accuracy that follows.

    `probabilities` `(N, C)` are means over the rounds of a video.
    """

    called: ClassVar[str] = "videos"
    probabilities: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor) -> "ClipAccuracy":
        """The most probable class of each video is what is said of it; `labels` `(N,)` is the truth."""
        said, confidences = probabilities.argmax(dim=1), probabilities.amax(dim=1)
        return cls(said, confidences, labels, probabilities.shape[1], probabilities)

    def top(self, count: int) -> float:
        """Share of the videos whose class is among the `count` most probable ones."""
        likely = self.probabilities.topk(min(count, self.class_count), dim=1).indices
        return float((likely == self.labels.view(-1, 1)).any(dim=1).double().mean())

    def as_plain(self, examples: Labelled) -> dict[str, Any]:
        """All of it for JSON, down to each video of the split."""
        return super().as_plain(examples) | {"top5": self.top(5)}


@torch.no_grad()
def measure(
    network: nn.Module,
    clips: LabelledClips,
    config: ClipConfig,
    runtime: Runtime,
    nights: Sequence[SelectionNight] = (by_day,),
    rounds: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
    called: str = "the network",
) -> list[ClipAccuracy]:
    """Recognise every video of a split in each of `nights`, by the mean softmax of its rounds.

    Args:
        network: clips `(N, 3, T, H, W)` in [0, 1] to logits `(N, C)`; put into evaluation mode and left there.
        clips: the split; each clip is decoded once for all nights.
        config: how its clips are chosen and read.
        runtime: the devices.
        nights: each darkens the clips, the same way in every call; by default they stay as they are.
        rounds: clips per video; by default those of the config.
        batch_size: clips per forward pass.
        workers: processes that decode.
        called: what messages call the network.

    Raises:
        RunError: when logits are not finite.
    """
    runtime.evaluate(network)
    dataset = WholeClips(clips, config, rounds)
    found: list[Tensor] = []  # probabilities of each batch of videos, (nights, videos, C)
    videos_at_once = max(1, batch_size // dataset.rounds)
    for number, (videos, _) in one_pass(dataset, videos_at_once, clips.split, workers, runtime):
        parts = []
        for part, chunk in enumerate(videos.flatten(0, 1).split(batch_size)):
            day, scores = runtime.intensities(chunk), []
            for night in nights:
                pictures = night(day, generator_for(clips.split, number, part))
                with runtime.autocast():
                    logits = network(pictures)
                require_finite(logits, called, clips.split)
                scores.append(logits.float().softmax(dim=1).cpu())
            parts.append(torch.stack(scores))
        found.append(torch.cat(parts, dim=1).unflatten(1, videos.shape[:2]).mean(dim=2))
    labels = torch.tensor(clips.labels)
    return [ClipAccuracy.of(seen, labels) for seen in torch.cat(runtime.collected(found), dim=1)]


def selection_score(
    network: nn.Module, clips: LabelledClips, config: ClipConfig, runtime: Runtime, workers: int = 0
) -> dict[str, float]:
    """The numbers that select checkpoints: top-1 on one clip of each validation video, by day and in selection nights.

    Raises:
        ValueError: for a night split; nothing is ever selected on one.
    """

    def top1(nights: Sequence[SelectionNight]) -> list[float]:
        return [accuracy.top1 for accuracy in measure(network, clips, config, runtime, nights, 1, workers=workers)]

    return selection_numbers(clips, top1)

"""Accuracy on a split of clips, by day, by real night, or by a hand-made night for choosing a checkpoint."""

from dataclasses import dataclass

import torch
from clip_views import WholeClips
from clips import ClipConfig, LabelledClips, refuse_night
from torch import Tensor, nn

from darkening.night_view import NightView
from darkening.selection_nights import SELECTION_NIGHTS, SelectionNight, selection_numbers
from minmax.runtime.batches import one_pass
from minmax.runtime.devices import Runtime
from minmax.runtime.seeding import generator_for


@dataclass(frozen=True)
class ClipAccuracy:
    """What a network says of each video, and what follows from it.

    `probabilities` `(N, C)` are means over the rounds of a video, `labels` `(N,)` the truth.
    """

    probabilities: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """The most probable class of each video, `(N,)`."""
        return self.probabilities.argmax(dim=1)

    def top(self, count: int) -> float:
        """Share of the videos whose class is among the `count` most probable ones."""
        likely = self.probabilities.topk(min(count, self.probabilities.shape[1]), dim=1).indices
        return float((likely == self.labels.view(-1, 1)).any(dim=1).double().mean())

    @property
    def confusion(self) -> Tensor:
        """Counts `(C, C)`, truth by row and prediction by column."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.predictions
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    @property
    def per_class(self) -> list[float]:
        """Share of each class that is recognised; NaN for a class without videos."""
        confusion = self.confusion.double()
        return (confusion.diagonal() / confusion.sum(dim=1)).tolist()


@torch.no_grad()
def measure(
    network: nn.Module,
    clips: LabelledClips,
    config: ClipConfig,
    runtime: Runtime,
    night: NightView | SelectionNight | None = None,
    rounds: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
) -> ClipAccuracy:
    """Recognise every video of a split: the mean of its rounds' softmax.

    Args:
        network: clips `(N, 3, T, H, W)` in [0, 1] to logits `(N, C)`; put into evaluation mode and left there.
        clips: the split.
        config: how its clips are chosen and read.
        runtime: the devices.
        night: darkens the clips first, the same way in every call.
        rounds: clips per video; by default those of the config.
        batch_size: clips per forward pass.
        workers: processes that decode.
    """
    network.eval()
    dataset = WholeClips(clips, config, rounds)
    found: list[tuple[Tensor, Tensor]] = []
    videos_at_once = max(1, batch_size // dataset.rounds)
    batches = one_pass(dataset, videos_at_once, clips.split, workers, runtime.is_main)
    for number, (videos, labels) in enumerate(batches):
        scores = []
        for part, chunk in enumerate(videos.flatten(0, 1).split(batch_size)):
            pictures = runtime.to_device(chunk) / 255.0
            if night is not None:
                pictures = night(pictures, generator_for(clips.split, number, part))
            with runtime.autocast():
                logits = network(pictures)
            scores.append(logits.float().softmax(dim=1).cpu())
        found.append((torch.cat(scores).view(len(labels), dataset.rounds, -1).mean(dim=1), labels))
    probabilities, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ClipAccuracy(probabilities, truth)


def selection_score(
    network: nn.Module,
    clips: LabelledClips,
    config: ClipConfig,
    runtime: Runtime,
    batch_size: int = 16,
    workers: int = 0,
) -> dict[str, float]:
    """What checkpoints are chosen by: top-1 on one clip of each day validation video, and on it by selection nights.

    Raises:
        ValueError: for a night split; nothing is ever selected on one.
    """
    refuse_night(clips)

    def top1(night: SelectionNight | None) -> float:
        return measure(network, clips, config, runtime, night, 1, batch_size, workers).top(1)

    return selection_numbers(top1(None), {name: top1(night) for name, night in SELECTION_NIGHTS.items()})

"""Splits of a data set, the guard that keeps nights out of training and choosing, and what training sees of a split."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

Split = Literal["train", "val", "test_day", "test_night"]
TEST_SPLITS: tuple[Split, ...] = ("test_day", "test_night")
NIGHT_SPLITS: tuple[Split, ...] = ("test_night",)
ItemT = TypeVar("ItemT")


class Examples(ABC):
    """Images or clips, and whether they were taken by night.

    Args:
        title: what they are called in reports.
        is_night: night images are for reporting only.
        count: how many there are.
    """

    def __init__(self, title: str, is_night: bool, count: int) -> None:
        self.title, self.is_night, self._count = title, is_night, count

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call one of them in a report."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash that changes when they do."""


class Labelled(Examples):
    """A split whose examples are of one class each, by night if it is a night split.

    Args:
        split: which.
        classes: in the order of the labels.
        labels: of each example.
    """

    def __init__(self, split: Split, classes: tuple[str, ...], labels: Sequence[int]) -> None:
        super().__init__(split, split in NIGHT_SPLITS, len(labels))
        self.split, self.classes, self.labels = split, classes, list(labels)


ExamplesT = TypeVar("ExamplesT", bound=Examples)


def refuse_night(examples: Examples) -> None:
    """Raise ValueError for night images: they are reported on, never trained or selected on."""
    if examples.is_night:
        raise ValueError(f"{examples.title!r} holds night images; zero-shot adaptation must not see them here")


def check_split(examples: ExamplesT, split: Split) -> ExamplesT:
    """Check that examples may serve as a split, and give them back; every opener of a split ends with this.

    Raises:
        ValueError: for night images that would be trained on or chosen by, and for others that would pass for a night.
    """
    if split not in NIGHT_SPLITS:
        refuse_night(examples)
    elif not examples.is_night:
        raise ValueError(f"{examples.title!r} was opened as {split} and holds no night images")
    return examples


def evenly_spaced(items: Sequence[ItemT], most: int) -> list[ItemT]:
    """At most `most` of the items, evenly spaced, the first among them."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


class Views(NamedTuple):
    """A view of a day image or clip, what becomes its night, and the label.

    Both are RGB of 8 bits, which `Runtime.intensities` brings to [0, 1] on the device. `night` shows the same day once
    more, to be darkened on the device, or it was darkened in advance.
    """

    day: Tensor
    night: Tensor
    label: Tensor


class OnePerExample(Dataset[ItemT]):
    """A data set with one item for each example."""

    def __init__(self, examples: Sized) -> None:
        self._count = len(examples)

    def __len__(self) -> int:
        """Number of examples."""
        return self._count


class DayPictures(OnePerExample[Tensor]):
    """Whole day images without labels, indexed by (epoch, image): what a darkener is trained on.

    Args:
        images: where they come from.
        whole: gives each of them, its pixels first.

    Raises:
        ValueError: for night images.
    """

    def __init__(self, images: Examples, whole: Dataset[Any]) -> None:
        refuse_night(images)
        super().__init__(images)
        self.whole = whole

    def __getitem__(self, position: tuple[int, int]) -> Tensor:
        """Image `position[1]`; the epoch does not matter, as nothing is drawn."""
        pixels: Tensor = self.whole[position[1]][0]
        return pixels

"""What one checkpoint, or two side by side, score on several splits: tables for the eye, JSON for everything else."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from minmax.pretrained import trained_settings
from minmax.runtime.checkpoints import load_checkpoint, write_atomically
from minmax.runtime.config import ConfigT, MeasuringFlags, replace_settings, to_plain
from minmax.runtime.errors import UsageError, printable
from minmax.runtime.report import markdown_table, write_json
from minmax.runtime.splits import Labelled

log = logging.getLogger(__name__)
NetworkT = TypeVar("NetworkT")
SplitT = TypeVar("SplitT")
ScoreT = TypeVar("ScoreT")


@dataclass(frozen=True)
class Comparison(Generic[ScoreT]):
    """Scores by checkpoint (`before`, if there is one, and `checkpoint`) and split.

    Args:
        config: how they were measured.
        found: their scores by name and split.
    """

    config: MeasuringFlags
    found: dict[str, dict[str, ScoreT]]

    def captions(self, alone: str = "") -> dict[str, str]:
        """What to call each checkpoint: `before` and `after`, or as told if there is but one."""
        return {"before": "before", "checkpoint": "after"} if "before" in self.found else {"checkpoint": alone}

    def of(self, split: str, alone: str) -> dict[str, ScoreT]:
        """The scores on one split by caption."""
        return {caption: self.found[name][split] for name, caption in self.captions(alone).items()}

    @property
    def by_title(self) -> dict[str, ScoreT]:
        """The scores by split and caption, as in `test_night after`: the checkpoints of one split side by side."""
        return {
            f"{split} {caption}".strip(): score
            for split in self.found["checkpoint"]
            for caption, score in self.of(split, "").items()
        }

    def panels(self, panel: Callable[[str, ScoreT], tuple[str, Tensor]]) -> list[list[tuple[str, Tensor]]]:
        """Rows for `draw_confusion`, one for each checkpoint: what `panel` makes of a title and a score."""
        return [
            [panel(f"{split} {caption}".strip(), score) for split, score in self.found[name].items()]
            for name, caption in self.captions().items()
        ]

    def summary(self, columns: Sequence[str], row: Callable[[ScoreT], Sequence[int | float]], of: str = "split") -> str:
        """A table of one line per split and checkpoint.

        Args:
            columns: what stands in them.
            row: their values for a score: numbers, and shares, which are shown in percent.
            of: what the lines are of.
        """
        rows = [[title, *map(format_number, row(score))] for title, score in self.by_title.items()]
        return markdown_table([of, *columns], rows)

    def by_class(self, title: str, classes: Sequence[str], shares: Callable[[ScoreT], Sequence[float]]) -> str:
        """A table of one line per class, and of one column of percent per split and checkpoint; NaN shows `-`."""
        columns = [list(map(format_number, shares(score))) for score in self.by_title.values()]
        rows = [[name, *(column[i] for column in columns)] for i, name in enumerate(classes)]
        return markdown_table([title, *self.by_title], rows)

    def write(
        self,
        folder: Path,
        tables: Sequence[str],
        settings: Mapping[str, Any],
        as_plain: Callable[[str, ScoreT], Mapping[str, Any]],
    ) -> str:
        """Write the tables into results.md and everything into results.json.

        Args:
            folder: of both.
            tables: Markdown.
            settings: of the measurement, but for the flags that every task has.
            as_plain: a split's score as plain values; shares are in [0, 1].

        Returns:
            What results.md holds, to be printed.
        """
        captions = self.captions("checkpoint")
        paths, brighten, adabn = self.config.checkpoints, self.config.brighten, self.config.adabn
        files = [f"{captions[name]}: {printable(path)}" for name, path in paths.items()]
        notes = [f"{name}: {printable(settings[name])}" for name in ("data", "size") if name in settings]
        if brighten != "none":
            notes.append(f"brightened before the network, day and night: {brighten}")
        if adabn:
            notes.append("not zero-shot: saw the test images (AdaBN, BatchNorm's statistics of each test set)")
        heading = ["  \n".join(lines) for lines in (files, notes)]  # spaces break lines
        text = "\n\n".join(filter(None, [*heading, *tables]))
        write_atomically(folder / "results.md", lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
        results = {
            name: {"file": str(paths[name]), **{split: as_plain(split, score) for split, score in scores.items()}}
            for name, scores in self.found.items()
        }
        flags = {name: getattr(self.config, name) for name in ("precision", "quick", "brighten", "adabn")}
        write_json({**settings, **flags, "results": results}, folder / "results.json")
        log.info("written to %s", folder)
        return text


def compare(
    config: MeasuringFlags,
    networks: Mapping[str, NetworkT],
    splits: Mapping[str, SplitT],
    measure: Callable[[str, NetworkT, SplitT], ScoreT],
) -> Comparison[ScoreT]:
    """Measure every network, by the name of its checkpoint, on every split."""
    found: dict[str, dict[str, ScoreT]] = {}
    for name, network in networks.items():
        found[name] = {}
        for title, split in splits.items():
            log.info("measuring %s on %s", config.checkpoints[name], title)
            found[name][title] = measure(name, network, split)
    return Comparison(config, found)


def as_trained(config: ConfigT, group: str, names: Sequence[str]) -> ConfigT:
    """The flags of test.py with a network's own settings in place of defaults, such as the size of its images.

    Args:
        config: the flags; what was typed, or without --quick stands in --config, stays.
        group: of the flags, as `images`.
        names: of the settings in it.
    """
    flags: Any = config
    typed: frozenset[str] = getattr(config, "_typed", frozenset())
    trained = trained_settings(load_checkpoint(flags.checkpoint), group)
    defaults = to_plain(getattr(flags, group))
    own = {
        name: tuple(trained[name]) if isinstance(trained[name], list) else trained[name]
        for name in names
        if (flags.config is None or flags.quick)
        and f"{group}.{name}" not in typed
        and trained.get(name) not in (None, defaults[name])
    }
    if own:
        told = ", ".join(f"--{group}.{name} {value}" for name, value in own.items())
        log.info("as %s was trained: %s", flags.checkpoint, told)
    return replace_settings(config, **{group: own})


def shared_classes(config: MeasuringFlags, known: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The classes that all checkpoints know.

    Raises:
        UsageError: when they know different ones.
    """
    classes, *others = set(known)
    if others:
        raise UsageError(f"{config.before} and {config.checkpoint} know different classes")
    return classes


def format_number(value: int | float) -> str:
    """A number as it is, a share in percent, and `-` for NaN."""
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


@dataclass(frozen=True)
class Verdicts:
    """What a network says of each example of a split, and the accuracy that follows.

    `predictions` and `labels` `(N,)` are the class said and the true one of `class_count`, `confidences` `(N,)` the
    probability of what is said.
    """

    called: ClassVar[str] = "images"
    predictions: Tensor
    confidences: Tensor
    labels: Tensor
    class_count: int

    @property
    def confusion(self) -> Tensor:
        """Counts `(C, C)`, truth by row and prediction by column."""
        pairs = self.labels * self.class_count + self.predictions
        return torch.bincount(pairs, minlength=self.class_count**2).view(self.class_count, self.class_count)

    @property
    def per_class(self) -> list[float]:
        """Share of each class that is recognised; NaN for a class without examples."""
        confusion = self.confusion.double()
        return (confusion.diagonal() / confusion.sum(dim=1)).tolist()

    @property
    def top1(self) -> float:
        """Share of all examples that are recognised."""
        return float((self.predictions == self.labels).double().mean())

    def as_plain(self, examples: Labelled) -> dict[str, Any]:
        """All of it for JSON, down to each example of the split."""
        classes = examples.classes
        told = zip(examples.labels, self.predictions.tolist(), self.confidences.tolist(), strict=True)
        return {
            "count": len(self.labels),
            "top1": self.top1,
            "per_class": dict(zip(classes, self.per_class, strict=True)),
            "confusion": self.confusion.tolist(),
            self.called: [
                {
                    "name": examples.name(i),
                    "truth": classes[label],
                    "prediction": classes[said],
                    "confidence": confidence,
                }
                for i, (label, said, confidence) in enumerate(told)
            ],
        }


def file_name(title: str, instead: str = "-") -> str:
    """A title as part of a file's name; what is no letter or digit is replaced."""
    return "".join(c if c.isalnum() else instead for c in title).strip(instead)

"""Flags that say what a checkpoint of another program holds: the user's own daytime model, or a released one."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from class_folders import class_names
from classifier import RELEASED_CLASSES, ClassifierSettings, NormalizationFlag, classifier_settings, load_classifier

from minmax.features import FeatureModel
from minmax.runtime.config import require
from minmax.runtime.errors import UsageError
from minmax.runtime.splits import Split


@dataclass(frozen=True, kw_only=True)
class ForeignFlags:
    """What the weights of another program belong to; checkpoints of this project say so themselves."""

    model: str | None = None
    """Architecture of a --checkpoint that was not made here: a name of torchvision's, or timm/NAME."""
    classes: tuple[str, ...] = ()
    """Its classes in the order of its outputs; or `alphabetical` (as ImageFolder) or `codan` (as the authors)."""
    normalization: NormalizationFlag = "auto"
    """Statistics by which it expects its input; auto: as the published weights of this architecture."""

    def settings(self, data: str, split: Split, image_size: int) -> ClassifierSettings:
        """The settings that the flags describe; `alphabetical` takes the class folders of a split of `data`.

        Raises:
            UsageError: when the model is unknown or the order of its outputs is not given.
        """
        assert self.model is not None
        require(
            bool(self.classes),
            "--classes",
            "(not given)",
            "the order of the outputs of foreign weights, which a wrong guess would scramble silently: alphabetical "
            "(as torchvision's ImageFolder), codan (as the authors' checkpoints) or the names one by one",
        )
        classes = self.classes
        if classes == ("alphabetical",):
            classes = class_names(data, split)
        elif classes == ("codan",):
            classes = RELEASED_CLASSES
        require(len(set(classes)) == len(classes), "--classes", classes, "every name once")
        return classifier_settings(self.model, classes, image_size, self.normalization)


def load_classifiers(
    paths: Sequence[Path], flags: ForeignFlags, data: str, split: Split, image_size: int
) -> list[tuple[FeatureModel, ClassifierSettings]]:
    """Load checkpoints; those of other programs need the flags, `--classes alphabetical` the folders of the data.

    Raises:
        UsageError: as `load_classifier`, and when flags are given that no file needs.
    """
    described = functools.cache(lambda: flags.settings(data, split, image_size))  # only if a file needs it
    loaded = [load_classifier(path, image_size, described if flags.model else None) for path in paths]
    is_needed = described.cache_info().currsize > 0
    if not is_needed and (flags.model, flags.classes, flags.normalization) != (None, (), "auto"):
        names = " and ".join(map(str, paths))
        given = "--model, --classes and --normalization"
        raise UsageError(f"{given} describe foreign weights, but {names} tells its own architecture; drop these flags")
    return loaded

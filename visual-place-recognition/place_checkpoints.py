"""Retrieval networks in files: ours, the authors' and their toolbox's, trunks of classifiers, and bare weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from place_network import PlaceSettings, build_place_network, settings_for

from minmax.features import IMAGENET_STATISTICS, FeatureModel
from minmax.pretrained import (
    TIMM,
    find_weights,
    rebuild_network,
    save_network,
    warn_of_other_settings,
)
from minmax.runtime.checkpoints import load_checkpoint, load_strictly
from minmax.runtime.errors import UsageError

CHECKPOINT_FORMAT = "similarity-minmax/place-network"
CLASSIFIER_FORMAT = "similarity-minmax/classifier"


save_place_network = partial(save_network, CHECKPOINT_FORMAT)


def load_place_network(
    path: Path, model: str | None = None, size: int | None = None
) -> tuple[FeatureModel, PlaceSettings]:
    """Rebuild a retrieval network from a checkpoint.

    - Ours (`save_place_network`) carries what rebuilds it.
    - The authors' (and those of their toolbox): `meta` says what it is, `state_dict` holds `features.*` and `pool.p`.
    - A classifier of this project over a network of torchvision: its trunk, with a new pooling.
    - With `model`, the bare weights of a network of torchvision as its trunk.

    A warning is logged when ours was trained at another `size`, the longest side of images.

    Raises:
        UsageError: when the file is missing, unreadable, none of these, or does not fit.
    """
    payload = load_checkpoint(path)
    kind = payload.get("format")
    if kind == CHECKPOINT_FORMAT:
        warn_of_other_settings(payload, "images", {"size": size}, path)
        return rebuild_network(payload, PlaceSettings, build_place_network, path)
    if isinstance(payload.get("meta"), Mapping):
        return rebuild_released(payload, path)
    if kind == CLASSIFIER_FORMAT:
        described = payload.get("settings")
        if not isinstance(described, Mapping):
            raise UsageError(f"{path} is not a classifier of this version")
        settings, named_by = PlaceSettings(str(described.get("model", ""))), "it"
        if settings.model.startswith(TIMM) or described.get("normalization", "imagenet") != "imagenet":
            raise UsageError(
                f"{path} is a classifier {settings.model}; only trunks of torchvision with ImageNet's statistics are "
                "taken over from a classifier"
            )
    else:
        if model is None:
            raise UsageError(
                f"{path} does not say what network it holds: expected a checkpoint of this project or one with `meta` "
                "as the authors'; for bare weights name it with --model"
            )
        if model.startswith(TIMM):
            raise UsageError(f"--model {model}: bare weights are taken for networks of torchvision only")
        settings, named_by = settings_for(model), "--model"
    try:
        return build_place_network(settings, init=path), settings
    except UsageError as error:
        raise UsageError(f"{error}; is it a {settings.model}, as {named_by} says?") from error


def rebuild_released(payload: Mapping[str, Any], path: Path | str) -> tuple[FeatureModel, PlaceSettings]:
    """A network from what `load_checkpoint` read of the authors' or their toolbox's files.

    Args:
        payload: `meta` says what it is, `state_dict` holds `features.*`, `pool.p` and maybe `whiten.*`.
        path: the file, for messages.

    Raises:
        UsageError: when it asks for parts that are not known here, or does not fit.
    """
    meta = payload["meta"]
    unknown = [name for name in ("regional", "local_whitening") if meta.get(name)]
    if unknown or meta.get("pooling", "gem") != "gem":
        what = ", ".join(unknown) or f"pooling {meta['pooling']}"
        raise UsageError(f"{path}: its meta asks for {what}, which is not known here; expected GeM pooling alone")
    if not isinstance(meta.get("architecture"), str):
        raise UsageError(f"{path}: its meta names no architecture, such as resnet101")
    mean, std = meta.get("mean", IMAGENET_STATISTICS[0]), meta.get("std", IMAGENET_STATISTICS[1])
    if not all(isinstance(value, list | tuple) and len(value) == 3 for value in (mean, std)):
        raise UsageError(f"{path}: its meta has mean {mean} and std {std}; expected three numbers each")
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (mean, std))
    settings = PlaceSettings(meta["architecture"], bool(meta.get("whitening")), mean, std)
    network = build_place_network(settings)
    load_strictly(network.model, find_weights(payload, path), path)
    return network, settings

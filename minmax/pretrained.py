"""Networks in files: ours carry what rebuilds them; in those of other programs the tensors are found and renamed.

Nothing is loaded by halves: `load_strictly` then wants every tensor of both sides.
"""

import contextlib
import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minmax.features import FeatureModel, attempt, evaluation_mode
from minmax.runtime.checkpoints import load_checkpoint, load_strictly, refuse_absurd, save_checkpoint
from minmax.runtime.config import DataclassInstance, from_plain, to_plain
from minmax.runtime.errors import UsageError

log = logging.getLogger(__name__)
SettingsT = TypeVar("SettingsT", bound=DataclassInstance)

TIMM = "timm/"
"""What the names of timm's networks begin with."""
OURS = "similarity-minmax/"
"""What the kinds of this project's checkpoints begin with."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Entries under which training programs keep the weights."""
WRAPPED_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, DistributedDataParallel, torch.compile and Lightning's modules put before every name."""
_NEW_LAYER_SCALE = 0.01
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
"""Second predictions of torchvision's networks, which only their training needs."""


def save_network(
    kind: str, network: FeatureModel, settings: DataclassInstance, path: Path, config: DataclassInstance | None = None
) -> None:
    """Save weights with their network's kind, the settings that rebuild it, and the config that trained it."""
    payload = {
        "format": kind,
        "settings": to_plain(settings),
        "network": network.model.state_dict(),
        "config": to_plain(config) if config else {},
    }
    save_checkpoint(payload, path)


def rebuild_network(
    payload: Mapping[str, Any],
    settings_class: type[SettingsT],
    build: Callable[[SettingsT], FeatureModel],
    source: Path | str,
) -> tuple[FeatureModel, SettingsT]:
    """Rebuild a network from what `save_network` wrote and `load_checkpoint` read.

    Raises:
        UsageError: when it is of another version, or a tensor is missing, surplus or of another shape.
    """
    try:
        stored, state = payload["settings"], payload["network"]
    except KeyError as error:
        raise UsageError(f"{source} is not a checkpoint of this version: it lacks {error}") from error
    settings = from_plain(settings_class, stored, f"what is said of the network in {source}")
    refuse_absurd(to_plain(settings), state, source)
    network = build(settings)
    load_strictly(network.model, state, source)
    return network, settings


def trained_settings(payload: Mapping[str, Any], group: str) -> dict[str, Any]:
    """One group of the flags that a checkpoint's network was trained with; none in files of other programs."""
    config = payload.get("config")  # where these may keep other things
    found = config.get(group) if isinstance(config, dict) else None
    return dict(found or {})


def warn_of_other_settings(payload: Mapping[str, Any], group: str, wanted: Mapping[str, Any], source: Path) -> None:
    """Log a warning for each setting that a checkpoint's network was trained with another value of.

    Args:
        payload: what `load_checkpoint` read.
        group: of the flags, as `images`.
        wanted: the settings to come, by name; None is any.
        source: the file, for messages.
    """
    trained = trained_settings(payload, group)
    for name, value in wanted.items():
        before, now = (" ".join(map(str, v)) if isinstance(v, list | tuple) else v for v in (trained.get(name), value))
        if None not in (before, now) and before != now:
            log.warning("%s was trained at --%s.%s %s, not %s", source, group, name, before, now)


def find_weights(payload: Mapping[str, Any], source: Path | str) -> dict[str, Tensor]:
    """The tensors of a foreign checkpoint: its own entries or those of a known wrapper, without prefixes of all names.

    Args:
        payload: what `load_checkpoint` read.
        source: the file, for messages.

    Raises:
        UsageError: when there are no tensors in any of these places, or it is a file of this project.
    """
    if str(payload.get("format", "")).startswith(OURS):
        raise UsageError(f"{source} is a checkpoint of another kind, {payload['format']}")
    places: list[Any] = [payload, *(payload[name] for name in WRAPPERS if name in payload)]
    for place in places:
        if isinstance(place, Mapping) and place and all(isinstance(value, Tensor) for value in place.values()):
            weights = {str(name): tensor for name, tensor in place.items()}
            # They nest in different orders, as a compiled DataParallel and a DataParallel of a compiled network do.
            while prefix := next((p for p in WRAPPED_PREFIXES if all(name.startswith(p) for name in weights)), None):
                weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            return weights
    there = ", ".join(map(str, list(payload)[:6])) or "nothing"
    raise UsageError(
        f"{source} holds no weights that can be recognised: expected tensors by name, or these under one of "
        f"{', '.join(WRAPPERS)}; found {there}"
    )


@torch.no_grad()
def require_size(network: FeatureModel, flag: str, *size: int) -> None:
    """Raise a UsageError when images of this height and width do not pass through a network; `flag` is to blame."""
    images = torch.zeros(1, 3, *size, device=next(network.parameters()).device)
    try:
        with evaluation_mode(network):
            attempt(network, images)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}; choose a larger size, a multiple of 32, or another model") from error


def timm_record(model: str) -> Any:
    """What timm says of the weights that it publishes as `timm/NAME`: `mean`, `std`, `has_weights` and more.

    Raises:
        UsageError: when it has no such network; tells similar names, or the one of today.
    """
    import timm

    name = model.removeprefix(TIMM)
    if renamed := timm.models.get_deprecated_models().get(name):
        raise UsageError(f"--model {model}: timm calls it {renamed} now")
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=4)
        hint = f"; it has {', '.join(similar)}, ..." if similar else ""
        raise UsageError(f"--model {model}: timm has no model {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # NAME.TAG with an unknown tag
        raise UsageError(f"--model {model}: {error}") from error


@contextlib.contextmanager
def downloading(model: str) -> Iterator[None]:
    """Around what may download published weights: a UsageError says when it cannot."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot download the published weights of {model} ({error}); connect once, or drop --pretrained"
        ) from error


def refuse_two_starts(pretrained: bool, init: Path | None) -> None:
    """Raise a UsageError when both published weights and a file are to be started from."""
    if pretrained and init is not None:
        raise UsageError(f"--init {init} and --pretrained contradict each other; drop one of the two flags")


def as_published(whole: nn.Module, init: Path) -> dict[str, Any]:
    """Options of timm.create_model by which it takes the weights in a file as if they were those that it publishes.

    Args:
        whole: the classifier as timm builds it by default; it is filled from the file.
        init: the file.

    Raises:
        UsageError: as `load_start`.
    """
    load_start(whole, read_start(init), init)
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": whole.state_dict()}}


def read_start(path: Path) -> dict[str, Tensor]:
    """The weights in a file to fine-tune from: a foreign one (`find_weights`), or a network of this project.

    Raises:
        UsageError: when the file cannot be read, or holds no weights that can be recognised.
    """
    payload = load_checkpoint(path)
    if str(payload.get("format", "")).startswith(OURS) and "network" in payload:
        return dict(payload["network"])
    return find_weights(payload, path)


def load_start(network: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Start a whole network from others' weights; a last layer of another shape is left out, and ours made small.

    As large as some networks initialise it (timm's for few classes), its first gradients would undo what the others
    know. "Big Transfer" (Kolesnikov et al., ECCV 2020) sets it to zero, but SqueezeNet's, behind a ReLU, would stay so.

    Args:
        network: a classifier as torchvision or timm builds it, changed in place.
        weights: under the network's own names; what only training needs is left out.
        source: the file, for messages.

    Raises:
        UsageError: when a tensor of any other layer is missing, surplus or of another shape; names them.
    """
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(AUXILIARY)}
    own = network.state_dict()
    described: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}  # timm's record
    last = described.get("classifier") or list(own)[-1].rpartition(".")[0]
    layers = tuple(f"{layer}." for layer in ([last] if isinstance(last, str) else last))
    new = {name: _NEW_LAYER_SCALE * tensor for name, tensor in own.items() if name.startswith(layers)}
    if any(name not in weights or weights[name].shape != tensor.shape for name, tensor in new.items()):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(layers)} | new
    load_strictly(network, weights, source)

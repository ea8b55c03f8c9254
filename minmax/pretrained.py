"""Weights that other programs saved: find the tensors in their file, and give them our names.

Nothing is loaded by halves: `load_strictly` then wants every tensor of both sides.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minmax.runtime.checkpoints import load_strictly
from minmax.runtime.errors import UsageError
from minmax.task_network import TaskNetwork

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Entries under which training programs keep the weights."""
PARALLEL_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel, DistributedDataParallel and torch.compile put before every name."""


def find_weights(payload: Mapping[str, Any], source: Path | str) -> dict[str, Tensor]:
    """The tensors of a foreign checkpoint: its own entries or those of a known wrapper, without parallel prefixes.

    Args:
        payload: what `load_checkpoint` read.
        source: the file, for messages.

    Raises:
        UsageError: when there are no tensors in any of these places.
    """
    places: list[Any] = [payload, *(payload[name] for name in WRAPPERS if name in payload)]
    for place in places:
        if isinstance(place, Mapping) and place and all(isinstance(value, Tensor) for value in place.values()):
            weights = {str(name): tensor for name, tensor in place.items()}
            # A compiled DataParallel and a DataParallel of a compiled network nest them in different orders.
            while prefix := next((p for p in PARALLEL_PREFIXES if all(name.startswith(p) for name in weights)), None):
                weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
            return weights
    there = ", ".join(map(str, list(payload)[:6])) or "nothing"
    raise UsageError(
        f"{source} holds no weights that can be recognised: expected tensors by name, or these under one of "
        f"{', '.join(WRAPPERS)}; found {there}"
    )


def load_whole(network: TaskNetwork, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Load the weights of an unsplit network, strictly: its `fc.weight` is our `encoder.` or `head.fc.weight`.

    Raises:
        UsageError: names the tensors that do not fit, with `encoder.` or `head.` before those that the network has.
    """
    whole_names = {name: name.partition(".")[2] for name in network.state_dict()}
    known = set(whole_names.values())
    surplus = {name: tensor for name, tensor in weights.items() if name not in known}
    fitting = {name: weights[whole] for name, whole in whole_names.items() if whole in weights}
    load_strictly(network, surplus | fitting, source)

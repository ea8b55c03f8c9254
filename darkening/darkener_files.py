"""Darkeners in files: ours, the two that ship with the package, and those that the authors released."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from darkening.darkener import Darkener, DarkenerSettings
from darkening.exposures import RequestConfig
from minmax.runtime.checkpoints import load_checkpoint, load_strictly, refuse_absurd, save_checkpoint, write_atomically
from minmax.runtime.errors import UsageError

CHECKPOINT_FORMAT = "similarity-minmax/darkener"
STARTING_POINT = "starting-point"
NIGHT_TO_LOOK_AT = "night-to-look-at"
SHIPPED = {
    STARTING_POINT: Path(__file__).with_name("starting_point.safetensors"),
    NIGHT_TO_LOOK_AT: Path(__file__).with_name("night_to_look_at.safetensors"),
}
_RELEASED_NAME = re.compile(r"e_conv(\d)\.(depth|point)_conv\.(weight|bias)")


def load_darkener(source: Path | str) -> Darkener:
    """Load a darkener: from our checkpoint or safetensors, or from a released one (`Epoch15.pth` and the like).

    Args:
        source: a path; or `"starting-point"` or `"night-to-look-at"`, which ship with the package.

    Raises:
        UsageError: when the file is missing, unreadable, or not a darkener's.
    """
    path = SHIPPED.get(str(source), Path(source))
    if not path.exists() and not path.suffix:
        raise UsageError(f"no darkener {source}; expected a file, {' or '.join(SHIPPED)}")
    payload = load_checkpoint(path)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "settings" in metadata:
            payload = {"format": CHECKPOINT_FORMAT, "settings": metadata["settings"], "darkener": payload}
    if payload.get("format") == CHECKPOINT_FORMAT:
        return _rebuilt(payload, path)
    if "e_conv0.depth_conv.weight" in payload:
        return darkener_from_released(payload, path)
    found = payload.get("format") or f"tensors named {', '.join(map(str, list(payload)[:3]))}"
    raise UsageError(f"{path} is not a darkener checkpoint: found {found}")


def save_darkener(darkener: Darkener, path: Path, config: Mapping[str, Any] | None = None) -> None:
    """Save weights and settings; as safetensors where the name ends so, else as a checkpoint with a `config`."""
    settings = plain_settings(darkener)
    weights = clean_weights(darkener)
    if path.suffix == ".safetensors":
        tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        content = save(tensors, {"settings": json.dumps(settings)})
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    else:
        kept = {"settings": settings, "darkener": weights, "config": dict(config or {})}
        save_checkpoint({"format": CHECKPOINT_FORMAT, **kept}, path)


def plain_settings(darkener: Darkener) -> dict[str, Any]:
    """What rebuilds a darkener around its weights, and what training asked it for."""
    trained_on = {f"trained_{name}": getattr(darkener.trained_on, name) for name in ("exposure", "contrast")}
    return asdict(darkener.settings) | trained_on


def clean_weights(darkener: Darkener) -> dict[str, Tensor]:
    """The weights, with zeros for those below 1e-30 in magnitude.

    Weight decay shrinks what is of no use into subnormal numbers. They change nothing but make some processors ten
    times slower, so none is saved and none is left in a darkener that is loaded.
    """
    return {name: tensor.masked_fill(tensor.abs() < 1e-30, 0.0) for name, tensor in darkener.state_dict().items()}


def _rebuilt(payload: Mapping[str, Any], path: Path) -> Darkener:
    from minmax.runtime.config import from_plain  # here, as the import of the library needs no reader of flags

    try:
        settings, state = payload["settings"], payload["darkener"]
        settings = dict(json.loads(settings) if isinstance(settings, str) else settings)
        names = [name for name in settings if name.startswith("trained_")]
        refuse_absurd(settings, state, path)
        trained_on = {name.removeprefix("trained_"): settings.pop(name) for name in names}
        darkener = Darkener(from_plain(DarkenerSettings, settings, path), from_plain(RequestConfig, trained_on, path))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path} is not a darkener checkpoint of this version: {error}") from error
    return _load_weights(darkener, state, path)


def _load_weights(darkener: Darkener, state: Mapping[str, Tensor], source: Path | str) -> Darkener:
    load_strictly(darkener, state, source)
    darkener.load_state_dict(clean_weights(darkener))
    return darkener


def darkener_from_released(state: Mapping[str, Tensor], source: Path | str = "released checkpoint") -> Darkener:
    """Build a darkener from tensors under the authors' names.

    `e_conv{i}.depth_conv.*` becomes `estimator.units.{i}.depthwise.*`, `point_conv` becomes `pointwise`; the three
    buffers `down_scale`, `curve_round` and `encode_dim` become settings.
    """
    try:
        settings = DarkenerSettings(
            curve_rounds=int(state["curve_round"]),
            min_scale=float(state["down_scale"]),
            exposure_channels=int(state["encode_dim"]),
            width=state["e_conv1.depth_conv.weight"].shape[0],
        )
    except KeyError as error:
        raise UsageError(f"{source} is not a darkener checkpoint: it lacks {error}") from error
    renamed = {
        _RELEASED_NAME.sub(r"estimator.units.\1.\2wise.\3", name): tensor
        for name, tensor in state.items()
        if name not in ("down_scale", "curve_round", "encode_dim")
    }
    # The dtype of the file is kept, so that float64 weights stay float64.
    darkener = Darkener(settings).to(state["e_conv0.depth_conv.weight"].dtype)
    return _load_weights(darkener, renamed, source)

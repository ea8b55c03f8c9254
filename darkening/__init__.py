"""Image level of Similarity Min-Max: a darkener that lowers the similarity a frozen daytime model sees.

The names below are loaded when they are first asked for, and need neither flags nor run folders.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkening.camera import CameraConfig, photograph
    from darkening.darkener import Darkener, DarkenerSettings
    from darkening.darkener_files import load_darkener, save_darkener
    from darkening.exposures import RequestConfig
    from darkening.fit import fit_darkener
    from darkening.losses import OBEDIENT_LOSS, DarkeningLoss
    from darkening.night_view import NightView

__all__ = [
    "OBEDIENT_LOSS",
    "CameraConfig",
    "Darkener",
    "DarkenerSettings",
    "DarkeningLoss",
    "NightView",
    "RequestConfig",
    "fit_darkener",
    "load_darkener",
    "photograph",
    "save_darkener",
]

_MODULES = {
    "CameraConfig": "camera",
    "photograph": "camera",
    "Darkener": "darkener",
    "DarkenerSettings": "darkener",
    "load_darkener": "darkener_files",
    "save_darkener": "darkener_files",
    "RequestConfig": "exposures",
    "fit_darkener": "fit",
    "OBEDIENT_LOSS": "losses",
    "DarkeningLoss": "losses",
    "NightView": "night_view",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

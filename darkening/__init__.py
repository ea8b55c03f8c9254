"""Image level of Similarity Min-Max: a darkener that lowers the similarity a frozen daytime model sees.

To read it, begin with `fit.darkening_step`, one step of its training: `exposures.RequestConfig` draws what it is asked
for, a `darkener.Darkener` darkens in one of three ways (`pixel_view`, `scene_view`, `camera_view`), and a
`losses.DarkeningLoss` compares with the day. `fit.fit_darkener` is the loop around that step for Python,
`training.train_darkener` that of the scripts. A trained darkener or a hand-made `heuristics.Night`, and what a `camera`
adds to it, make a `night_view.NightView`: what a model adapts to, and what `apply` writes.

The names below are loaded when they are first asked for, and need nothing that only scripts use, as flags and runs.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darkening.camera import CameraConfig as CameraConfig
    from darkening.camera import photograph as photograph
    from darkening.darkener import Darkener as Darkener
    from darkening.darkener import DarkenerSettings as DarkenerSettings
    from darkening.darkener_files import load_darkener as load_darkener
    from darkening.darkener_files import save_darkener as save_darkener
    from darkening.exposures import RequestConfig as RequestConfig
    from darkening.fit import fit_darkener as fit_darkener
    from darkening.losses import OBEDIENT_LOSS as OBEDIENT_LOSS
    from darkening.losses import DarkeningLoss as DarkeningLoss
    from darkening.night_view import NightView as NightView

PUBLIC = {
    "camera": ("CameraConfig", "photograph"),
    "darkener": ("Darkener", "DarkenerSettings"),
    "darkener_files": ("load_darkener", "save_darkener"),
    "exposures": ("RequestConfig",),
    "fit": ("fit_darkener",),
    "losses": ("OBEDIENT_LOSS", "DarkeningLoss"),
    "night_view": ("NightView",),
}
"""The names by module."""


def __getattr__(name: str) -> object:
    for module, names in PUBLIC.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The darkener for nights to look at, which ships beside the starting point.

It sees the whole scene (`DarkenerSettings.view`) and was trained on built-in day scenes alone, whose sky is known, to
make them what `planned_night` plans; no photo, no night and no network took part. The file that ships was made by

    python -m darkening.night_to_look_at --name night-to-look-at

which writes `night_to_look_at.safetensors` into its run; copy it beside this file to ship it.
"""

from dataclasses import dataclass, field

from darkening.darkener import DarkenerSettings
from darkening.darkener_files import NIGHT_TO_LOOK_AT
from darkening.exposures import RequestConfig
from darkening.fit import DarkenerOptim
from darkening.losses import DarkeningLoss
from darkening.starting_point import Config, main
from minmax.runtime.config import run_script

PLANNED_LOSS = DarkeningLoss(
    exposure=4.0,
    exposure_patch=2,  # the mean is exact whatever the weights: what is left to learn is where it gets how dark
    exposure_space="log",
    colour=0.0,
    chroma=80.0,  # of the planned night
    total_variation=0.6,
    total_variation_midpoint=1.0,
    scale=0.1,
    similarity=0.0,
)


@dataclass(frozen=True, kw_only=True)
class SceneConfig(Config):
    """Train the darkener for nights to look at on built-in scenes."""

    name: str = NIGHT_TO_LOOK_AT
    """Name of the run; its folder is RUNS/darkening/NAME and must not exist yet."""
    count: int = 1024
    """Day scenes to train on."""
    size: int = 64
    """Height and width of the crops in pixels; the scenes are twice as large."""
    darkener: DarkenerSettings = DarkenerSettings(view="scene")
    request: RequestConfig = RequestConfig(exposure=(0.03, 0.5))
    loss: DarkeningLoss = PLANNED_LOSS
    """Weights of the losses; there is no network here that similarity could be measured with."""
    optim: DarkenerOptim = field(
        default_factory=lambda: DarkenerOptim(epochs=10, lr=1.5e-3, clip=1.0, milestones=(7, 9), warmup_steps=100)
    )


if __name__ == "__main__":
    run_script(SceneConfig, main, __doc__)

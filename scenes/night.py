"""Night as a camera sees it: a physical model of lamps, glare and sensor, with no tone curve laid over a day picture.

Light is given relative to daylight, where a white surface has a radiance of about 1.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from scenes.sprites import SKY, STREET_LAMPS, Colour, Floats, Lamp
from scenes.world import Scene, encode, render_day

Domain = Literal["day", "night"]
Range = tuple[float, float]

_SODIUM: Final = (1.0, 0.55, 0.14)
_LED: Final = (0.85, 0.95, 1.0)
_SKY_GLOW: Final = (0.6, 0.75, 1.0)
_ROUNDNESS: Final = 0.4


@dataclass(frozen=True)
class NightSettings:
    """Ranges from which each night picture draws its light and its camera; all light is relative to daylight.

    Nothing of the method was tuned on nights of these lamps and cameras.
    """

    ambient: Range = (0.005, 0.015)  # irradiance from moon and sky glow
    street_lamp: Range = (2.0, 7.0)  # intensity: irradiance one metre away on the axis
    lamps_working: float = 0.65  # share of street lamps that burn
    sodium_share: float = 0.15  # share of places with sodium lamps, the others have LED
    vehicle_lamp: Range = (0.5, 1.2)  # intensity of head lamps, traffic lights and shop windows
    emission: Range = (0.15, 0.4)  # radiance of a lit window or lens of emission 1
    glare: Range = (0.1, 0.3)  # share of the light of bright spots that the lens scatters
    metering: Range = (0.015, 0.05)  # mean of the picture in linear light that the camera aims for ...
    gain_limit: Range = (12.0, 28.0)  # ... unless its gain reaches this limit
    electrons: Range = (6000.0, 18000.0)  # per pixel, set free by a radiance of 1
    read_noise: Range = (4.0, 9.0)  # standard deviation in electrons
    white_balance: float = 0.22  # largest relative error of a channel


def lamp_light(scene: Scene, lamp: Lamp, colour: Colour, spread: float) -> Floats:
    """Irradiance by one lamp: (H, W, 3), for a lamp of the given colour times intensity.

    `spread` is the exponent of the lamp's cone: the larger, the narrower. The lamp's own body gets no light from it.
    """
    towards = np.asarray(lamp.position, np.float32) - scene.positions
    squared = np.einsum("hwc,hwc->hw", towards, towards)
    towards /= np.sqrt(squared + 1e-9)[..., None]
    # Flat sprites stand for rounded bodies: some light always reaches around their edges.
    facing = np.clip((np.einsum("hwc,hwc->hw", towards, scene.normal) + _ROUNDNESS) / (1 + _ROUNDNESS), 0.0, None)
    axis = np.asarray(lamp.axis, np.float32)
    cone = np.clip(-(towards @ (axis / np.linalg.norm(axis))), 0.0, None) ** spread
    # Half a metre of softening stands for the lamp's own extent; distant sky is lit by nothing.
    strength = cone * facing / (squared + 0.25) * (scene.label != SKY) * (scene.owner != lamp.owner)
    return np.asarray(strength[..., None] * np.asarray(colour, np.float32), np.float32)


def _scatter(bright: NDArray[Any], share: float) -> NDArray[Any]:
    """Glare: the lens spreads a share of the light of bright spots into a narrow core and a wide veil."""
    size = len(bright)
    core, veil = (cv2.GaussianBlur(bright, (0, 0), size * width) for width in (0.02, 0.09))
    return np.asarray((1 - share) * bright + share * (0.6 * core + 0.4 * veil))


def render_night(scene: Scene, rng: np.random.Generator, noise: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Render a scene at night as sRGB, uint8 (H, W, 3).

    Lamps, ambient light and the camera's gain, white balance, shot and read noise are drawn from `rng` within the
    ranges of `NightSettings`. The noise of single pixels is drawn from `noise` where it is given: the frames of a clip
    share their light, not their noise.
    """
    settings, noise = NightSettings(), noise or rng
    glow = np.asarray(rng.uniform(*settings.ambient) * np.asarray(_SKY_GLOW), np.float32)
    spectrum = np.asarray(_SODIUM if rng.random() < settings.sodium_share else _LED) * rng.uniform(0.85, 1.15, 3)
    street, vehicle = rng.uniform(*settings.street_lamp), rng.uniform(*settings.vehicle_lamp)

    irradiance = np.broadcast_to(glow, scene.albedo.shape) * (0.65 + 0.35 * scene.normal[..., 1:2])
    for lamp in scene.lamps:
        if lamp.owner == STREET_LAMPS:
            power, spread = street * spectrum * (rng.random() < settings.lamps_working), 1.0
        else:
            power, spread = vehicle * np.asarray(lamp.colour), 3.0
        if power.any():
            irradiance = irradiance + lamp_light(scene, lamp, (power[0], power[1], power[2]), spread)
    # What the lit street throws back fills the shadows a little.
    irradiance = irradiance + (scene.albedo * irradiance).mean(axis=(0, 1))
    radiance = np.where((scene.label == SKY)[..., None], 0.4 * glow, scene.albedo * irradiance)
    tint = np.where((scene.owner == STREET_LAMPS)[..., None], spectrum, 1.0)
    emission = np.asarray(scene.emission * tint * rng.uniform(*settings.emission), np.float32)
    radiance = radiance + _scatter(emission, rng.uniform(*settings.glare))

    # The camera meters for its target without the few blown-out spots, until its gain is used up.
    metered = np.minimum(radiance, 5 * np.median(radiance) + 1e-4).mean()
    gain = min(rng.uniform(*settings.metering) / metered, rng.uniform(*settings.gain_limit))
    electrons = rng.uniform(*settings.electrons)
    shot = noise.poisson(radiance * electrons)
    signal = shot + noise.normal(0.0, rng.uniform(*settings.read_noise), radiance.shape)
    balance = 1 + settings.white_balance * rng.uniform(-1.0, 1.0, 3)
    return encode(signal / electrons * gain * balance)


def render(
    domain: Domain, scene: Scene, rng: np.random.Generator, noise: np.random.Generator | None = None
) -> NDArray[np.uint8]:
    """Render a scene by day or by night, as `render_day` and `render_night`."""
    return (render_day if domain == "day" else render_night)(scene, rng, noise)

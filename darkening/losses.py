"""What a darkener is trained with: obey the exposure, stay realistic, look different to the frozen daytime model.

Source: Luo et al., ICCV 2023 (image level); exposure, colour and total-variation terms after Zero-DCE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from darkening.views import Darkening
from minmax.keep import class_divergence
from minmax.runtime.errors import check
from minmax.similarity import feature_similarity

ExposureSpace = Literal["linear", "log"]
_CHROMA_OFFSET = 0.02
_LOG_OFFSET = 0.02  # intensities well below this are black to an 8-bit picture


def exposure_loss(images: Tensor, exposure: Tensor, patch: int = 1, space: ExposureSpace = "linear") -> Tensor:
    """Mean squared difference between local mean intensity and the request.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        exposure: the request, `(N, 1, 1, 1)`, or a map `(N, 1, H, W)` whose local means are compared.
        patch: side of the squares whose mean is compared, in pixels; 0 takes the whole image.
        space: linear compares intensities, as the paper; log compares their logarithms, so that a request of 0.05
            weighs as much as one of 0.5 and a picture that has gone black still has a way back (its tone curve is
            saturated, and in linear space its gradient vanishes).
    """
    pooled = _local_mean(images.mean(dim=1, keepdim=True), patch)
    wanted = _local_mean(exposure, patch) if exposure.shape[-2:] == images.shape[-2:] else exposure
    if space == "log":
        return ((pooled + _LOG_OFFSET).log() - (wanted + _LOG_OFFSET).log()).square().mean()
    return (pooled - wanted).square().mean()


def _local_mean(values: Tensor, patch: int) -> Tensor:
    return F.avg_pool2d(values, patch) if patch else values.mean(dim=(2, 3), keepdim=True)


def colour_loss(images: Tensor) -> Tensor:
    """How far the mean colour of each image is from grey: fourth powers of channel differences, under a root."""
    red, green, blue = images.mean(dim=(2, 3)).unbind(dim=1)
    fourth_powers = (red - green).pow(4) + (red - blue).pow(4) + (green - blue).pow(4)
    # The root of exactly 0, a grey image, would have an infinite slope and turn every gradient into NaN.
    return (fourth_powers + 1e-24).sqrt().mean()


def total_variation_loss(curve_map: Tensor, midpoint: float | None = 0.02) -> Tensor:
    """Roughness of a curve map `(N, C, H, W)`, summed over channels, averaged over images and positions.

    Args:
        curve_map: any range.
        midpoint: differences d count as d up to here and fall to 0 at twice this value, so that true edges are free;
            None counts every difference in full.
    """

    def roughness(later: Tensor, earlier: Tensor) -> Tensor:
        difference = (later - earlier).abs()
        if midpoint is not None:
            difference = (midpoint - (difference - midpoint).abs()).clamp(0.0, 1.0)
        return difference.square().sum() / max(1, difference.shape[2:].numel())

    vertical = roughness(curve_map[:, :, 1:], curve_map[:, :, :-1])
    horizontal = roughness(curve_map[..., 1:], curve_map[..., :-1])
    return 2.0 * (vertical + horizontal) / len(curve_map)


def scale_loss(scale_map: Tensor) -> Tensor:
    """How far the scale map is below 1, on average."""
    return (1.0 - scale_map).mean()


def chroma_loss(darkened: Tensor, day: Tensor) -> Tensor:
    """How far each pixel's colour, whatever its brightness, has moved from that of the day image.

    Args:
        darkened: `(N, 3, H, W)` in [0, 1].
        day: the images that were darkened, of the same shape.

    Ours: `colour_loss` holds only the mean of an image, so that a cyan sky may make up for a brown street.
    """
    return (_chroma(darkened) - _chroma(day)).square().mean()


def _chroma(images: Tensor) -> Tensor:
    """Channels over their mean; nearly black pixels count as grey, as their colour is noise."""
    return (images + _CHROMA_OFFSET) / (images.mean(dim=1, keepdim=True) + _CHROMA_OFFSET)


@dataclass(frozen=True)
class DarkeningLoss:
    """The darkener's loss: named, weighted terms. The defaults are the paper's for classification."""

    exposure: float = 10.0
    """Weight of obeying the requested exposure."""
    exposure_patch: int = 1
    """Side of the squares whose mean is held to the request, in pixels; 0: the whole image."""
    exposure_space: ExposureSpace = "linear"
    """Compare intensities (linear, the paper's) or their logarithms (log)."""
    colour: float = 25.0
    """Weight of staying grey on average."""
    total_variation: float = 1600.0
    """Weight of a smooth curve map."""
    total_variation_midpoint: float = 0.02
    """Differences of the curve map beyond twice this value count as true edges and are free."""
    scale: float = 5.0
    """Weight of a scale map near 1."""
    chroma: float = 0.0
    """Weight of keeping each pixel's colour; not in the paper."""
    similarity: float = 0.1
    """Weight of the similarity that the frozen daytime model sees between day and darkened image."""
    recognisable: float = 0.0
    """Weight, in units of that of similarity, of what the frozen model no longer predicts by night as it does by day
    (Kullback-Leibler divergence); not in the paper."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self, "exposure_patch", self.exposure_patch >= 0, "0 or more")
        check(self, "recognisable", self.recognisable >= 0, "0 or more")
        check(self, "total_variation_midpoint", self.total_variation_midpoint > 0, "more than 0")

    def __call__(
        self,
        day: Tensor,
        darkening: Darkening,
        exposure: Tensor,
        dark_features: Sequence[Tensor] = (),
        day_features: Sequence[Tensor] = (),
        dark_prediction: Tensor | None = None,
        day_prediction: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The weighted terms by name: of `day` images, what the darkener made of them, and what the model sees in both.

        `chroma` is there only when it has a weight, `similarity` only when features are given, `recognisable` only when
        predictions are, logits `(N, C, ...)`. A night by a camera has no other term: it obeys, and is realistic, by the
        ranges of the camera.
        """
        image, terms = darkening.image, {}
        if darkening.curve_map.dim() > 2:
            terms = {
                "exposure": self.exposure * exposure_loss(image, exposure, self.exposure_patch, self.exposure_space),
                "colour": self.colour * colour_loss(image),
                "total_variation": self.total_variation
                * total_variation_loss(darkening.curve_map, self.total_variation_midpoint),
                "scale": self.scale * scale_loss(darkening.scale_map),
            }
            if self.chroma:
                terms["chroma"] = self.chroma * chroma_loss(image, day)
        if dark_features:
            terms["similarity"] = self.similarity * feature_similarity(dark_features, day_features)
        if dark_prediction is not None and day_prediction is not None:
            weight = self.similarity * self.recognisable
            terms["recognisable"] = weight * class_divergence(dark_prediction, day_prediction)
        return terms


OBEDIENT_LOSS = DarkeningLoss(
    exposure=4.0,
    # The network sees 17 pixels around each pixel. Asked for the mean of a whole image it learns to paint a bright
    # frame around a black picture; asked for each pixel, the paper's way, it misses the request by 0.1 and more.
    exposure_patch=8,
    exposure_space="log",
    colour=0.0,  # a crop of a wall or of the sky is not grey on average; chroma keeps each pixel's colour instead
    chroma=40.0,
    # Every step of the curve map costs: free edges allow frames and halos.
    total_variation=20.0,
    total_variation_midpoint=1.0,
    scale=1.0,
    similarity=0.1,
)
"""Weights with which the output's mean follows the request and colours stay: ours, the default of the scripts."""

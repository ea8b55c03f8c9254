"""What a night to look at is trained to be, where it is known which pixels are sky."""

import math

import torch
from torch import Tensor

_BLACK = 0.05  # added to brightnesses of which a logarithm or a ratio is taken: below it is noise
_SKY_SHARE = 0.5  # of the land's brightness is left to the sky
_MORE_CONTRAST = 0.5
_NIGHT_LIGHT = (0.90, 0.96, 1.14)
_TINT = 0.7


def planned_night(day: Tensor, sky: Tensor, exposure: Tensor) -> Tensor:
    """What a night to look at is held to where it is known which pixels are sky.

    At night no light comes from above: the sky sinks below the street, the more so the darker it is to be, and clouds
    keep their relief; all else keeps its order of brightness with more contrast; the light turns a little blue, unless
    it is blue already.

    Args:
        day: `(N, 3, H, W)` in [0, 1].
        sky: 1 where the sky is, else 0, `(N, 1, H, W)`.
        exposure: requested mean intensities, `(N, 1, 1, 1)`.

    Returns:
        Images of the requested mean, `(N, 3, H, W)`.
    """

    def over(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum(dim=(2, 3), keepdim=True) / where.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)

    land = 1.0 - sky
    grey = day.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    asked = torch.minimum(exposure, mean)
    # 0 where the day is dark enough already, 1 from a fourfold darkening on.
    night = ((mean + _BLACK) / (asked + _BLACK)).log().div(math.log(4.0)).clamp(max=1.0)
    steep = grey ** (1.0 + _MORE_CONTRAST * night)
    steep = steep * (over(grey, land) / over(steep, land).clamp(min=1e-6))
    share = (_SKY_SHARE * over(grey, land) / over(grey, sky).clamp(min=_BLACK)).clamp(max=1.0)
    # Where all is sky, or nothing, there is no street to be darker than.
    share = torch.where((sky.mean(dim=(2, 3), keepdim=True) - 0.5).abs() < 0.48, share, torch.ones_like(share))
    plan = torch.where(sky > 0.5, grey * share**night, steep)
    plan = torch.minimum(grey, plan * (asked / plan.mean(dim=(2, 3), keepdim=True)))
    light = day.mean(dim=(2, 3), keepdim=True) + _BLACK
    tint = (torch.tensor(_NIGHT_LIGHT).to(day).view(1, 3, 1, 1) / light) ** (_TINT * night)
    coloured = day * tint
    return coloured * (plan / coloured.mean(dim=1, keepdim=True).clamp(min=1e-3))

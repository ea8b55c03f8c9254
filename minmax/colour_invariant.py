"""CIConv: edges that a change of the light's intensity leaves alone, as the first layer of a network.

Source: Lengyel et al., "Zero-Shot Day-Night Domain Adaptation with a Physics Prior", ICCV 2021, its invariant W, after
Geusebroek et al., "Color invariance", TPAMI 2001.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of RGB: the energy of the light E, and its first and second derivative by the wavelength.
_GAUSSIAN_COLOUR_MODEL = ((0.06, 0.63, 0.27), (0.3, 0.04, -0.35), (0.34, -0.6, 0.17))
_LARGEST_SCALE = 2.5  # of the logarithm, either way; as published
_EPSILON = 1e-5


class ColourInvariant(nn.Module):
    """RGB images `(N, 3, H, W)` in [0, 1] to the logarithm of W^2, `(N, 1, H, W)`, of mean 0 and variance 1 per image.

    W^2 is the sum of the squared slopes, right and down, of E and its two derivatives, each divided by E. They are seen
    through a Gaussian of 2^scale pixels, a learned scale, edges repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("colours", torch.tensor(_GAUSSIAN_COLOUR_MODEL).view(3, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Find the edges of a batch."""
        with torch.autocast(images.device.type, enabled=False):  # squares leave the range of half precision
            seen = F.conv2d(images.to(self.scale.dtype), self.get_buffer("colours"))
            deviation = 2 ** self.scale.clamp(-_LARGEST_SCALE, _LARGEST_SCALE)
            reach = round(3 * 2**_LARGEST_SCALE)
            steps = torch.arange(-reach, reach + 1, device=seen.device, dtype=seen.dtype)
            bell = torch.exp(-0.5 * (steps / deviation) ** 2)
            slope = steps * bell
            bell, slope = bell / bell.sum(), slope / slope.abs().sum()
            smooth, down = _along(seen, bell, 2), _along(_along(seen, slope, 2), bell, 3)
            right, energy = _along(smooth, slope, 3), _along(smooth[:, :1], bell, 3).clamp_min(_EPSILON)
            squares = ((down / energy) ** 2 + (right / energy) ** 2).sum(dim=1, keepdim=True)
            edges = (squares + _EPSILON).log()
            variance, mean = torch.var_mean(edges, dim=(2, 3), correction=0, keepdim=True)
            found: Tensor = (edges - mean) * (variance + _EPSILON).rsqrt()
            return found


def _along(maps: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Maps `(N, C, H, W)`, filtered along one dimension, edges repeated."""
    reach, channels = len(taps) // 2, maps.shape[1]
    padding, shape = ((0, 0, reach, reach), (-1, 1)) if dim == 2 else ((reach, reach, 0, 0), (1, -1))
    padded = F.pad(maps, padding, mode="replicate")
    return F.conv2d(padded, taps.view(1, 1, *shape).expand(channels, -1, -1, -1), groups=channels)


def behind_invariant(network: nn.Module) -> nn.Sequential:
    """A network of RGB images behind the invariant: its first convolution then sums over what were three channels.

    Raises:
        ValueError: when the network's first layer is no convolution of three channels.
    """
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or (first.in_channels, first.groups) != (3, 1):
        raise ValueError("a colour invariant goes before a convolution of RGB, and this network starts with none")
    first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    first.in_channels = 1
    return nn.Sequential(OrderedDict(invariant=ColourInvariant(), network=network))

"""Random colour of a whole batch on the device it is on."""

import torch
from torch import Tensor


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, by one factor each for the whole batch.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        strength: 0 to 0.5; factors are from [1 - strength, 1 + strength], the hue's shift from [-strength, strength].
        generator: of the draws, on the CPU.

    Returns:
        Images of the same shape in [0, 1].

    The authors' augmentation for day and night views; the night is darkened before it.
    """
    from torchvision.transforms.v2 import functional

    if strength == 0:
        return images
    draws = ((torch.rand(4, generator=generator) * 2.0 - 1.0) * strength).tolist()
    images = functional.adjust_brightness(images, 1.0 + draws[0])
    images = functional.adjust_contrast(images, 1.0 + draws[1])
    images = functional.adjust_saturation(images, 1.0 + draws[2])
    jittered: Tensor = functional.adjust_hue(images, draws[3])
    return jittered

"""AdaBN: BatchNorm's statistics counted anew on the very images that a network is measured on. Not zero-shot.

Source: Li et al., "Revisiting batch normalization for practical domain adaptation", https://arxiv.org/abs/1603.04779.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from minmax.features import independent_copy, one_line
from minmax.runtime.batches import one_pass
from minmax.runtime.devices import Runtime
from minmax.runtime.errors import RunError, UsageError
from minmax.runtime.seeding import generator_for

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@torch.no_grad()
def with_statistics_of(
    network: NetworkT, whole: Dataset[Any], title: str, batch_size: int, workers: int, runtime: Runtime
) -> NetworkT:
    """A copy of a network whose BatchNorm layers have the statistics of a data set: means over batches in random order.

    The samples of `whole` are pixels, or have them first: an image, or the clips of a video. `title` is for messages.

    Raises:
        UsageError: when the network has no BatchNorm.
        RunError: when a batch holds but one value per channel.
    """
    adapted = independent_copy(network).eval()
    layers = [layer for layer in adapted.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise UsageError("--adabn: the network has no BatchNorm, whose statistics it would count anew; drop it")
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    # Files lie class by class, and a batch of one class has other statistics than all of them.
    order = torch.randperm(len(whole), generator=generator_for("adabn")).tolist()  # type: ignore[arg-type]
    for _, pixels in one_pass(Subset(whole, order), batch_size, f"statistics of {title}", workers, runtime, _stacked):
        try:
            with runtime.autocast():
                adapted(runtime.intensities(pixels))
        except ValueError as error:
            raise RunError(f"--adabn, {title}: {one_line(error)}; choose another --batch-size") from error
    return adapted.eval()


def _stacked(samples: list[Any]) -> Tensor:
    pixels = torch.stack([sample if isinstance(sample, Tensor) else sample[0] for sample in samples])
    return pixels.flatten(0, 1) if pixels.dim() == 6 else pixels

"""DataParallel where there are no devices: each part of a batch goes through a replica of its own, on the CPU."""

import torch
from torch import nn


class TwoParts(nn.Module):
    """Stands for `nn.DataParallel`; `sizes` are those of the parts that all of them have seen."""

    sizes: list[int] = []

    def __init__(self, module, device_ids):
        super().__init__()
        self.module, self.count = module, len(device_ids)

    def forward(self, *tensors):
        """Cut every tensor into parts, and join what the replicas make of them."""
        parts = list(zip(*(tensor.chunk(self.count) for tensor in tensors), strict=True))
        self.sizes.extend(len(part[0]) for part in parts)
        return joined([replica(self.module)(*part) for part in parts])


def replica(module):
    """A module as DataParallel makes it for another device: shared hooks, and tensors that are no parameters."""
    twin = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(twin, name, None if parameter is None else parameter.view_as(parameter))
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else replica(child)
    return twin


def joined(parts):
    """What replicas gave, in whatever holds their tensors, as one batch."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    members = [joined(list(few)) for few in zip(*parts, strict=True)]
    return type(parts[0])(*members) if hasattr(parts[0], "_fields") else type(parts[0])(members)

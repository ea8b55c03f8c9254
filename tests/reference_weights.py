"""Inputs and weights that the reference numbers were made with."""

import zlib

import torch


def rand(shape, seed, scale=1.0, offset=0.0):
    """Uniform in [offset, offset + scale], computed in float32 as the reference does, then cast."""
    return (offset + scale * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).double()


def filled(shapes):
    """Weights by the rule of the reference: float32 normal draws seeded by the CRC of the name, scaled by kind."""
    state = {}
    for name, shape in shapes.items():
        parent, _, kind = name.rpartition(".")
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        in_batch_norm = f"{parent}.running_mean" in shapes
        if kind == "running_mean" or (kind == "bias" and in_batch_norm):
            draw = 0.1 * draw
        elif kind == "running_var":
            draw = 1 + 0.1 * draw.abs()
        elif kind == "weight" and in_batch_norm:
            draw = 1 + 0.1 * draw
        elif kind == "weight":
            draw = draw * ((2 / (draw.numel() // shape[0])) ** 0.5 * 0.7)
        else:
            draw = draw * 0.01
        state[name] = draw.double()
    return state

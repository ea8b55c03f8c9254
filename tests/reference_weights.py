"""Inputs and weights that the reference numbers were made with, and files as the authors released them."""

import hashlib
import zlib

import pytest
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


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def batch_norm(name, width):
    buffers = {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return buffers | {f"{name}.num_batches_tracked": ()}


def darkener_shapes(exposure_channels=1):
    """Of the weights of a released darkener."""
    units = [(3 + exposure_channels, 64), *[(64, 64)] * 4, *[(128, 64)] * 2, (128, 6)]
    shapes = {}
    for i, (inputs, outputs) in enumerate(units):
        shapes |= {f"e_conv{i}.depth_conv.weight": (inputs, 1, 3, 3), f"e_conv{i}.depth_conv.bias": (inputs,)}
        shapes |= {f"e_conv{i}.point_conv.weight": (outputs, inputs, 1, 1), f"e_conv{i}.point_conv.bias": (outputs,)}
    return shapes


def kind_of(name):
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


def tensors_of(shapes, prefix="module."):
    """Tensors under released names; each is one number seen as a whole tensor, so that a file stays small."""
    return {f"{prefix}{name}": torch.ones((), dtype=kind_of(name)).expand(shape) for name, shape in shapes.items()}


def assert_names(shapes, expected, prefix="module."):
    """Names, shapes and kinds are those of a released file, of which their number and digest are known."""
    lines = [f"{prefix}{name} {shape} {str(kind_of(name)).removeprefix('torch.')}" for name, shape in shapes.items()]
    assert len(lines) == expected["count"]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == expected["sha256"]


def assert_numbers(value, expected, tolerance=1e-8):
    flat = value.detach().double().flatten()
    assert list(value.shape) == expected["shape"]
    torch.testing.assert_close(flat[:16].tolist(), expected["first16"], rtol=tolerance, atol=tolerance)
    assert float(flat.sum()) == pytest.approx(expected["sum"], rel=tolerance, abs=tolerance)

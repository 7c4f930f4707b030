"""Simulates MLX affine quantisation of a model's matrices, to train for it and to test it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

GROUP = 64
BITS = 4
ROUTER_BITS = 8


def fake_quantize(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns what is left of ``weight`` [..., in] after affine quantisation in groups of 64.

    The largest value of each group in magnitude is kept exactly, as MLX does. Scales and biases
    are rounded to bfloat16, the type they are stored in.
    """
    rounded = weight.to(torch.bfloat16).float()
    groups = rounded.view(*weight.shape[:-1], -1, GROUP)
    high, low = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp_min(1e-7)
    from_low = low.abs() > high.abs()
    edge = torch.where(from_low, low, high)
    scale = torch.where(from_low, scale, -scale)
    steps = torch.round(edge / scale)
    scale = torch.where(steps != 0, edge / torch.where(steps != 0, steps, 1.0), scale)
    bias = torch.where(steps != 0, edge, 0.0)
    codes = torch.round((groups - bias) / scale).clamp(0, levels)
    scale, bias = scale.to(torch.bfloat16).float(), bias.to(torch.bfloat16).float()
    return (codes * scale + bias).flatten(-2).to(weight.dtype)


def matrix_bits(name: str, tensor: torch.Tensor) -> int:
    """Returns how many bits a parameter is packed with; 0 means that it stays as it is."""
    if tensor.dim() < 2 or "conv1d" in name or tensor.shape[-1] % GROUP:
        return 0
    return ROUTER_BITS if name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")) else BITS


@contextmanager
def quantized(model: torch.nn.Module) -> Iterator[None]:
    """Lets the model compute with quantised matrices; the exact ones return afterwards.

    A backward pass inside leaves gradients on the exact matrices (straight-through estimation).
    """
    exact: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bits = matrix_bits(name, parameter)
            if bits:
                exact.append((parameter, parameter.data))
                parameter.data = fake_quantize(parameter.data, bits)
    try:
        yield
    finally:
        for parameter, data in exact:
            parameter.data = data


def packed_bytes(model: torch.nn.Module) -> int:
    """Returns the size of the packed weights in bytes, without padding between records."""
    total = 0
    for name, parameter in model.named_parameters():
        bits = matrix_bits(name, parameter)
        count = parameter.numel()
        total += count * bits // 8 + count // GROUP * 4 if bits else count * 2
    return total

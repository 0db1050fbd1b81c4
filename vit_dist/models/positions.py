"""Position embeddings: fixed ones, and learned ones resampled to another grid."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled(positions: Tensor, prefix: int, grid: int, tokens: int) -> Tensor:
    """Resample positions [1, prefix + grid², width] to `tokens` tokens, prefix included: bicubic, as timm does."""
    side = math.isqrt(tokens - prefix)
    if side == grid:
        return positions
    square = positions[:, prefix:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    square = _Resize.apply(square, side)
    square = square.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], square], dim=1)


class _Resize(torch.autograd.Function):
    """Bicubic resizing of square images whose derivative is a product of constant matrices: CUDA's own adds up in any
    order, which `run.deterministic` does not allow.
    """

    @staticmethod
    def forward(context: Any, square: Tensor, side: int) -> Tensor:
        """square: [1, channels, grid, grid]; return [1, channels, side, side]."""
        context.sides = square.shape[-1], side
        return F.interpolate(square, (side, side), mode="bicubic", antialias=True)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0]
        matrix = _resizing(*context.sides).to(gradient)
        with torch.autocast(gradient.device.type, enabled=False):
            return matrix.mT @ gradient @ matrix, None


@cache
def _resizing(grid: int, side: int) -> Tensor:
    """Return the matrix [side, grid] that resizes a column of `grid` values as `F.interpolate` does, in float64."""
    with torch.inference_mode(mode=False):
        basis = torch.eye(grid, dtype=torch.float64)[None, None]
        return F.interpolate(basis, (side, grid), mode="bicubic", antialias=True)[0, 0]


def sincos(grid: int, width: int, *, prefix: int) -> Tensor:
    """Return fixed 2D positions [1, tokens, width] (Chen et al., "MoCo v3", 2021); 0 for the prefix's tokens."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = wave[:, None].expand(grid, grid, -1)
    columns = wave[None].expand(grid, grid, -1)
    positions = torch.cat([columns, rows], dim=2).reshape(1, grid * grid, width)
    return torch.cat([torch.zeros(1, prefix, width, dtype=positions.dtype), positions], dim=1).float()

"""Position embeddings at other sizes: their derivative is that of the interpolation, by operations in a fixed order."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vit_dist.models.positions import resampled


@pytest.mark.parametrize(("grid", "side"), [(7, 4), (4, 7), (14, 8)])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_derivative_is_that_of_bicubic_interpolation(grid: int, side: int, autocast: bool, device: str) -> None:
    positions = torch.randn(1, 2 + grid**2, 12, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    weights = torch.randn(1, 2 + side**2, 12, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.inference_mode():  # the constant that it keeps can be used in training all the same
        resampled(positions, 2, grid, 2 + side**2)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        actual = resampled(positions, 2, grid, 2 + side**2)
        (gradient,) = torch.autograd.grad((actual * weights).sum(), positions)
    square = positions[:, 2:].reshape(1, grid, grid, 12).permute(0, 3, 1, 2)
    square = F.interpolate(square, (side, side), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    expected = torch.cat([positions[:, :2], square], dim=1)
    assert torch.equal(actual, expected)
    (by_torch,) = torch.autograd.grad((expected * weights).sum(), positions)
    torch.testing.assert_close(gradient, by_torch, rtol=1e-5, atol=1e-6)
    nodes = [actual.grad_fn]
    for node in nodes:
        assert node is not None
        assert "Upsample" not in node.name()
        nodes += [before for before, _ in node.next_functions if before is not None]

"""Helpers around a forward pass: evaluation mode, output precision, parameter count, FLOPs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_dist.sizing.towers import example_inputs


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: nn.Module, *, channels: int, image_size: int) -> int:
    """Return the FLOPs of the forward pass of an image, or of an image and its text; 2 per multiply-add.

    Attention is included, a loss that compares pairs is not.
    """
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    # The counter does not know the CPU's fused attention, only the operations of the unfused one.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images = torch.zeros(1, channels, image_size, image_size, device=device, dtype=dtype)
        model(*example_inputs(model, images))
    return int(counter.get_total_flops())


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode without gradients; each module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def at_least_float32(outputs: Tensor) -> Tensor:
    """Convert half precision to float32; leave float64 as it is."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()

"""Helpers around a forward pass: evaluation mode, output precision, parameter count, FLOPs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def towers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers of a model that has several, by the name that their parameters begin with; else none."""
    towers = getattr(model, "named_towers", None)
    found: dict[str, nn.Module] = towers() if callable(towers) else {}
    return found


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: nn.Module, *, channels: int, image_size: int) -> int:
    """Return the FLOPs of one image's forward pass, 2 per multiply-add, attention included."""
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    # The counter does not know the CPU's fused attention, only the operations of the unfused one.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, image_size, image_size, device=device, dtype=dtype))
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

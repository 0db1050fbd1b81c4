"""Estimate the memory that a process needs to train a model."""

from __future__ import annotations

import contextlib
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.config.config import Config

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes per process. activations: kept by one micro-batch's forward pass for its backward pass."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum, which is needed at the end of a forward pass."""
        return sum(astuple(self))


def estimate(
    model: nn.Module, optimizer: Optimizer, config: Config, image: tuple[int, int, int], drop_paths: int, precision: str
) -> Memory:
    """Estimate the memory of a process that trains the model on micro-batches of images [channels, side, side].

    Measured, not modelled: the optimizer makes one step with gradients of zero, and activations are the bytes that
    autograd keeps for two small batches, their difference scaled to the micro-batch. The device's own context,
    workspace and fragmentation are not included.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = total_bytes([*model.parameters(), *model.buffers()])
    model.train()
    two, four = (_kept(model, slots, image, drop_paths, precision) for slots in (2, 4))
    activations = two + (four - two) * (config.batch.micro_size - 2) // 2
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = [value for slots in optimizer.state.values() for value in slots.values() if isinstance(value, Tensor)]
    return Memory(weights, total_bytes(trained), total_bytes(state), weights if config.train.ema else 0, activations)


def _kept(model: nn.Module, slots: int, image: tuple[int, int, int], drop_paths: int, precision: str) -> int:
    """Return the bytes that autograd keeps from a forward pass, without the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    # Ours and timm's models that keep the inputs of their blocks alone.
    checkpoints = getattr(model, "checkpoint_blocks", False) or getattr(model, "grad_checkpointing", False)
    blocks = list(getattr(model, "blocks", [])) if checkpoints else []
    last: list[tuple[Tensor | None, ...]] = []

    def keep_inputs(block: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
        for tensor in inputs:
            if tensor is not None:
                pack(tensor)
        last[:] = [inputs]

    handles = [block.register_forward_pre_hook(keep_inputs) for block in blocks]
    inputs = [torch.zeros(slots, *image)] + ([torch.zeros(slots, drop_paths, 2)] if drop_paths else [])
    with _autocast(precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*inputs).float().logsumexp(1).sum()
        for handle in handles:
            handle.remove()
        if blocks:  # the backward pass computes one block at a time again, from the last on
            blocks[-1](*last[0])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _autocast(precision: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()


def total_bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """Return the bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

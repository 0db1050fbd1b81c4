"""Estimate the memory that a process needs to train a model."""

from __future__ import annotations

import contextlib
import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.config.config import Config
from vit_dist.sizing.towers import example_inputs, towers_of

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes per process.

    activations: kept by one micro-batch's forward pass for its backward pass. pairs: kept between the two passes of a
    contrastive update.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    pairs: int = 0

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
    activations = two + (four - two) * (config.batch.slots - 2) // 2
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
    blocks: list[nn.Module] = []
    ends: list[nn.Module] = []
    for tower in towers_of(model).values() or [model]:
        if getattr(tower, "checkpoint_blocks", False) or getattr(tower, "grad_checkpointing", False):
            blocks += getattr(tower, "blocks", [])
            ends += blocks[-1:]
    last: dict[nn.Module, tuple[Tensor | None, ...]] = {}

    def keep_inputs(block: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
        for tensor in inputs:
            if tensor is not None:
                pack(tensor)
        last[block] = inputs

    handles = [block.register_forward_pre_hook(keep_inputs) for block in blocks]
    inputs = [*example_inputs(model, torch.zeros(slots, *image))]
    if drop_paths:
        inputs.append(torch.zeros(slots, drop_paths, 2))
    with _autocast(precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(*inputs)
        for output in outputs if isinstance(outputs, tuple) else [outputs]:
            output.float().logsumexp(1).sum()
        for handle in handles:
            handle.remove()
        for block in ends:  # the backward pass computes one block at a time again, from the last on
            block(*last[block])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def pair_bytes(
    own: int, everyone: int, embed_dim: int, image: tuple[int, int, int], context_length: int, block: int
) -> int:
    """Return the bytes that the passes of a contrastive update keep: inputs, embeddings, some blocks of logits.

    own: slots of this process, everyone: of all processes. block: elements of a block of logits, at most.
    """
    inputs = own * (4 * math.prod(image) + 8 * context_length)
    # Of this process's slots: as they come, in one piece, scaled, and two derivatives. Of all slots: exchanged, in
    # their order, and without those that do not count.
    embeddings = 4 * 2 * embed_dim * (6 * own + 3 * everyone)
    return inputs + embeddings + 5 * 4 * min(block, own * everyone)


def _autocast(precision: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", _AUTOCAST[precision]) if precision in _AUTOCAST else contextlib.nullcontext()


def total_bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    """Return the bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""Drop paths of timm's models by draws that are given, so that they do not depend on how a batch is split."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_COUNT, _RATES = "keyed_drop_paths", "keyed_drop_path_rates"


class KeyedDropPath(nn.Module):
    """Drop a sample's branch if its draw is below the rate, else scale it (Huang et al., "Stochastic Depth", 2016).

    scale: what this forward pass multiplies each sample's branch by, [batch], set before it. Where it is None, as for
    users of a trained model, the draws are torch's own.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, …]. Raises ValueError if the first dimension is not that of the draws."""
        if not self.training:
            return x
        scale = self.scale
        if scale is None:
            scale = (torch.rand(len(x), device=x.device) >= self.drop_prob) / (1 - self.drop_prob)
        if len(scale) != len(x):
            raise ValueError(f"{len(x)} rows for {len(scale)} samples")
        return x * scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def key_drop_paths(model: nn.Module, image: tuple[int, int, int]) -> None:
    """Replace timm's drop paths in a model, which then takes (images, draws), as the project's own does.

    image: [channels, height, width]. A model whose drop paths see other rows than the batch's is left as it is.
    """
    from timm.layers import DropPath

    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, DropPath) and child.drop_prob and child.scale_by_keep
    ]
    if not found:
        return
    keyed = [KeyedDropPath(float(child.drop_prob)) for _, _, child in found]
    for (parent, name, _), new in zip(found, keyed, strict=True):
        setattr(parent, name, new)
    # A tensor, as all that differs between blocks: compiled, they share one graph. Rates, and what is not dropped.
    rates = torch.tensor([[module.drop_prob, 1 - module.drop_prob] for module in keyed])
    model.register_buffer(_RATES, rates.T.contiguous(), persistent=False)

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(inputs) > 1:
            rate, kept = module.get_buffer(_RATES)
            scales = (inputs[1].flatten(1)[:, : len(keyed)] >= rate).to(kept.dtype) / kept
        for number, path in enumerate(keyed):
            path.scale = scales[:, number] if len(inputs) > 1 else None
        return inputs[:1]

    handle = model.register_forward_pre_hook(take)
    setattr(model, _COUNT, len(found))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.train()(torch.zeros(3, *image), torch.ones(3, math.ceil(len(found) / 2), 2))
    except ValueError:
        handle.remove()
        setattr(model, _COUNT, 0)
        delattr(model, _RATES)
        for parent, name, child in found:
            setattr(parent, name, child)


def keyed_depth(model: nn.Module) -> int:
    """Return how many pairs of draws a model of timm's takes for each sample."""
    return math.ceil(getattr(model, _COUNT, 0) / 2)

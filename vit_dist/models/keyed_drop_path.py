"""Drop paths of timm's models by draws that are given, so that they do not depend on how a batch is split."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_COUNT = "keyed_drop_paths"


class _Draws:
    """The draws of the forward pass that is made: in 0..1, [batch, pairs of branches, 2]; None: there are none."""

    given: Tensor | None = None


class KeyedDropPath(nn.Module):
    """Drop a sample's branch if its draw is below the rate, else scale it (Huang et al., "Stochastic Depth", 2016).

    Where no draws are given, as by users of a trained model, it draws by itself.
    """

    def __init__(self, rate: float, number: int, draws: _Draws) -> None:
        """number: of the branch in the model, from 0."""
        super().__init__()
        self.drop_prob = rate
        self.number = number
        self._draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, …]. Raises ValueError if the first dimension is not that of the draws."""
        if not self.training:
            return x
        pair, branch = divmod(self.number, 2)
        draws = self._draws.given
        drawn = torch.rand(len(x), device=x.device) if draws is None else draws[:, pair, branch]
        if len(drawn) != len(x):
            raise ValueError(f"{len(x)} rows for {len(drawn)} samples")
        scale = (drawn >= self.drop_prob).to(x.dtype) / (1 - self.drop_prob)
        return x * scale.view(-1, *[1] * (x.ndim - 1))


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
    draws = _Draws()
    for number, (parent, name, child) in enumerate(found):
        setattr(parent, name, KeyedDropPath(float(child.drop_prob), number, draws))

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        draws.given = inputs[1] if len(inputs) > 1 else None
        return inputs[:1]

    handle = model.register_forward_pre_hook(take)
    setattr(model, _COUNT, len(found))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.train()(torch.zeros(3, *image), torch.ones(3, math.ceil(len(found) / 2), 2))
    except ValueError:
        handle.remove()
        setattr(model, _COUNT, 0)
        for parent, name, child in found:
            setattr(parent, name, child)


def keyed_depth(model: nn.Module) -> int:
    """Return how many pairs of draws a model of timm's takes for each sample."""
    return math.ceil(getattr(model, _COUNT, 0) / 2)

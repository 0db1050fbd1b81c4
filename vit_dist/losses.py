"""Losses: (outputs, targets) → one value per slot; the update takes the weighted mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from vit_dist.config import LossConfig
from vit_dist.values import UserError, import_function, nearest

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy [slots] of logits [slots, classes] and class numbers [slots] (smoothing: Szegedy et al., 2016)."""
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def build_loss(config: LossConfig) -> Loss:
    """The loss of a config. Raises UserError for an unknown name."""
    if ":" in config.name:
        loss: Loss = import_function(config.name, "loss.name")
        return loss
    if config.name != "cross_entropy":
        raise UserError(f"loss.name: no loss {config.name}{nearest(config.name, ['cross_entropy'])}")
    return partial(cross_entropy, label_smoothing=config.label_smoothing)

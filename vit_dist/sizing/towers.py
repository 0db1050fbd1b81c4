"""The towers of a model that has several, and what a model takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def towers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers of a model that has several, by the name that their parameters begin with; else none."""
    towers = getattr(model, "named_towers", None)
    found: dict[str, nn.Module] = towers() if callable(towers) else {}
    return found


def example_inputs(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return what a model takes: images, and for one of two towers the longest texts that it takes, without meaning."""
    text = towers_of(model).get("text")
    if text is None:
        return (images,)
    length: int = text.context_length  # type: ignore[assignment]
    return images, torch.ones(len(images), length, dtype=torch.int64, device=images.device)

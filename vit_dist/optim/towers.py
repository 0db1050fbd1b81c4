"""The towers of a model that has several."""

from __future__ import annotations

from torch import nn


def towers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the towers of a model that has several, by the name that their parameters begin with; else none."""
    towers = getattr(model, "named_towers", None)
    found: dict[str, nn.Module] = towers() if callable(towers) else {}
    return found

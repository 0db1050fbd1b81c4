"""vit_dist: distributed training of Vision Transformers whose result never depends on the machines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "Run", "UserError", "train"]

if TYPE_CHECKING:
    from vit_dist.config import Config
    from vit_dist.loop import Run, train
    from vit_dist.values import UserError

_ROOMS = {"Config": "config", "UserError": "values", "Run": "loop", "train": "loop"}


def __getattr__(name: str) -> Any:
    """Opens a room when something of it is first asked for, so that `--help` need not wait for torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'vit_dist' has no attribute {name!r}")
    return getattr(import_module(f"vit_dist.{_ROOMS[name]}"), name)

"""vit_dist: distributed training of Vision Transformers whose result never depends on the machines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vit_dist.version import __version__

if TYPE_CHECKING:
    from vit_dist.config.config import Config
    from vit_dist.errors import UserError
    from vit_dist.inference.classifier import Classifier
    from vit_dist.inference.dual_encoder import DualEncoder
    from vit_dist.inference.open_model import load
    from vit_dist.training.result import Run
    from vit_dist.training.run import train

__all__ = ["Classifier", "Config", "DualEncoder", "Run", "UserError", "__version__", "load", "train"]

_MODULES = {
    "Classifier": "inference.classifier",
    "Config": "config.config",
    "DualEncoder": "inference.dual_encoder",
    "Run": "training.result",
    "UserError": "errors",
    "load": "inference.open_model",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'vit_dist' has no attribute {name!r}")
    return getattr(import_module(f"vit_dist.{_MODULES[name]}"), name)

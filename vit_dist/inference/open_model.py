"""Load a trained model for use in Python: a classifier, or a model of two towers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit_dist.errors import UserError
from vit_dist.inference.classifier import Classifier
from vit_dist.inference.dual_encoder import DualEncoder
from vit_dist.inference.load import TrainedModel, load_model
from vit_dist.inference.zero_shot import has_two_towers


def load(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: str = "",
    device: str = "auto",
    batch_size: int | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Load the model of a run's folder, a checkpoint, an exported folder or a safetensors file, or timm/NAME.

    Of a run on images and captions it is a `DualEncoder`, else a `Classifier`.

    weights: raw or ema; empty: those that the run chose. device: auto (the best one here), cpu, cuda or mps.
    batch_size: images of one forward pass. overrides: dotted fields, as model.name for a file of weights alone.
    trust_code: run a function that a file names as its model. Warns of damaged checkpoints that are passed over. Raises
    UserError.
    """
    fields = {**(overrides or {}), "run.device": device}
    if batch_size is not None:
        fields["evaluate.batch_size"] = batch_size
    if weights not in ("", "raw", "ema"):
        raise UserError(f"weights: must be raw or ema, not {weights}")
    trained = load_model(str(path), weights=weights, overrides=fields, trust_code=trust_code)
    for note in trained.notes:
        warnings.warn(note, stacklevel=2)
    return as_model(trained)


def as_model(trained: TrainedModel, device: torch.device | None = None) -> Classifier:
    """Return a trained model ready for use, on a device; None: that of its config. Raises UserError."""
    return (DualEncoder if has_two_towers(trained) else Classifier)(trained, device)

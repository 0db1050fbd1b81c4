"""The checkpoint format, safetensors and JSON with hashes: verify a checkpoint, open it, load from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit_dist.checkpointing.optimizer_state import SEPARATOR, parameter_names
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.models.weights import load_weights, matching_tensors, read_tensors
from vit_dist.optim.ema import EMA

MANIFEST = "manifest.json"


# Numbers of the formats of state.json and manifest.json; a file of another number is refused.
FORMAT, MANIFEST_FORMAT = 2, 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the content of its state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> int:
        """Return the number of global batches that had been drawn when it was saved."""
        return int(self.state["train_state"]["position"])

    def load_model(self, model: nn.Module) -> None:
        """Load the weights. Raises UserError that lists what does not fit."""
        load_weights(model, self.path / "model.safetensors")

    def load_optimizer(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Load the optimizer's state. Raises UserError if it is of parameters that the optimizer does not have."""
        by_name: dict[str, dict[str, Any]] = {}
        numbers = self.state["optimizer"]
        slots = {**read_tensors(self.path / "optimizer.safetensors"), **numbers["state"]}
        for name, value in slots.items():
            parameter, _, slot = name.rpartition(SEPARATOR)
            by_name.setdefault(parameter, {})[slot] = value
        names = parameter_names(optimizer, model)
        if by_name and not set(by_name) <= set(names):
            unknown = min(set(by_name) - set(names))
            raise UserError(f"{self.path / 'optimizer.safetensors'}: {unknown} is not in the optimizer")
        state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
        groups = optimizer.state_dict()["param_groups"]
        for group, counters in zip(groups, numbers["groups"], strict=False):
            group.update(counters)
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_average(self, average: EMA, model: nn.Module) -> None:
        """Load the average of the weights. Raises UserError if there is none, or it is of another model."""
        average.load(matching_tensors(model, self.path / "ema.safetensors"))


def why_broken(path: Path) -> str | None:
    """Return why a checkpoint is not complete, naming the file; None if it is.

    Raises UserError for a manifest of another format.
    """
    try:
        manifest = read_json(path / MANIFEST)
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{path / MANIFEST}: missing or broken"
    _check_format(path / MANIFEST, manifest, MANIFEST_FORMAT)
    for name, entry in files:
        file = path / name
        if not file.is_file():
            return f"{file}: missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{file}: {file.stat().st_size} bytes, not {entry['bytes']}"
        if sha256_of(file) != entry["sha256"]:
            return f"{file}: its SHA-256 is not the manifest's"
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify and open a checkpoint. Raises UserError if it is not complete, or of another format."""
    problem = why_broken(path)
    if problem:
        raise UserError(f"{problem}: this checkpoint cannot be used")
    return open_verified(path)


def open_verified(path: Path) -> Checkpoint:
    """Open a checkpoint already verified; do not hash it again. Raises UserError if it is of another format."""
    file = path / "state.json"
    state = read_json(file)
    _check_format(file, state, FORMAT)
    return Checkpoint(path, state)


def _check_format(file: Path, content: Mapping[str, Any], known: int) -> None:
    """Check the format's number in a JSON file. Raises UserError."""
    number = content.get("format")
    if number != known:
        raise UserError(
            f"{file}: format {number}, and this version of vit_dist reads format {known}: use the version that wrote it"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

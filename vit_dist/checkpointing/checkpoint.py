"""The checkpoint format: safetensors and JSON, written to a hidden folder, hashed, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.optimizer_state import SEPARATOR, optimizer_numbers, optimizer_tensors, parameter_names
from vit_dist.errors import UserError
from vit_dist.files import publish, read_json
from vit_dist.models.weights import load_weights, matching_tensors, read_tensors, state_tensors
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


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content as copies on the host, which training no longer changes.

    tensors: by file (model, optimizer, ema) and name. state: the content of state.json.
    """

    position: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def take_snapshot(
    position: int, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], average: EMA | None = None
) -> Snapshot:
    """Copy a run's tensors and numbers to the host."""
    tensors = {"model": state_tensors(model), "optimizer": optimizer_tensors(optimizer, model)}
    if average is not None:
        tensors["ema"] = average.tensors()
    if next(model.parameters()).device.type == "cpu":  # there they are still the live tensors
        tensors = {file: {name: x.clone() for name, x in named.items()} for file, named in tensors.items()}
    content = {"format": FORMAT, **state, "optimizer": optimizer_numbers(optimizer, model)}
    return Snapshot(position, tensors, content)


def write_snapshot(folder: Path, snapshot: Snapshot) -> tuple[Path, int]:
    """Write `folder/update_<position>` and return its path and size in bytes. Called on rank 0. Raises OSError.

    Until the last rename nothing of that name exists; after it, everything is complete and on the disk.
    """
    final = folder / f"update_{snapshot.position:08d}"
    hidden = folder / f".writing_{final.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    for file, tensors in snapshot.tensors.items():
        save_file(tensors, hidden / f"{file}.safetensors")
    (hidden / "state.json").write_text(json.dumps(snapshot.state, indent=1, allow_nan=False), encoding="utf-8")
    files = sorted(hidden.iterdir())
    for path in files:
        shutil.copymode(hidden / "state.json", path)  # safetensors makes its files readable for the owner alone
    sizes = {path.name: path.stat().st_size for path in files}
    entries = {path.name: {"bytes": sizes[path.name], "sha256": _sha256(path)} for path in files}
    manifest = {"format": MANIFEST_FORMAT, "files": entries}
    (hidden / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    publish(hidden, final, replace=True)
    return final, sum(sizes.values())


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
        if _sha256(file) != entry["sha256"]:
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

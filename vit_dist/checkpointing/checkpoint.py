"""Checkpoints: safetensors and JSON, written aside, hashed, synced, renamed. Save, verify, find, load, prune."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from vit_dist.checkpointing.optimizer_state import SEPARATOR, optimizer_numbers, optimizer_tensors, parameter_names
from vit_dist.errors import UserError
from vit_dist.files import fsync
from vit_dist.models.weights import load_weights, matching_tensors, read_file, state_tensors
from vit_dist.optim.ema import EMA

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole: its folder and the content of its state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def position(self) -> int:
        """Global batches drawn when it was saved."""
        return int(self.state["train"]["position"])

    def load_model(self, model: nn.Module) -> None:
        """Raises UserError that lists what does not fit."""
        load_weights(model, self.path / "model.safetensors")

    def load_optimizer(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Raises UserError where the moments are of parameters that are not this optimizer's."""
        by_name: dict[str, dict[str, Any]] = {}
        kept = self.state.get("optimizer", {"state": {}, "groups": []})
        slots = {**read_file(self.path / "optimizer.safetensors"), **kept["state"]}
        for name, value in slots.items():
            parameter, _, slot = name.rpartition(SEPARATOR)
            by_name.setdefault(parameter, {})[slot] = value
        names = parameter_names(optimizer, model)
        if by_name and not set(by_name) <= set(names):
            odd = sorted(set(by_name) - set(names))[0]
            raise UserError(f"{self.path / 'optimizer.safetensors'}: {odd} is not in the optimizer")
        state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
        groups = optimizer.state_dict()["param_groups"]
        for group, counters in zip(groups, kept["groups"], strict=False):
            group.update(counters)
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_average(self, average: EMA, model: nn.Module) -> None:
        """Raises UserError where it has none, or one of another model."""
        average.load(matching_tensors(model, self.path / "ema.safetensors"))


def save(
    folder: Path,
    position: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: EMA | None = None,
) -> tuple[Path, int]:
    """Writes `folder/update_<position>` and returns it with its bytes. Called by rank 0 alone. Raises OSError.

    Until its last rename nothing of that name exists; after it, all of it does, on the disk.
    """
    final = folder / f"update_{position:08d}"
    hidden = folder / f".writing_{final.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    save_file(state_tensors(model), hidden / "model.safetensors")
    save_file(optimizer_tensors(optimizer, model), hidden / "optimizer.safetensors")
    if average is not None:
        save_file(average.tensors(), hidden / "ema.safetensors")
    state = {**state, "optimizer": optimizer_numbers(optimizer, model)}
    (hidden / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False), encoding="utf-8")
    files = sorted(hidden.iterdir())
    for path in files:
        shutil.copymode(hidden / "state.json", path)  # safetensors hides its files from everybody else
    sizes = {path.name: path.stat().st_size for path in files}
    entries = {path.name: {"bytes": sizes[path.name], "sha256": _sha256(path)} for path in files}
    for path in files:
        fsync(path)
    (hidden / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1), encoding="utf-8")
    fsync(hidden / MANIFEST)
    fsync(hidden)
    if final.exists():
        shutil.rmtree(final)
    hidden.rename(final)
    fsync(folder)
    return final, sum(sizes.values())


def why_broken(path: Path) -> str | None:
    """Why a checkpoint is not whole, naming the file; None where it is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        return f"{path / MANIFEST}: missing or broken"
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
    """A checkpoint's folder. Raises UserError where it is not whole."""
    found = why_broken(path)
    if found:
        raise UserError(f"{found}: this checkpoint cannot be used")
    return open_verified(path)


def open_verified(path: Path) -> Checkpoint:
    """One that was found whole: hashing it once is enough."""
    return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Checkpoints: safetensors and JSON, written aside, hashed, synced, renamed. Save, verify, find, load, prune."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.errors import UserError
from vit_dist.files import fsync, replacing
from vit_dist.models.weights import fitting, load_weights, read_file, weights
from vit_dist.optim.ema import Average

MANIFEST = "manifest.json"


_SEPARATOR = "/"


# Of a group's numbers, those that the config and the schedule give; what else there is, the optimizer counts.
_FROM_THE_CONFIG = ("lr", "momentum", "weight_decay", "scale")


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
            parameter, _, slot = name.rpartition(_SEPARATOR)
            by_name.setdefault(parameter, {})[slot] = value
        names = _names(optimizer, model)
        if by_name and not set(by_name) <= set(names):
            odd = sorted(set(by_name) - set(names))[0]
            raise UserError(f"{self.path / 'optimizer.safetensors'}: {odd} is not in the optimizer")
        state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
        groups = optimizer.state_dict()["param_groups"]
        for group, numbers in zip(groups, kept["groups"], strict=False):
            group.update(numbers)
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_average(self, average: Average, model: nn.Module) -> None:
        """Raises UserError where it has none, or one of another model."""
        average.load(fitting(model, self.path / "ema.safetensors"))


def save(
    folder: Path,
    position: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: Average | None = None,
) -> tuple[Path, int]:
    """Writes `folder/update_<position>` and returns it with its bytes. Called by rank 0 alone. Raises OSError.

    Until its last rename nothing of that name exists; after it, all of it does, on the disk.
    """
    final = folder / f"update_{position:08d}"
    hidden = folder / f".writing_{final.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    save_file(weights(model), hidden / "model.safetensors")
    save_file(_moments(optimizer, model), hidden / "optimizer.safetensors")
    if average is not None:
        save_file(average.tensors(), hidden / "ema.safetensors")
    state = {**state, "optimizer": _numbers(optimizer, model)}
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


def problem(path: Path) -> str | None:
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


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder that have a manifest, oldest first; not verified."""
    return sorted(path.parent for path in folder.glob(f"update_*/{MANIFEST}"))


def find(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a folder, and what is wrong with those newer than it."""
    wrong: list[str] = []
    for path in reversed(complete(folder)):
        found = problem(path)
        if found is None:
            return _opened(path), wrong
        wrong.append(found)
    return None, wrong


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint's folder. Raises UserError where it is not whole."""
    found = problem(path)
    if found:
        raise UserError(f"{found}: this checkpoint cannot be used")
    return _opened(path)


def _opened(path: Path) -> Checkpoint:
    """One that was found whole: hashing it once is enough."""
    return Checkpoint(path, json.loads((path / "state.json").read_text(encoding="utf-8")))


def link(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` at `target`: a relative link, replaced atomically; a one-line text file without links."""
    with replacing(folder / name) as hidden:
        hidden.unlink(missing_ok=True)
        try:
            hidden.symlink_to(target.name)
        except OSError:
            hidden.write_text(target.name, encoding="utf-8")


def follow(folder: Path, name: str) -> Path | None:
    """What `link` pointed to, or None."""
    path = folder / name
    if path.is_symlink():
        return folder / os.readlink(path)
    return folder / path.read_text(encoding="utf-8").strip() if path.is_file() else None


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the `keep` newest and the best, and what a dead writer left."""
    best = follow(folder, "best")
    for path in complete(folder)[:-keep]:
        if best is None or path.name != best.name:
            # Without its manifest a checkpoint does not exist: one that is half removed must not look whole.
            (path / MANIFEST).unlink()
            shutil.rmtree(path)
    for path in folder.glob(".writing_*"):
        shutil.rmtree(path, ignore_errors=True)


def _moments(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu().contiguous()
        for name, value in _slots(optimizer, model)
        if isinstance(value, torch.Tensor)
    }


def _numbers(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """What an optimizer keeps as plain numbers, of each parameter and of its groups: some of timm's count so."""
    return {
        "state": {name: value for name, value in _slots(optimizer, model) if _is_number(value)},
        "groups": [
            {
                name: number
                for name, value in group.items()
                if name not in _FROM_THE_CONFIG and _is_number(number := _scalar(value))
            }
            for group in optimizer.param_groups
        ],
    }


def _slots(optimizer: Optimizer, model: nn.Module) -> Iterator[tuple[str, Any]]:
    """("parameter/slot", value) of all that an optimizer keeps of parameters."""
    state = optimizer.state_dict()["state"]
    for i, name in enumerate(_names(optimizer, model)):
        for slot, value in state.get(i, {}).items():
            yield f"{name}{_SEPARATOR}{slot}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scalar(value: Any) -> Any:
    """A tensor of one number, as timm's Lambs count in, as that number; all else as it is."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """The parameters' names in the order of the optimizer's numbers."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

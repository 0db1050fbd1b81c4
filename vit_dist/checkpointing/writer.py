"""Write a checkpoint: copy what it holds to the host, then write, hash and publish its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.formats import FORMAT, MANIFEST_FORMAT
from vit_dist.checkpointing.manifest import MANIFEST, sha256_of
from vit_dist.checkpointing.optimizer_state import optimizer_numbers, optimizer_tensors
from vit_dist.files import publish
from vit_dist.models.weights import state_tensors
from vit_dist.optim.ema import EMA


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
    entries = {path.name: {"bytes": sizes[path.name], "sha256": sha256_of(path)} for path in files}
    manifest = {"format": MANIFEST_FORMAT, "files": entries}
    (hidden / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    publish(hidden, final, replace=True)
    return final, sum(sizes.values())

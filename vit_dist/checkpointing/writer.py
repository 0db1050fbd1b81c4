"""Write a checkpoint: copy what it holds to the host, then write, hash and publish its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_dist.checkpointing.formats import FORMAT, MANIFEST_FORMAT
from vit_dist.checkpointing.manifest import MANIFEST
from vit_dist.checkpointing.optimizer_state import optimizer_numbers, optimizer_tensors
from vit_dist.checkpointing.tensor_file import size_of, write_hashed, write_tensors
from vit_dist.files import publish
from vit_dist.models.weights import state_tensors
from vit_dist.optim.ema import EMA

# The host memory of a snapshot, by file and name; the next snapshot uses it again.
Buffers = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content as copies on the host, which training no longer changes.

    tensors: by file (model, optimizer, ema) and name. state: the content of state.json.
    """

    position: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Return the bytes of its tensors, nearly all of a checkpoint."""
        return sum(map(size_of, self.tensors.values()))


def take_snapshot(
    position: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: EMA | None = None,
    buffers: Buffers | None = None,
) -> Snapshot:
    """Copy a run's tensors and numbers to the host, into `buffers` where they fit: fresh memory is slow to touch.

    The caller must have finished with the snapshot that was taken into the same buffers before.
    """
    live = {"model": state_tensors(model), "optimizer": optimizer_tensors(optimizer, model)}
    if average is not None:
        live["ema"] = average.tensors()
    buffers = {} if buffers is None else buffers
    tensors: dict[str, dict[str, Tensor]] = {}
    for file, named in live.items():
        held = buffers.setdefault(file, {})
        for name, tensor in named.items():
            if name not in held or held[name].shape != tensor.shape or held[name].dtype != tensor.dtype:
                held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            held[name].copy_(tensor, non_blocking=tensor.is_cuda)
        tensors[file] = {name: held[name] for name in named}
    if any(tensor.is_cuda for tensor in live["model"].values()):
        torch.cuda.current_stream().synchronize()
    content = {"format": FORMAT, **state, "optimizer": optimizer_numbers(optimizer, model)}
    return Snapshot(position, tensors, content)


def write_snapshot(folder: Path, snapshot: Snapshot) -> tuple[Path, int]:
    """Write `folder/update_<position>` and return its path and size in bytes. Called on rank 0. Raises OSError.

    Until the last rename nothing of that name exists; after it, everything is complete and on the disk.
    """
    final = folder / f"update_{snapshot.position:08d}"
    hidden = folder / f".writing_{final.name}"
    state = json.dumps(snapshot.state, indent=1, allow_nan=False).encode()
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    files = {f"{file}.safetensors": tensors for file, tensors in snapshot.tensors.items()}
    entries = {name: write_tensors(hidden / name, tensors) for name, tensors in files.items()}
    entries["state.json"] = write_hashed(hidden / "state.json", iter([state]))
    manifest = {"format": MANIFEST_FORMAT, "files": dict(sorted(entries.items()))}
    (hidden / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    publish(hidden, final, replace=True)
    return final, sum(int(entry["bytes"]) for entry in entries.values())

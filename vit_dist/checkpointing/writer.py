"""Write a checkpoint: copy what it holds to the host; write, hash and publish its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
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
from vit_dist.files import WRITING, publish
from vit_dist.models.weights import state_tensors
from vit_dist.optim.ema import EMA

# The host memory of a snapshot, by file and name; the next snapshot uses it again.
Buffers = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content.

    tensors: by file (model, optimizer, ema) and name: the run's own, or copies on the host, which training no longer
    changes. state: the content of state.json.
    """

    position: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Return the bytes of its tensors, nearly all of a checkpoint."""
        return sum(map(size_of, self.tensors.values()))

    def copied(self, buffers: Buffers) -> Snapshot:
        """Return it with copies on the host, in `buffers` where they fit: fresh memory is slow to touch.

        Nothing may still need what the buffers hold. On CUDA the copies are made on the current stream and waited for.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        for file, named in self.tensors.items():
            held = buffers.setdefault(file, {})
            for name, tensor in named.items():
                if name not in held or held[name].shape != tensor.shape or held[name].dtype != tensor.dtype:
                    held[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                held[name].copy_(tensor, non_blocking=tensor.is_cuda)
            tensors[file] = {name: held[name] for name in named}
        if any(tensor.is_cuda for tensor in self.tensors["model"].values()):
            torch.cuda.current_stream().synchronize()
        return Snapshot(self.position, tensors, self.state)


def take_snapshot(
    position: int, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], average: EMA | None = None
) -> Snapshot:
    """Return what a checkpoint of now holds: the run's own tensors, which only the next optimizer step changes."""
    tensors = {"model": state_tensors(model), "optimizer": optimizer_tensors(optimizer, model)}
    if average is not None:
        tensors["ema"] = average.tensors()
    return Snapshot(position, tensors, {"format": FORMAT, **state, "optimizer": optimizer_numbers(optimizer, model)})


def write_snapshot(
    folder: Path, snapshot: Snapshot, before_each: Callable[[], None] = lambda: None
) -> tuple[Path, int]:
    """Write `folder/update_<position>` from copies on the host; return its path and size in bytes. Raises OSError.

    Until the last rename nothing of that name exists; after it, everything is complete and on the disk. before_each:
    called before each piece of some MiB; what it raises ends the writing, and nothing is left.
    """
    final = folder / f"update_{snapshot.position:08d}"
    hidden = folder / f"{WRITING}{final.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        size = _write_files(hidden, snapshot, before_each)
        before_each()
        publish(hidden, final, replace=True)
    finally:  # a full disk needs the room
        shutil.rmtree(hidden, ignore_errors=True)
    return final, size


def _write_files(hidden: Path, snapshot: Snapshot, before_each: Callable[[], None]) -> int:
    """Write the files of a checkpoint, the manifest last; return their size in bytes. Raises OSError."""
    files = {f"{file}.safetensors": tensors for file, tensors in snapshot.tensors.items()}
    entries = {name: write_tensors(hidden / name, tensors, before_each) for name, tensors in files.items()}
    state = json.dumps(snapshot.state, indent=1, allow_nan=False).encode()
    entries["state.json"] = write_hashed(hidden / "state.json", iter([state]))
    manifest = {"format": MANIFEST_FORMAT, "files": dict(sorted(entries.items()))}
    (hidden / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return sum(int(entry["bytes"]) for entry in entries.values())

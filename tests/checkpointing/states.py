"""The content of a state.json, for tests that write checkpoints by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_dist.config.config import Config


def state_values(position: int = 7, *, ema: float = 0.0, best: int | None = None, **train_state: Any) -> dict[str, Any]:
    """Return a whole state.json but for its format and the optimizer's numbers.

    best: the update of the best evaluation so far. train_state: other values in it.
    """
    found = {"update": best, "metric": "top1", "value": 50.0, "weights": "ema" if ema else "raw"}
    counters = {"position": position, "applied_updates": position, "skipped_updates": 0, "train_seconds": 1.5}
    patience = {"patience_baseline": None, "evaluations_without_improvement": 0, "tracker_run_id": None}
    return {
        "train_state": {**counters, **patience, "best": None if best is None else found, **train_state},
        "schedule": {"updates": train_state.get("applied_updates", position)},
        "scaler": {},
        "precision": "fp32",
        "world_size": 1,
        "classes": ["a", "b"],
        "preprocessing": {"image_size": 8, "mean": [0.5], "std": [0.25], "crop": 1.0},
        "channels": 1,
        "plan": {"samples": 100, "updates": 1000},
        "config": Config.load("digits", {"train.ema": ema}).to_dict(),
        "versions": {"vit_dist": "0.1.0"},
    }


def rehash(path: Path) -> None:
    """Make a checkpoint's manifest hold again, after a file that it lists was changed."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (path / "manifest.json").write_text(json.dumps(manifest))


FIXTURE = Path(__file__).parent / "fixtures" / "format_2" / "update_00000002"


def copy_fixture(folder: Path, position: int = 2, best: int | None = 2) -> Path:
    """Copy a small trained checkpoint to `folder/update_…` as one of another position; return its path.

    best: the update of the best evaluation so far.
    """
    path = folder / f"update_{position:08d}"
    shutil.copytree(FIXTURE, path)
    change_json(path, "state.json", lambda state: state | state_of(state, position, best))
    return path


def state_of(state: dict[str, Any], position: int, best: int | None) -> dict[str, Any]:
    """Return what in a state.json depends on the position and on the best evaluation."""
    train_state = state["train_state"] | {"position": position, "applied_updates": position}
    train_state["best"] = None if best is None else train_state["best"] | {"update": best}
    plan = state["plan"] | {"updates": max(position, state["plan"]["updates"])}
    return {"train_state": train_state, "schedule": {"updates": position}, "plan": plan}


def change_json(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace the content of a JSON file of a checkpoint by what `change` makes of it; the manifest holds again."""
    content = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(change(content)))
    if name != "manifest.json":
        rehash(path)


def damage(path: Path, name: str = "model.safetensors") -> str:
    """Change a byte of a file of a checkpoint, and return what is said of it."""
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    return f"{path / name}: its SHA-256 is not the manifest's"

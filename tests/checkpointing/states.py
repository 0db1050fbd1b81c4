"""The content of a state.json, for tests that write checkpoints by hand."""

from __future__ import annotations

import hashlib
import json
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

"""The state of a run that a checkpoint keeps next to weights and moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: `value` of `metric` at `update`, of its `weights` (raw or ema)."""

    update: int
    metric: str
    value: float
    weights: str = "raw"


@dataclass
class TrainState:
    """The counters of a run.

    position: global batches drawn. applied_updates: updates applied, which the schedule counts. skipped_updates: the
    difference. train_seconds: time spent training, without evaluation and saving, over all restarts.
    patience_baseline: the value of the metric that patience wants improved. evaluations_without_improvement:
    evaluations in a row that have not improved it. tracker_run_id: W&B's id of the run.
    """

    position: int = 0
    applied_updates: int = 0
    skipped_updates: int = 0
    train_seconds: float = 0.0
    best: Best | None = None
    patience_baseline: float | None = None
    evaluations_without_improvement: int = 0
    tracker_run_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Build it from the values of `to_dict`."""
        best = values["best"]
        return cls(**{**values, "best": Best(**best) if best else None})

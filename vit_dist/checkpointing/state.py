"""The small records that travel between rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: `value` of `metric` at `update`, by its raw or averaged (ema) `weights`."""

    update: int
    metric: str
    value: float
    weights: str = "raw"


@dataclass
class TrainState:
    """Where a run stands; with the weights and the optimizer's moments, all there is to it.

    position: global batches drawn. applied: updates applied (what the schedule counts). skipped: the
    difference. train_seconds: time spent training, evaluation and saving left out, over all restarts.
    patience_baseline: the metric's value that patience wants improved;
    evaluations_without_improvement: evaluations in a row that have not improved it.
    """

    position: int = 0
    applied: int = 0
    skipped: int = 0
    train_seconds: float = 0.0
    best: Best | None = None
    patience_baseline: float | None = None
    evaluations_without_improvement: int = 0
    tracker_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """The inverse of `to_dict`."""
        best = values["best"]
        return cls(**{**values, "best": Best(**best) if best else None})

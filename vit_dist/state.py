"""The small records that travel between rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    images: float, [slots, channels, height, width], normalised. targets: class numbers int64 [slots], or,
    where slots are mixed, probabilities float32 [slots, classes].
    weights: float32, [slots]; 0 where a slot only fills the shape. ids: the samples' indices in their
    source, int64, [slots], on the host. drop_path: float32 in 0..1, [slots, depth, 2], or None.
    seed: what the default generators are set to before the forward pass.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    ids: Tensor
    drop_path: Tensor | None
    seed: int


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
    bar: the metric's value that patience wants improved; stale: evaluations that have not.
    """

    position: int = 0
    applied: int = 0
    skipped: int = 0
    train_seconds: float = 0.0
    best: Best | None = None
    bar: float | None = None
    stale: int = 0
    tracker_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """The inverse of `to_dict`."""
        best = values["best"]
        return cls(**{**values, "best": Best(**best) if best else None})

"""Which weights are the best so far, and when to stop looking for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vit_dist.checkpointing.state import Best, TrainState
from vit_dist.config.schema import EvaluateConfig

# Of one evaluation, by weights (raw, ema) and measure (loss, top1, top5).
Scores = Mapping[str, Mapping[str, float | None]]


def weights_of(metric: str, scores: Scores) -> str:
    """The weights that a metric is of: the averaged ones where there are any, but for raw_…."""
    return "raw" if metric.startswith("raw_") or "ema" not in scores else "ema"


def value_of(metric: str, scores: Scores) -> float:
    """The value of a metric that the evaluation gives."""
    value = scores[weights_of(metric, scores)][metric.removeprefix("raw_")]
    assert value is not None
    return value


def is_improvement(metric: str, value: float, than: float, by: float = 0.0) -> bool:
    """Whether a metric's value is an improvement of more than `by`; a loss improves downwards; NaN is none."""
    return value < than - by if metric.endswith("loss") else value > than + by


def update_best(state: TrainState, config: EvaluateConfig, scores: Scores, *, warming: bool) -> bool:
    """Takes an evaluation of val into `state`; whether it is the best so far.

    Patience counts evaluations that improve on the last improvement by no more than min_delta; none while `warming`.
    """
    metric, value = config.metric, value_of(config.metric, scores)
    first = state.patience_baseline is None and not math.isnan(value)
    if first or (
        state.patience_baseline is not None and is_improvement(metric, value, state.patience_baseline, config.min_delta)
    ):
        state.patience_baseline, state.evaluations_without_improvement = value, 0
    elif not warming:
        state.evaluations_without_improvement += 1
    if math.isnan(value) or (state.best is not None and not is_improvement(metric, value, state.best.value)):
        return False
    state.best = Best(state.position, metric, value, weights_of(metric, scores))
    return True


def out_of_patience(state: TrainState, config: EvaluateConfig) -> bool:
    """Whether the run ends here, before its time."""
    return 0 < config.patience <= state.evaluations_without_improvement

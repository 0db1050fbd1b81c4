"""Choose the best weights by an evaluation of val, and decide when to stop looking for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vit_dist.checkpointing.state import Best, TrainState
from vit_dist.config.config import Config
from vit_dist.config.output_fields import EvaluateConfig
from vit_dist.inference.contrastive import Evaluated
from vit_dist.optim.schedules import Schedule
from vit_dist.run_folder.pair_figures import MEAN_RECALL, ZERO_SHOT

# The values of one evaluation by weights (raw, ema) and measure (loss, top1, top5).
Scores = Mapping[str, Mapping[str, float | None]]


def take_evaluation(
    results: Mapping[str, Evaluated],
    state: TrainState,
    schedule: Schedule,
    config: EvaluateConfig,
    *,
    warming: bool,
) -> tuple[str | None, list[str]]:
    """Feed an evaluation of val, by weights (raw, ema), to the plateau schedule, the choice of the best and patience.

    warming: whether the run is in its warmup. Return (the weights that are the best so far, or None; notes for the
    user).
    """
    scores = {weights: result.to_dict() for weights, result in results.items()}
    notes = []
    if not math.isfinite(value_of(config.metric, scores)):
        notes.append(f"val at update {state.position}: the loss is not finite: not a candidate for the best")
    if schedule.metric is not None:
        before = schedule.rate
        schedule.evaluated({schedule.metric: value_of(schedule.metric, scores)})
        if schedule.rate != before:
            notes.append(f"plateau of {schedule.metric}: rate {before:.3g} → {schedule.rate:.3g}")
    improved = update_best(state, config, scores, warming=warming)
    if out_of_patience(state, config):
        count = state.evaluations_without_improvement
        notes.append(f"out of patience: {config.metric} not improved in {count} evaluations")
    return (weights_of(config.metric, scores) if improved else None), notes


def selecting_metric(config: Config, classes: int) -> str:
    """Return `evaluate.metric` as evaluation measures it.

    top1 of images and captions is the zero-shot accuracy or, without classes to tell apart, the mean of the recalls at
    1 both ways.
    """
    metric = config.evaluate.metric
    if not config.contrastive or metric not in ("top1", "raw_top1"):
        return metric
    return metric.replace("top1", ZERO_SHOT if classes > 1 else MEAN_RECALL)


def weights_of(metric: str, scores: Scores) -> str:
    """Return the weights that a metric is of: ema if there are any and it does not begin with raw_, else raw."""
    return "raw" if metric.startswith("raw_") or "ema" not in scores else "ema"


def value_of(metric: str, scores: Scores) -> float:
    """Return the value of a metric, with or without raw_; NaN if the loss of the same weights is not finite.

    The accuracy of a model of NaN says nothing: which class it ranks first is an accident.
    """
    values = scores[weights_of(metric, scores)]
    name = metric.removeprefix("raw_")
    if name == "top1" and name not in values:  # as a plateau schedule calls it
        name = ZERO_SHOT if ZERO_SHOT in values else MEAN_RECALL
    value, loss = values[name], values.get("loss")
    assert value is not None
    return value if loss is None or math.isfinite(loss) else math.nan


def is_improvement(metric: str, value: float, reference: float, min_delta: float = 0.0) -> bool:
    """Return whether a value is better than `reference` by more than `min_delta`; a loss falls, NaN never is better."""
    return value < reference - min_delta if metric.endswith("loss") else value > reference + min_delta


def update_best(state: TrainState, config: EvaluateConfig, scores: Scores, *, warming: bool) -> bool:
    """Take an evaluation of val into `state`, and return whether it is the best so far.

    Of two with the same value the one with the lower loss is better, and of two with the same loss the later. Patience
    counts evaluations that are not better than the last improvement by more than min_delta and, for an accuracy, by
    more than one image, which chance alone may give; none of them while `warming`.
    """
    metric, value, weights = config.metric, value_of(config.metric, scores), weights_of(config.metric, scores)
    loss, min_delta = scores[weights].get("loss"), max(config.min_delta, _noise(metric, scores[weights]))
    first = state.patience_baseline is None and not math.isnan(value)
    if first or (
        state.patience_baseline is not None and is_improvement(metric, value, state.patience_baseline, min_delta)
    ):
        state.patience_baseline, state.evaluations_without_improvement = value, 0
    elif not warming:
        state.evaluations_without_improvement += 1
    if math.isnan(value) or (state.best is not None and not _is_better(metric, value, loss, state.best)):
        return False
    state.best = Best(state.position, metric, value, weights, loss)
    return True


def _noise(metric: str, values: Mapping[str, float | None]) -> float:
    """Return a change that separates one image from two, in percent; 0 for a loss."""
    seen = values.get("seen")
    return 0.0 if metric.endswith("loss") or not seen else 1.5 * 100 / seen


def _is_better(metric: str, value: float, loss: float | None, best: Best) -> bool:
    """Return whether a later evaluation than `best` takes its place."""
    if value != best.value:
        return is_improvement(metric, value, best.value)
    return loss is None or best.loss is None or loss <= best.loss


def out_of_patience(state: TrainState, config: EvaluateConfig) -> bool:
    """Return whether patience has run out, which ends the run early."""
    return 0 < config.patience <= state.evaluations_without_improvement

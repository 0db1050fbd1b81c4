"""The choice of the best weights and the end of patience, on scripted evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from vit_dist.checkpointing.state import Best, TrainState
from vit_dist.config.config import Config
from vit_dist.config.output_fields import EvaluateConfig
from vit_dist.training.model_selection import (
    is_improvement,
    out_of_patience,
    selecting_metric,
    update_best,
    value_of,
    weights_of,
)

BOTH = {
    "raw": {"loss": 0.5, "top1": 80.0, "top5": 98.0},
    "ema": {"loss": 0.25, "top1": 90.0, "top5": 99.0},
}
ALONE = {"raw": BOTH["raw"]}


def outcomes(values: Sequence[float], warming: int = 0, **evaluate: Any) -> list[tuple[bool, int, bool]]:
    """Return (best so far, evaluations without improvement, out of patience) after each; `warming`: in the warmup."""
    config, state, after_each = EvaluateConfig(**evaluate), TrainState(), []
    for number, value in enumerate(values):
        state.position = 10 * (number + 1)
        scores = {"raw": {"loss": -1.0, "top1": -1.0, "top5": None, config.metric.removeprefix("raw_"): value}}
        best = update_best(state, config, scores, warming=number < warming)
        assert state.best is not None
        assert best == (state.best.update == state.position)
        after_each.append((best, state.evaluations_without_improvement, out_of_patience(state, config)))
    return after_each


def test_top1_rises_and_a_tie_is_no_improvement_for_patience() -> None:
    assert outcomes([50, 60, 60, 55, 61, 61], metric="top1", patience=2) == [
        (True, 0, False),
        (True, 0, False),
        (True, 1, False),  # of the same loss, the later is the best
        (False, 2, True),
        (True, 0, False),
        (True, 1, False),
    ]


def chosen(evaluations: Sequence[tuple[float, float]], **evaluate: Any) -> list[int]:
    """Return the number of the best evaluation after each (top1, loss), from 1."""
    config, state, after_each = EvaluateConfig(**evaluate), TrainState(), []
    for number, (top1, loss) in enumerate(evaluations):
        state.position = number + 1
        update_best(state, config, {"raw": {"loss": loss, "top1": top1, "top5": top1}}, warming=False)
        assert state.best is not None
        after_each.append(state.best.update)
    return after_each


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_later() -> None:
    assert chosen([(74.0, 2.07), (74.0, 1.91), (74.0, 2.0), (74.0, 1.91), (73.0, 1.0)]) == [1, 2, 2, 4, 4]
    assert chosen([(74.0, 2.07), (74.0, 1.91), (76.0, 5.0), (76.0, 5.5)], metric="top5") == [1, 2, 3, 3]
    assert chosen([(50.0, 1.0), (60.0, 1.0), (10.0, 1.5)], metric="loss") == [1, 2, 2]


def test_the_loss_that_breaks_a_tie_is_saved_and_read_back() -> None:
    state = TrainState(position=10, applied_updates=10)
    update_best(state, EvaluateConfig(), {"raw": {"loss": 1.25, "top1": 50.0}}, warming=False)
    again = TrainState.from_dict(state.to_dict())
    assert again.best == Best(10, "top1", 50.0, "raw", 1.25)
    assert not update_best(again, EvaluateConfig(), {"raw": {"loss": 1.5, "top1": 50.0}}, warming=False)
    # Checkpoints of earlier versions do not say it: then the later of two is the best.
    values = state.to_dict()
    del values["best"]["loss"]
    earlier = TrainState.from_dict(values)
    assert earlier.best == Best(10, "top1", 50.0, "raw", None)
    earlier.position = 20
    assert update_best(earlier, EvaluateConfig(), {"raw": {"loss": 1.5, "top1": 50.0}}, warming=False)
    assert earlier.best == Best(20, "top1", 50.0, "raw", 1.5)


def stale(correct: Sequence[int], images: int, metric: str = "top1", **evaluate: Any) -> list[int]:
    """Return the evaluations without improvement after each that has `correct` of so many images of val right."""
    config, state, after_each = EvaluateConfig(metric=metric, **evaluate), TrainState(), []
    for number, count in enumerate(correct):
        state.position = number + 1
        value = 100 * count / images
        scores = {"raw": {"loss": value if metric == "loss" else 1.0, "top1": value, "top5": value, "seen": images}}
        update_best(state, config, scores, warming=False)
        after_each.append(state.evaluations_without_improvement)
    return after_each


@pytest.mark.parametrize("images", [7, 30, 144, 9999])
def test_a_change_within_one_image_of_val_is_no_improvement_for_patience(images: int) -> None:
    # A plateau that jitters by one image runs out as one that stands still does.
    assert stale([4, 5, 4, 3, 5, 4], images) == [0, 1, 2, 3, 4, 5]
    # Two images are one; also in two steps, for each is compared with the last improvement.
    assert stale([1, 3, 2, 5], images, metric="top5") == [0, 0, 1, 0]
    assert stale([1, 2, 3, 4, 5], images) == [0, 1, 0, 1, 0]
    # A loss has no such noise, and min_delta may ask for more.
    assert stale([5, 4, 3], images, metric="loss") == [0, 0, 0]
    assert stale([0, 2, 4], images, min_delta=250 / images) == [0, 1, 0]


def test_loss_falls() -> None:
    assert outcomes([2.0, 1.0, 1.0, 1.5, 0.5], metric="loss", patience=2) == [
        (True, 0, False),
        (True, 0, False),
        (True, 1, False),
        (False, 2, True),
        (True, 0, False),
    ]


def test_top1_within_min_delta_is_best_and_spends_patience() -> None:
    # Each is compared with the last improvement, not with the best: slow steps add up to an improvement.
    assert outcomes([50, 50.5, 50.75, 51.0, 51.25, 52.25], metric="top1", patience=3, min_delta=1.0) == [
        (True, 0, False),
        (True, 1, False),
        (True, 2, False),
        (True, 3, True),  # by min_delta exactly is not by more than it
        (True, 0, False),
        (True, 1, False),
    ]


def test_loss_within_min_delta_is_best_and_spends_patience() -> None:
    assert outcomes([1.0, 0.9375, 0.875, 0.75, 0.8125], metric="loss", patience=2, min_delta=0.125) == [
        (True, 0, False),
        (True, 1, False),
        (True, 2, True),
        (True, 0, False),
        (False, 1, False),
    ]


def test_patience_does_not_count_in_the_warmup() -> None:
    assert outcomes([50, 40, 30, 45, 44], 3, metric="top1", patience=2) == [
        (True, 0, False),
        (False, 0, False),
        (False, 0, False),
        (False, 1, False),
        (False, 2, True),
    ]
    # An evaluation in the warmup may be the best, and sets the baseline.
    assert outcomes([50, 60, 55, 61], 2, metric="top1", patience=1) == [
        (True, 0, False),
        (True, 0, False),
        (False, 1, True),
        (True, 0, False),
    ]


def test_without_patience_no_run_ends_early() -> None:
    assert [(stale, out) for _, stale, out in outcomes([3, 2, 1, 0], metric="top1")] == [
        (0, False),
        (1, False),
        (2, False),
        (3, False),
    ]


@pytest.mark.parametrize(
    ("metric", "weights", "value"),
    [
        ("top1", "ema", 90.0),
        ("top5", "ema", 99.0),
        ("loss", "ema", 0.25),
        ("raw_top1", "raw", 80.0),
        ("raw_top5", "raw", 98.0),
        ("raw_loss", "raw", 0.5),
    ],
)
def test_a_metric_is_of_the_averaged_weights_if_there_are_any(metric: str, weights: str, value: float) -> None:
    assert (weights_of(metric, BOTH), value_of(metric, BOTH)) == (weights, value)
    state = TrainState(position=30)
    assert update_best(state, EvaluateConfig(metric=metric), BOTH, warming=False)
    loss = BOTH[weights]["loss"]
    assert state.best == Best(update=30, metric=metric, value=value, weights=weights, loss=loss)
    assert state.patience_baseline == value
    assert (weights_of(metric, ALONE), value_of(metric, ALONE)) == ("raw", ALONE["raw"][metric.removeprefix("raw_")])
    alone = TrainState(position=30)
    assert update_best(alone, EvaluateConfig(metric=metric), ALONE, warming=False)
    assert alone.best == Best(update=30, metric=metric, value=value_of(metric, ALONE), weights="raw", loss=0.5)


def test_raw_metrics_improve_as_the_metric_they_are_named_after() -> None:
    rising, falling = [1.0, 2.0, 1.5], [2.0, 1.0, 1.5]
    assert (
        outcomes(rising, metric="raw_top1") == outcomes(rising, metric="top1") == outcomes(falling, metric="raw_loss")
    )
    assert outcomes(rising, metric="raw_top1") == [(True, 0, False), (True, 0, False), (False, 1, False)]


@pytest.mark.parametrize(
    ("metric", "value", "than", "by", "answer"),
    [
        ("top1", 2.0, 1.0, 0.0, True),
        ("top1", 1.0, 1.0, 0.0, False),
        ("top5", 2.0, 1.0, 1.0, False),
        ("top5", 2.5, 1.0, 1.0, True),
        ("loss", 1.0, 2.0, 0.0, True),
        ("loss", 2.0, 1.0, 0.0, False),
        ("raw_loss", 1.0, 2.0, 1.0, False),
        ("raw_loss", 0.5, 2.0, 1.0, True),
    ],
)
def test_is_improvement(metric: str, value: float, than: float, by: float, answer: bool) -> None:
    assert is_improvement(metric, value, than, by) is answer


def test_patience_goes_on_from_a_saved_state() -> None:
    config = EvaluateConfig(metric="top1", patience=3, min_delta=1.0)
    state = TrainState(position=10, applied_updates=10)
    for value in (50.0, 50.5):
        update_best(state, config, {"raw": {"top1": value}}, warming=False)
    again = TrainState.from_dict(state.to_dict())
    assert (again.patience_baseline, again.evaluations_without_improvement, again.best) == (
        50.0,
        1,
        Best(10, "top1", 50.5, "raw"),
    )
    again.position = 20
    assert not update_best(again, config, {"raw": {"top1": 50.25}}, warming=False)
    assert (again.patience_baseline, again.evaluations_without_improvement, again.best) == (
        50.0,
        2,
        Best(10, "top1", 50.5, "raw"),
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_weights_whose_loss_is_not_finite_are_never_the_best_whatever_their_accuracy(loss: float) -> None:
    state = TrainState(position=10)
    config = EvaluateConfig(metric="top1", patience=2)
    assert not update_best(state, config, {"raw": {"loss": loss, "top1": 10.0}}, warming=False)
    assert (state.best, state.patience_baseline, state.evaluations_without_improvement) == (None, None, 1)
    assert update_best(state, config, {"raw": {"loss": 2.3, "top1": 9.0}}, warming=False)
    assert not update_best(state, config, {"raw": {"loss": loss, "top1": 99.0}}, warming=False)
    assert state.best == Best(10, "top1", 9.0, "raw", 2.3)
    # The loss that counts is that of the weights which the metric is of.
    both = {"raw": {"loss": loss, "top1": 99.0}, "ema": {"loss": 1.0, "top1": 50.0}}
    assert update_best(state, config, both, warming=False)
    assert not update_best(state, EvaluateConfig(metric="raw_top1"), both, warming=False)


def test_nan_is_never_the_best() -> None:
    state = TrainState()
    config = EvaluateConfig(metric="loss", patience=3)
    nan = float("nan")
    improved = [update_best(state, config, {"raw": {"loss": loss}}, warming=False) for loss in (nan, 1.0, nan, 0.5)]
    assert improved == [False, True, False, True]
    assert state.best is not None
    assert (state.best.value, state.patience_baseline, state.evaluations_without_improvement) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("loss", "metric", "classes", "expected"),
    [
        ("cross_entropy", "top1", 10, "top1"),
        ("clip", "top1", 10, "zero_shot_top1"),
        ("siglip", "raw_top1", 10, "raw_zero_shot_top1"),
        ("clip", "top1", 1, "mean_recall_at_1"),
        ("clip", "raw_top1", 1, "raw_mean_recall_at_1"),
        ("clip", "loss", 10, "loss"),
        ("clip", "mean_recall_at_1", 10, "mean_recall_at_1"),
    ],
)
def test_what_selects_the_weights_of_images_and_captions(loss: str, metric: str, classes: int, expected: str) -> None:
    fields = {"loss.name": loss, "evaluate.metric": metric, "loss.label_smoothing": 0.0, "data.root": "."}
    config = Config.load("folder", {**fields, "augment.mixup": 0.0, "augment.cutmix": 0.0})
    assert selecting_metric(config, classes) == expected


def test_zero_shot_accuracy_and_recall_rise() -> None:
    assert outcomes([40.0, 50.0, 45.0], metric="zero_shot_top1") == outcomes([40.0, 50.0, 45.0], metric="top1")
    assert is_improvement("raw_mean_recall_at_1", 2.0, 1.0)


def test_a_plateau_of_top1_is_of_what_captions_have() -> None:
    scores = {"raw": {"loss": 1.0, "mean_recall_at_1": 30.0}}
    assert value_of("top1", scores) == 30.0
    assert value_of("raw_top1", {"raw": {**scores["raw"], "zero_shot_top1": 40.0}}) == 40.0

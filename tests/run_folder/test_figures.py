"""Figures of predictions: as scikit-learn gives them, their intervals, and pairs of models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from vit_dist.plan.keys import Ints
from vit_dist.run_folder.figures import figures, figures_of, interval, margin, paired
from vit_dist.run_folder.predictions import Predictions

RNG = np.random.default_rng


def drawn(samples: int, classes: int, accuracy: float, seed: int = 0) -> tuple[Ints, Ints]:
    """Return true and predicted classes, the later classes being rarer; so many percent are right."""
    rng = RNG(seed)
    labels = (classes * rng.random(samples) ** 2).astype(np.int64)
    return labels, np.where(rng.random(samples) < accuracy, labels, rng.integers(classes, size=samples))


def predictions(labels: Ints, predicted: Ints) -> Predictions:
    return Predictions(np.arange(len(labels)), labels, predicted[:, None], np.ones((len(labels), 1), np.float32))


@pytest.mark.parametrize(("samples", "classes", "accuracy"), [(400, 7, 0.8), (60, 40, 0.3), (1, 3, 1.0), (5, 2, 0.0)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_figures_are_those_of_scikit_learn(samples: int, classes: int, accuracy: float) -> None:
    labels, predicted = drawn(samples, classes, accuracy)
    ours = figures(labels, predicted, classes)
    assert ours.top1 == pytest.approx(100 * metrics.accuracy_score(labels, predicted))
    assert ours.balanced_accuracy == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predicted))
    for average, theirs in (("macro", ours.macro), ("weighted", ours.weighted)):
        expected = metrics.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[:3]
        assert list(theirs.values()) == pytest.approx([100 * each for each in expected])
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=np.nan)
    np.testing.assert_allclose(ours.precision, 100 * expected[0])
    np.testing.assert_allclose(ours.recall, 100 * expected[1])
    np.testing.assert_allclose(ours.f1, 100 * expected[2])
    assert ours.support.tolist() == expected[3].tolist()


def test_baseline_worst_classes_and_classes_never_predicted() -> None:
    ours = figures(np.asarray([0, 0, 0, 1, 1, 3]), np.asarray([0, 0, 1, 1, 1, 0]), 5)
    assert (ours.baseline, ours.majority_class, ours.seen, ours.correct) == (50.0, 0, 6, 4)
    assert ours.never_predicted.tolist() == [3]
    assert ours.worst(2).tolist() == [3, 0]
    assert ours.f1[[0, 1, 3]].tolist() == pytest.approx([200 * 2 / 6, 200 * 2 / 5, 0.0])
    assert np.isnan(ours.f1[[2, 4]]).all()


def test_an_interval_of_an_accuracy_has_the_values_of_wilson() -> None:
    """scipy has the same formula."""
    for correct, seen in ((0, 1), (1, 1), (20, 20), (972, 1000), (1, 7), (49_000, 50_000)):
        expected = binomtest(correct, seen).proportion_ci(0.95, "wilson")
        assert interval(correct, seen) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert margin(97.2, interval(972, 1000)) == pytest.approx(97.2 - interval(972, 1000)[0])


def test_bootstrap_intervals_are_keyed_and_as_wide_as_resampling_makes_them() -> None:
    labels, predicted = drawn(500, 5, 0.8)
    ours, again = figures(labels, predicted, 5), figures(labels, predicted, 5)
    assert ours.macro_f1_interval == again.macro_f1_interval
    rng, values = RNG(1), []
    for _ in range(300):
        rows = rng.integers(500, size=500)
        resampled = figures(labels[rows], predicted[rows], 5)
        values.append((resampled.macro["f1"], resampled.balanced_accuracy))
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    assert ours.macro_f1_interval == pytest.approx((low[0], high[0]), abs=0.8)
    assert ours.balanced_accuracy_interval == pytest.approx((low[1], high[1]), abs=0.8)
    assert high[0] - low[0] > 5
    one = figures(np.asarray([2]), np.asarray([2]), 3)
    assert (one.macro_f1_interval, one.balanced_accuracy_interval) == ((100.0, 100.0), (100.0, 100.0))


def test_two_models_are_compared_on_the_samples_they_share() -> None:
    labels = np.zeros(40, np.int64)
    first, second = np.zeros(40, np.int64), np.zeros(40, np.int64)
    first[:3], second[2:15] = 1, 1
    result = paired(predictions(labels, first), predictions(labels, second))
    assert result is not None
    assert (result.only_first, result.only_second) == (12, 2)
    assert result.p == pytest.approx(binomtest(2, 14).pvalue)
    assert result.differs
    same = paired(predictions(labels, first), predictions(labels, first))
    assert same is not None
    assert (same.p, same.differs) == (1.0, False)
    assert paired(predictions(labels, first), predictions(labels[:39], first[:39])) is None
    large = paired(predictions(np.zeros(90_000, np.int64), np.arange(90_000) % 2),
                   predictions(np.zeros(90_000, np.int64), 1 - np.arange(90_000) % 2))  # fmt: skip
    assert large is not None
    assert large.p == 1.0


def test_figures_of_a_file_are_those_of_its_likeliest_classes() -> None:
    labels, predicted = drawn(50, 4, 0.5)
    assert figures_of(predictions(labels, predicted), 4).to_dict() == figures(labels, predicted, 4).to_dict()

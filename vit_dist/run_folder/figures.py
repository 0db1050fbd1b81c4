"""The figures of a split's predictions: per class, over all classes, and how far chance alone may move them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.plan.keys import Ints, key
from vit_dist.run_folder.predictions import Predictions

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
_SEED = 95
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Figures:
    """The figures of a split's predictions; every rate is in percent.

    support: samples of each class, predicted: samples taken for it, hits: those rightly so, int64 [classes] each.
    mistakes: the true and the predicted class of each sample that is classified wrongly, int64 [2, n].
    """

    support: Ints
    predicted: Ints
    hits: Ints
    mistakes: Ints

    @cached_property
    def seen(self) -> int:
        """The number of samples."""
        return int(self.support.sum())

    @cached_property
    def correct(self) -> int:
        """The number of samples whose class was predicted."""
        return int(self.hits.sum())

    @property
    def top1(self) -> float:
        """Accuracy."""
        return 100 * self.correct / self.seen

    @property
    def top1_interval(self) -> Interval:
        """The 95 % interval of the accuracy, as `interval` gives it."""
        return interval(self.correct, self.seen)

    @cached_property
    def precision(self) -> Floats:
        """Of the samples taken for each class, those rightly so, float64 [classes]; NaN if none was."""
        return _percent(self.hits, self.predicted)

    @cached_property
    def recall(self) -> Floats:
        """Of the samples of each class, those that were recognised, float64 [classes]; NaN if there is none."""
        return _percent(self.hits, self.support)

    @cached_property
    def f1(self) -> Floats:
        """The harmonic mean of precision and recall, float64 [classes]; NaN for a class that does not occur."""
        return _percent(2 * self.hits, self.support + self.predicted)

    @property
    def macro(self) -> dict[str, float]:
        """Precision, recall and F1, each class counting the same: those that occur or are predicted.

        What is undefined counts 0, as in scikit-learn.
        """
        occurs = (self.support + self.predicted) > 0
        return {name: float(np.nan_to_num(values[occurs]).mean()) for name, values in self._rates().items()}

    @property
    def weighted(self) -> dict[str, float]:
        """Precision, recall and F1, each class counting as many times as it has samples."""
        weights = self.support / self.seen
        return {name: float((np.nan_to_num(values) * weights).sum()) for name, values in self._rates().items()}

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have samples."""
        return float(np.nanmean(self.recall))

    @cached_property
    def macro_f1_interval(self) -> Interval:
        """The 95 % interval of the macro F1 (bootstrap)."""
        return self._bootstrap[0]

    @cached_property
    def balanced_accuracy_interval(self) -> Interval:
        """The 95 % interval of the balanced accuracy (bootstrap)."""
        return self._bootstrap[1]

    @property
    def majority_class(self) -> int:
        """The number of the most frequent class, the first of several."""
        return int(self.support.argmax())

    @property
    def baseline(self) -> float:
        """The accuracy of always answering the most frequent class."""
        return 100 * int(self.support.max()) / self.seen

    @property
    def never_predicted(self) -> Ints:
        """The numbers of the classes that have samples and that nothing was taken for."""
        return np.flatnonzero((self.support > 0) & (self.predicted == 0)).astype(np.int64)

    def worst(self, count: int) -> Ints:
        """Return the numbers of the classes with the lowest F1, lowest first, of those that have samples."""
        present = np.flatnonzero(self.support)
        return present[np.argsort(self.f1[present], kind="stable")[:count]].astype(np.int64)

    def taken_for(self) -> dict[int, tuple[int, int]]:
        """Return class → (the class that it is most often mistaken for, how often), of the classes with mistakes."""
        classes = len(self.support)
        pairs, counts = np.unique(self.mistakes[0] * classes + self.mistakes[1], return_counts=True)
        order = np.lexsort([-pairs, counts])  # the last one of a class stands: the most frequent, the first of several
        return {
            pair // classes: (pair % classes, count)
            for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
        }

    def brief(self) -> dict[str, Any]:
        """Return the figures of a run's summary: accuracy's interval, balanced accuracy, macro F1 and baseline."""
        return {
            "seen": self.seen,
            "top1_interval": list(self.top1_interval),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro["f1"],
            "macro_f1_interval": list(self.macro_f1_interval),
            "baseline": self.baseline,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the figures over all classes as plain values for JSON."""
        return {
            "top1_interval": list(self.top1_interval),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_interval": list(self.balanced_accuracy_interval),
            "macro": self.macro,
            "macro_f1_interval": list(self.macro_f1_interval),
            "weighted": self.weighted,
            "baseline": self.baseline,
        }

    def _rates(self) -> dict[str, Floats]:
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}

    @cached_property
    def _bootstrap(self) -> tuple[Interval, Interval]:
        """Return the intervals of macro F1 and balanced accuracy, of `RESAMPLES` resamples of all samples."""
        drawn = np.random.default_rng(key(_SEED, self.seen, self.correct))
        classes, (labels, predictions) = len(self.support), self.mistakes
        rights = drawn.binomial(self.seen, self.correct / self.seen, RESAMPLES)
        f1, balanced = np.empty(RESAMPLES), np.empty(RESAMPLES)
        for number, right in enumerate(rights.tolist()):
            hits = drawn.multinomial(right, self.hits / max(1, self.correct))
            wrong = drawn.integers(max(1, len(labels)), size=self.seen - right)
            support = hits + np.bincount(labels[wrong], minlength=classes)
            occurs = support + hits + np.bincount(predictions[wrong], minlength=classes)
            f1[number] = (200 * hits / np.maximum(occurs, 1)).sum() / np.count_nonzero(occurs)
            balanced[number] = (100 * hits / np.maximum(support, 1)).sum() / np.count_nonzero(support)
        return _middle(f1), _middle(balanced)


@dataclass(frozen=True)
class Paired:
    """Two models on the same samples: how many only the first, and only the second, classifies rightly.

    p: the probability of a difference at least so large if both were equally good (McNemar's exact test).
    """

    only_first: int
    only_second: int
    p: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance would make at 5 %."""
        return self.p < 0.05


def figures_of(predictions: Predictions, classes: int) -> Figures:
    """Return the figures of a split's predictions."""
    return figures(predictions.label, predictions.top[:, 0], classes)


def figures(labels: Ints, predictions: Ints, classes: int) -> Figures:
    """Return the figures of predicted classes, given the true ones: int64 [samples] each, at least one sample."""
    wrong = labels != predictions
    support, predicted, hits = (np.bincount(each, minlength=classes) for each in (labels, predictions, labels[~wrong]))
    return Figures(support, predicted, hits, np.stack([labels[wrong], predictions[wrong]]))


def interval(correct: int, seen: int) -> Interval:
    """Return the 95 % interval of an accuracy in percent (Wilson, 1927).

    A bootstrap would give the same in the middle, and no width at all where all or none of the samples are right.
    """
    share, spread = correct / seen, _Z**2 / seen
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    low = 0.0 if correct == 0 else 100 * (middle - half)
    return low, 100.0 if correct == seen else 100 * (middle + half)


def margin(value: float, bounds: Interval) -> float:
    """Return how far a value's interval reaches to the longer of its sides."""
    return max(value - bounds[0], bounds[1] - value)


def paired(first: Predictions, second: Predictions) -> Paired | None:
    """Compare two models on the same samples; None if they are not the same."""
    if not (np.array_equal(first.index, second.index) and np.array_equal(first.label, second.label)):
        return None
    one, two = (each.top[:, 0] == each.label for each in (first, second))
    return _paired(int((one & ~two).sum()), int((two & ~one).sum()))


def _paired(only_first: int, only_second: int) -> Paired:
    differing, fewer = only_first + only_second, min(only_first, only_second)
    steps = np.arange(1, fewer + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((differing - steps + 1) / steps))]) - differing * math.log(2)
    return Paired(only_first, only_second, min(1.0, 2 * float(np.exp(logs).sum())))


def _percent(part: Ints, whole: Ints) -> Floats:
    share: Floats = np.divide(100.0 * part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return share


def _middle(values: Floats) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return low, high

"""Check that a line of metrics.jsonl has what its readers need: a damaged file may hold anything."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.run_folder.pair_figures import PAIR_FIGURES, is_of_pairs


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_measure(value: Any) -> bool:
    """Return whether a value is a number, or one that is not finite, as text."""
    return is_number(value) or value in ("nan", "inf", "-inf")


def is_count(value: Any) -> bool:
    """Return whether a value is an integer from 0 on, of a size that a run can reach."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def is_time(value: Any) -> bool:
    """Return whether a value is a time in seconds since the epoch that a calendar can show."""
    return is_number(value) and 0 <= value < 1e11


def is_whole(line: Mapping[str, Any]) -> bool:
    """Return whether a line has what every reader of its kind needs; lines of other kinds need a time alone."""
    of_pairs = line["kind"] == "eval" and is_of_pairs(line)
    checks = _PAIR_FIELDS if of_pairs else _FIELDS.get(line["kind"], {})
    return is_time(line.get("time")) and all(name in line and check(line[name]) for name, check in checks.items())


def weighted_mean(train: Sequence[tuple[float, Mapping[str, Any]]], name: str) -> float | None:
    """Return the mean of a field, loss or top1, over the samples of `train` lines, each with its number of updates.

    Samples count by their weight, which does not depend on how many updates a line covers; where a line of an older
    version has none, each line counts by its updates. None if a line has no value, as top1 with mixed targets, or one
    that is not finite.
    """
    known = all(is_number(line.get("weight")) for _, line in train)
    counted = [(line["weight"] if known else updates, line[name]) for updates, line in train]
    counted = [(weight, value) for weight, value in counted if weight]  # no update of a line without weight was applied
    if not counted or not all(is_number(value) for _, value in counted):
        return None
    return float(sum(weight * value for weight, value in counted) / sum(weight for weight, _ in counted))


def ascending(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which values belong to the longest ascending series: not those that a damaged digit has displaced."""
    if (np.diff(values) > 0).all():
        return np.ones(len(values), np.bool_)
    lowest: list[float] = []  # that a series of each length can end with
    ends: list[int] = []
    before = np.full(len(values), -1)
    for place, value in enumerate(values.tolist()):
        length = bisect.bisect_left(lowest, value)
        lowest[length : length + 1] = [value]
        ends[length : length + 1] = [place]
        before[place] = ends[length - 1] if length else -1
    kept = np.zeros(len(values), np.bool_)
    place = ends[-1]
    while place >= 0:
        kept[place] = True
        place = int(before[place])
    return kept


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_seconds(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1e11


def _is_seconds_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_seconds, value.values()))


def _is_percent(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def _is_percent_or_none(value: Any) -> bool:
    return value is None or _is_percent(value)


def _is_plan(value: Any) -> bool:
    return isinstance(value, dict) and all(is_count(value.get(name)) for name in ("samples", "updates"))


_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "start": {
        **{"epoch": is_number, "plan": _is_plan, "world_size": is_count, "device": _is_text, "precision": _is_text},
        **{"threads": is_count, "versions": _is_mapping, "parameters": is_count, "changed": _is_mapping},
    },
    "train": {
        **{"epoch": is_number, "loss": is_measure, "top1": _is_percent_or_none, "lr": is_measure},
        **{"grad_norm": is_measure, "samples_per_second": is_number, "update_seconds": _is_seconds},
    },
    "eval": {
        **{"epoch": is_number, "split": _is_text, "weights": lambda value: value in ("raw", "ema")},
        **{"weights_update": is_count, "loss": is_measure, "top1": _is_percent, "top5": _is_percent_or_none},
        **{"seen": is_count, "seconds": _is_seconds, "best": lambda value: isinstance(value, bool)},
    },
    "profile": {
        **{"first": is_count, "updates": is_count, "update_seconds": _is_seconds, "parts": _is_seconds_by_name},
        **{"on_device": lambda value: isinstance(value, bool), "trace": lambda value: value is None or _is_text(value)},
        **{"kernels": is_number, "copies": is_number},
    },
    "save": {"stall_seconds": _is_seconds},
}
_PAIR_FIELDS = {name: check for name, check in _FIELDS["eval"].items() if name not in ("top1", "top5")}
_PAIR_FIELDS |= dict.fromkeys((name for name in PAIR_FIGURES if "zero_shot" not in name), _is_percent_or_none)

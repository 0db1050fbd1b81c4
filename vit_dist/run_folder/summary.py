"""Read summary.json, which may be damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.files import read_json
from vit_dist.run_folder.lines import is_count, is_measure, is_number
from vit_dist.run_folder.pair_figures import PAIR_FIGURES

_COUNTS = ("world_size", "parameters", "updates", "planned_updates")
_NUMBERS = (
    *("epochs", "train_seconds", "evaluate_seconds", "save_seconds", "total_seconds", "seconds_per_epoch"),
    "peak_memory_bytes",
)
_TEXTS = ("device", "precision", "weights")
_MAPPINGS = ("best", "final", "test")
_RATES = ("samples_per_second",)
NEEDED = (*_COUNTS, *_NUMBERS, *_TEXTS, *_MAPPINGS, *_RATES)


def read_summary(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Read the summary.json of a run. Return it and None; or, if it is missing or damaged, None and why on a line."""
    path = folder / "summary.json"
    try:
        summary = read_json(path)
    except FileNotFoundError:
        return None, f"{path}: is missing"
    except OSError as error:
        return None, f"{path}: cannot be read: {error.strerror}"
    except ValueError:
        return None, f"{path}: is damaged"
    missing = [name for name in NEEDED if name not in summary]
    return (None, f"{path}: is damaged") if missing or not is_sound(summary) else (summary, None)


def is_sound(summary: Mapping[str, Any]) -> bool:
    """Return whether the fields that a summary has are of the types and sizes that a run writes."""

    def each(names: tuple[str, ...], check: Any) -> bool:
        return all(check(summary[name]) for name in names if name in summary)

    return (
        each(_COUNTS, is_count)
        and each(_NUMBERS, lambda value: is_number(value) and value >= 0)
        and each((*_RATES, "best_epoch"), lambda value: value is None or (is_number(value) and value >= 0))
        and each(_TEXTS, lambda value: isinstance(value, str))
        and summary.get("weights", "raw") in ("raw", "ema")
        and each(_MAPPINGS, lambda value: value is None or isinstance(value, dict))
        and _is_best(summary.get("best"))
        and all(_are_measures(summary.get(name)) for name in ("final", "test"))
        and _are_figures(summary.get("figures"))
    )


def _is_best(best: Any) -> bool:
    """Return whether this is None, or an update's value of a metric that can be shown."""
    if not best:
        return best is None or best == {}
    known = {"update", "metric", "value", "weights", "loss"}
    return (
        known >= best.keys() >= {"update", "metric", "value"}
        and is_count(best["update"])
        and isinstance(best["metric"], str)
        and is_number(best["value"])
        and best.get("weights", "raw") in ("raw", "ema")
    )


def _are_measures(values: Any) -> bool:
    """Return whether this is None, or a split's loss and accuracies."""
    if not values:
        return values is None or values == {}
    return (
        is_measure(values.get("loss", 0.0))
        and is_number(values.get("top1", 0.0))
        and all(values.get(name) is None or is_number(values[name]) for name in ("top5", *PAIR_FIGURES))
    )


def _are_figures(figures: Any) -> bool:
    """Return whether this is None, or the figures of a split's predictions."""
    if figures is None:
        return True
    rates = ("balanced_accuracy", "macro_f1", "baseline")
    return (
        isinstance(figures, dict)
        and figures.get("split") in ("val", "test")
        and is_count(figures.get("seen"))
        and all(is_number(figures.get(name)) for name in rates)
        and all(_is_interval(figures.get(name)) for name in ("top1_interval", "macro_f1_interval"))
    )


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))

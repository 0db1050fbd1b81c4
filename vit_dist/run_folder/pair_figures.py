"""The figures of an evaluation of images and captions: their names in metrics.jsonl, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RECALLS = (1, 5, 10)
WAYS = {"image_to_text": "image→text", "text_to_image": "text→image"}
# What selects the best weights: with classes, and without.
ZERO_SHOT, MEAN_RECALL = "zero_shot_top1", "mean_recall_at_1"
PAIR_FIGURES = (
    *(ZERO_SHOT, "zero_shot_top5"),
    *(f"{way}_recall_at_{k}" for way in WAYS for k in RECALLS),
    MEAN_RECALL,
)
_TOP1 = {"top1": "top1"}
_HEADLINES = {
    ZERO_SHOT: "zero-shot top1",
    "image_to_text_recall_at_1": "image→text R@1",
    "text_to_image_recall_at_1": "text→image R@1",
}


def is_of_pairs(values: Mapping[str, Any]) -> bool:
    """Return whether an `eval` line, or the results in a summary, are those of images and captions."""
    return MEAN_RECALL in values


def headlines(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the measures that one column each shows, of lines of one run: name in the line → name for people."""
    first = next(iter(lines), {})
    if not is_of_pairs(first):
        return _TOP1
    return {name: title for name, title in _HEADLINES.items() if first.get(name) is not None}


def top1_of(line: Mapping[str, Any]) -> float | None:
    """Return the accuracy of an evaluation, zero-shot if it is of images and captions; None if it has none."""
    value = line.get(ZERO_SHOT if is_of_pairs(line) else "top1")
    return None if value is None else float(value)


def figures_text(values: Mapping[str, Any]) -> str:
    """Return the figures in words: `zero-shot top1 97.2 %, top5 99.0 %; image→text R@1 20.0, R@5 …; text→image …`."""
    parts = []
    if values.get(ZERO_SHOT) is not None:
        fifth = values.get("zero_shot_top5")
        parts.append(f"zero-shot top1 {values[ZERO_SHOT]:.2f} %" + (f", top5 {fifth:.2f} %" if fifth else ""))
    for way, title in WAYS.items():
        found = {k: values.get(f"{way}_recall_at_{k}") for k in RECALLS}
        known = ", ".join(f"R@{k} {value:.2f} %" for k, value in found.items() if value is not None)
        parts.append(f"{title} {known}")
    return "; ".join(parts)

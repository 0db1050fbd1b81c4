"""The time that a run took: how long it ran, and what its seconds went to over all of its starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a second can go to. updates: updates that count. waiting: for images, in these. repeated: updates and
# evaluations that were done again after a stop without a save. downtime: from the last line before a stop to the next
# start. starting: from a start's beginning to its `start` line. other: what no line tells of.
USES = ("updates", "waiting", "evaluating", "saving", "starting", "repeated", "other", "downtime")


def running_seconds(times: NDArray[np.float64], starts: NDArray[np.float64]) -> float:
    """Return the seconds in which a run ran, from its first line to its last.

    times: of all its lines, in seconds since the epoch; starts: of its `start` lines. The time before a start, in
    which nothing ran, is not counted.
    """
    ordered = np.sort(times)
    return float(np.diff(ordered)[~np.isin(ordered[1:], starts)].sum())


def seconds_by_use(lines: Iterable[Mapping[str, Any]], now: float) -> dict[str, float]:
    """Return the seconds of a run by what they went to (`USES`), from its first start to `now`.

    lines: all lines of metrics.jsonl, superseded ones too, in the order in which they were written.
    """
    spans: list[list[Mapping[str, Any]]] = []
    for line in lines:
        if line["kind"] == "start":
            spans.append([])
        if spans:
            spans[-1].append(line)
    seconds = dict.fromkeys(USES, 0.0)
    ended = None
    for number, span in enumerate(spans):
        last = number == len(spans) - 1
        begun = float(span[0].get("started", span[0]["time"]))
        if ended is not None:
            seconds["downtime"] += max(0.0, begun - ended)
        ended = now if last else max(float(line["time"]) for line in span)
        # The lowest update from which a later start did things again.
        done_again = min((later[0]["update"] for later in spans[number + 1 :]), default=None)
        used = _seconds_of(span, done_again)
        used["starting"] = max(0.0, float(span[0]["time"]) - begun)
        used["other"] = max(0.0, ended - begun - sum(used.values()))
        for use, value in used.items():
            seconds[use] += value
    return seconds


def goodput(seconds: Mapping[str, float]) -> float:
    """Return the part of a run's time, downtime left out, that went to updates which count: 0 to 1."""
    running = sum(value for use, value in seconds.items() if use != "downtime")
    return seconds["updates"] / running if running else 0.0


def _seconds_of(span: Sequence[Mapping[str, Any]], done_again: int | None) -> dict[str, float]:
    """Return what the lines from one start to the next tell of. done_again: the update from which all was repeated."""
    used = dict.fromkeys(("updates", "waiting", "evaluating", "saving", "repeated"), 0.0)
    position = span[0]["update"]
    for line in span:
        update, repeated = line["update"], done_again is not None and line["update"] > done_again
        if line["kind"] == "train":
            counted = max(0, (update if done_again is None else min(update, done_again)) - position)
            waiting = counted * line["update_seconds"] * line["data_wait_fraction"]
            used["waiting"] += waiting
            used["updates"] += counted * line["update_seconds"] - waiting
            used["repeated"] += (update - position - counted) * line["update_seconds"]
            position = update
        elif line["kind"] == "eval":
            again = repeated or (done_again is not None and line.get("split") == "test")
            used["repeated" if again else "evaluating"] += line["seconds"]
        elif line["kind"] == "save":
            used["saving"] += line["stall_seconds"]
    return used

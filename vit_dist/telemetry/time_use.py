"""Sum up a profile: where the time of its updates went, as parts that add up to all of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_dist.runtime.marks import AUGMENTATION, BACKWARD, DATA_WAIT, FORWARD, OPTIMIZER, PASS, PAUSED, UPDATE

# Communication that computing does not hide, in which a process also waits for others; on a GPU what was launched
# outside all marks, and short gaps between kernels; the time in which a GPU has nothing to do or, without one, what is
# outside all marks.
COMMUNICATION, OTHER, GAPS, HOST = "communication", "other", "gaps", "host"
PARTS = (FORWARD, BACKWARD, PASS, OPTIMIZER, AUGMENTATION, COMMUNICATION, DATA_WAIT, OTHER, GAPS, HOST)

Event = Mapping[str, Any]
_Interval = tuple[float, float, str]
_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
# Of a gap, in microseconds: starting a kernel that is queued takes one or two.
_SHORT = 5.0
_OPERATION, _COPY, _WINDOW = "an operation", "a copy to the device", "the window"


@dataclass(frozen=True)
class TimeUse:
    """Say where the time of the updates in a profile went.

    parts: name in `PARTS` → seconds, which add up to `seconds`. on_device: whether they are a GPU's, by its kernels,
    rather than the host's. kernels, copies: how many kernels ran, and copies to the GPU.
    """

    updates: int
    seconds: float
    parts: dict[str, float]
    on_device: bool
    kernels: int = 0
    copies: int = 0


def time_use(events: Iterable[Event]) -> TimeUse:
    """Sum up the events of a Chrome trace of torch's profiler, in which the parts of updates are marked.

    With kernels of a GPU in it, each instant belongs to what the GPU computes then; else to its communication; else,
    where the host waits for a batch or a batch is copied, to the wait for data; else, in gaps of over 5 µs, it is idle
    while the host works.
    Without, it belongs to the part that the host is in, or to communication, while no operation runs.
    """
    whole = [event for event in events if event.get("ph") == "X" and event.get("cat") != "Trace"]
    marks = [event for event in whole if event.get("cat") == "user_annotation"]
    updates = [event for event in marks if event["name"] == UPDATE]
    if not updates:
        return TimeUse(0, 0.0, dict.fromkeys(PARTS, 0.0), on_device=False)
    main = updates[0]["tid"]
    parts = [_interval(event, event["name"]) for event in marks if event["tid"] == main and event["name"] in PARTS]
    parts += [_interval(event, PAUSED) for event in marks if event["tid"] == main and event["name"] == PAUSED]
    work = [event for event in whole if event.get("cat") in _WORK]
    if work:
        device = _device_work(whole, work, parts)
        window = min(start for start, _, _ in device), max(end for _, end, _ in device), _WINDOW
        # The host's parts count only where it waits.
        waits = [part for part in parts if part[2] in (DATA_WAIT, PAUSED)]
        found = _sweep([window, *device, *_short_gaps(device), *waits], _part_of_device)
    else:
        window = float(updates[0]["ts"]), max(_interval(event, UPDATE)[1] for event in updates), _WINDOW
        operations = [
            _interval(event, _OPERATION) for event in whole if event.get("cat") == "cpu_op" and event["tid"] == main
        ]
        talk = [_interval(event, COMMUNICATION) for event in whole if _communicates(event) and event["tid"] != main]
        found = _sweep([window, *parts, *operations, *talk], _part_of_host)
    return TimeUse(
        updates=len(updates),
        seconds=sum(found.values()),
        parts={name: found[name] for name in PARTS},
        on_device=bool(work),
        kernels=sum(event["cat"] == "kernel" for event in work),
        copies=sum(_copies(event) for event in work),
    )


def _device_work(whole: Sequence[Event], work: Sequence[Event], parts: Sequence[_Interval]) -> list[_Interval]:
    """Return when a GPU did what: the part in which the host launched it, communication, or a copy of a batch."""
    launched = {
        event["args"]["correlation"]: float(event["ts"])
        for event in whole
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    ordered = sorted(parts)
    starts = [start for start, _, _ in ordered]

    def label(event: Event) -> str:
        if _communicates(event):
            return COMMUNICATION
        if _copies(event):
            return _COPY
        at = launched.get(event.get("args", {}).get("correlation"))
        place = bisect_right(starts, at) - 1 if at is not None else -1
        inside = place >= 0 and at is not None and at <= ordered[place][1]
        return ordered[place][2] if inside and ordered[place][2] != DATA_WAIT else OTHER

    return [_interval(event, label(event)) for event in work]


def _short_gaps(device: Iterable[_Interval]) -> Iterator[_Interval]:
    """Yield the short gaps in a GPU's work."""
    until = math.inf
    for start, end, _ in sorted(device):
        if 0 < start - until < _SHORT:
            yield until, start, GAPS
        until = end if until is math.inf else max(until, end)


def _communicates(event: Event) -> bool:
    name = event["name"]
    return "nccl" in name.lower() or name.startswith("gloo:")


def _copies(event: Event) -> bool:
    return event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]


def _interval(event: Event, label: str) -> _Interval:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"]), label


def _part_of_device(active: Mapping[str, int]) -> str:
    for name in (FORWARD, BACKWARD, PASS, OPTIMIZER, AUGMENTATION, OTHER, COMMUNICATION):
        if active[name]:
            return name
    if active[_COPY] or active[DATA_WAIT]:
        return DATA_WAIT
    return GAPS if active[GAPS] else HOST


def _part_of_host(active: Mapping[str, int]) -> str:
    part = next((name for name in (DATA_WAIT, AUGMENTATION, FORWARD, BACKWARD, OPTIMIZER) if active[name]), HOST)
    hidden = active[_OPERATION] or part in (DATA_WAIT, AUGMENTATION, OPTIMIZER)
    return COMMUNICATION if active[COMMUNICATION] and not hidden else part


def _sweep(intervals: Iterable[_Interval], part_of: Callable[[Mapping[str, int]], str]) -> Counter[str]:
    """Return the seconds of each part within the window, less its pauses. part_of: gets what is active at an instant.

    intervals: start and end in microseconds, and what is active then.
    """
    points = [(at, step, label) for start, end, label in intervals for at, step in ((start, 1), (end, -1))]
    active: Counter[str] = Counter()
    found: Counter[str] = Counter()
    before = 0.0
    for at, step, label in sorted(points):
        if at > before and active[_WINDOW] and not active[PAUSED]:
            found[part_of(active)] += (at - before) / 1e6  # type: ignore[assignment]
        active[label] += step
        before = at
    return found

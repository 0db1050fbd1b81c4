"""Time the sides of a comparison in turn, within one run: medians and ratios, as a table and as JSON.

The speed of a machine drifts and other work disturbs it, so no figure of one side is set against a figure of another
that was taken at another time: each round runs every side once, in an order that changes, and a ratio is the median of
the rounds' ratios. Seconds are taken by the clock and by the CPU (of all threads of this process, not of others): on a
busy machine the CPU's are the steadier, where the CPU computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

KINDS = ("cpu", "clock")
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "vit_dist")


@dataclass(frozen=True)
class Seconds:
    """Seconds that something took, of the CPU and by the clock."""

    cpu: float
    clock: float

    @classmethod
    def now(cls) -> Seconds:
        """Return what both clocks say."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, before: Seconds) -> Seconds:
        """Return the seconds from `before` to this moment."""
        return Seconds(self.cpu - before.cpu, self.clock - before.clock)


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    run: does a share of work and returns how much it was (of images, of updates), the device being finished with it.
    before: called before each run, outside the time.
    """

    run: Callable[[], float]
    before: Callable[[], object] = lambda: None


@dataclass
class Times:
    """Hold what each side took for a piece of work, by round: the first side is the one that others are compared to."""

    title: str
    piece: str
    rounds: dict[str, list[Seconds]] = field(default_factory=dict)

    def median(self, side: str, kind: str) -> float:
        """Return the median seconds of one piece of work."""
        return statistics.median(getattr(each, kind) for each in self.rounds[side])

    def ratio(self, side: str, kind: str) -> tuple[float, float, float]:
        """Return quartiles (low, median, high) over rounds of a side's seconds divided by those of the first side."""
        first = next(iter(self.rounds.values()))
        pairs = zip(self.rounds[side], first, strict=True)
        ratios = [getattr(each, kind) / max(getattr(ours, kind), 1e-12) for each, ours in pairs]
        if len(ratios) == 1:
            return (ratios[0],) * 3
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    def to_json(self) -> dict[str, Any]:
        """Return medians in milliseconds, ratios with their quartiles, and the number of rounds."""
        sides = list(self.rounds)
        return {
            "piece": self.piece,
            "rounds": min(map(len, self.rounds.values()), default=0),
            "ms": {side: {kind: round(1e3 * self.median(side, kind), 4) for kind in KINDS} for side in sides},
            "ratio": {
                side: {kind: [round(each, 4) for each in self.ratio(side, kind)] for kind in KINDS}
                for side in sides[1:]
            },
        }

    def table(self) -> str:
        """Return a table in Markdown: milliseconds of a piece of work, and ratios to the first side (quartiles)."""
        first, *_ = self.rounds
        head = [self.title, f"ms of CPU, {self.piece}", "ms by the clock", f"÷ {first}, CPU", f"÷ {first}, clock"]
        rows = [head, ["---"] * len(head)]
        for side in self.rounds:
            row = [side, *(f"{1e3 * self.median(side, kind):.3f}" for kind in KINDS)]
            for kind in KINDS:
                low, middle, high = self.ratio(side, kind)
                row.append("" if side == first else f"{middle:.3f} ({low:.3f}, {high:.3f})")
            rows.append(row)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def alternate(
    title: str,
    sides: Mapping[str, Side],
    rounds: int,
    *,
    piece: str = "an image",
    warm_up: int = 1,
    seconds: float = float("inf"),
) -> Times:
    """Run every side once in each round, after `warm_up` rounds that do not count, and return what they took.

    piece: what `Side.run` counts. seconds: no round starts later than this, but the first that counts always does.
    """
    times = Times(title, piece, {name: [] for name in sides})
    names, start = list(sides), time.perf_counter()
    for number in range(rounds + warm_up):
        if number > warm_up and time.perf_counter() - start > seconds:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            side = sides[name]
            side.before()
            before = Seconds.now()
            done = side.run()
            spent = Seconds.now().since(before)
            if number >= warm_up:
                times.rounds[name].append(Seconds(spent.cpu / done, spent.clock / done))
    return times


def about() -> dict[str, Any]:
    """Return the command, the machine and the versions that made the figures."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine: dict[str, Any] = {"cpu": _processor(), "cores": _cores(), "python": platform.python_version()}
    with contextlib.suppress(OSError, AttributeError):
        machine["load"] = [round(each, 1) for each in os.getloadavg()]
    torch = sys.modules.get("torch")
    if torch is not None:
        machine["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name()
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": " ".join(["python", f"benchmarks/{words[0]}", *words[1:]]), "machine": machine, **versions}


def write(out: Path | None, results: Mapping[str, Any]) -> None:
    """Write results, and what made them, to a JSON file, if one is given."""
    if out:
        out.write_text(json.dumps({**about(), **results}, indent=1, default=str) + "\n", encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

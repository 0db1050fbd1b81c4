"""metrics.jsonl and its one reader, and the small JSON files of a run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from vit_dist.plan.plan import Plan

Line = dict[str, Any]


Floats = NDArray[np.float64]


_BLOCK = 4096


class MetricsLog:
    """Appends lines to metrics.jsonl, each flushed; on other ranks than 0 it writes nothing."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._file = path.open("a+", encoding="utf-8") if writes else None
        if self._file is not None and self._file.tell() and not _ends_whole(path):
            self._file.write("\n")  # a killed run's last line may be torn

    def write(self, kind: str, values: Mapping[str, Any]) -> Line:
        """One line, with its kind and the time in seconds since the epoch; returns it."""
        line = {"kind": kind, "time": time.time(), **values}
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False, default=str) + "\n")
            self._file.flush()
        return line

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[Line]:
    """The lines that count: a `start` line at update u supersedes earlier lines beyond u; a torn line is left out.

    It also supersedes evaluations of test, which are of an end that was none.
    """
    lines: list[Line] = []
    for line in _lines(path):
        if line["kind"] == "start":
            lines = drop_superseded(lines, line["update"])
        lines.append(line)
    return lines


def drop_superseded(lines: Iterable[Line], update: int) -> list[Line]:
    """Those that a `start` line at `update` does not supersede."""
    return [line for line in lines if line["update"] <= update and line.get("split") != "test"]


@dataclass(frozen=True)
class Metrics:
    """The lines that count, as `read_metrics` has them: of the `train` lines columns float64, NaN where a line has no
    number; all others as they are. seconds: in which the run ran, from its first line to its last, without those
    between a stop and the start that went on from it."""

    train: dict[str, Floats]
    others: list[Line]
    seconds: float

    @property
    def starts(self) -> list[Line]:
        """The `start` lines."""
        return [line for line in self.others if line["kind"] == "start"]

    @property
    def restarts(self) -> list[Line]:
        """Those of them that went on from a checkpoint."""
        return [line for line in self.starts if line["update"]]


def read_columns(path: Path, names: Sequence[str]) -> Metrics:
    """The metrics with these columns, `update` and `time` of their train lines: a million take a few seconds."""
    columns = {name: np.empty(0) for name in dict.fromkeys(["update", "time", *names])}
    others: list[Line] = []
    block: list[Line] = []
    parts: dict[str, list[Floats]] = {name: [] for name in columns}

    def take_block() -> None:
        for name, part in parts.items():
            part.append(np.array([line.get(name) for line in block], np.float64))  # None is NaN, "nan" too
        block.clear()

    def take_parts() -> None:
        take_block()
        for name, part in parts.items():
            columns[name] = np.concatenate([columns[name], *part])
            part.clear()

    for line in _lines(path):
        if line["kind"] == "train":
            block.append(line)
            if len(block) == _BLOCK:
                take_block()
            continue
        if line["kind"] == "start":
            take_parts()
            others = drop_superseded(others, line["update"])
            kept = int(np.searchsorted(columns["update"], line["update"], side="right"))
            columns = {name: column[:kept] for name, column in columns.items()}
        others.append(line)
    take_parts()
    times = np.sort(np.concatenate([columns["time"], np.asarray([line["time"] for line in others], np.float64)]))
    starts = [line["time"] for line in others if line["kind"] == "start"]
    return Metrics(columns, others, float(np.diff(times)[~np.isin(times[1:], starts)].sum()))


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for text in file:
            try:
                yield orjson.loads(text)
            except orjson.JSONDecodeError:
                continue


def position_fields(plan: Plan, position: int) -> Line:
    """Where in the run a line belongs."""
    samples = plan.samples_at(position)
    return {"update": position, "epoch": samples / plan.samples, "samples": samples}

"""metrics.jsonl, one JSON object a line: the log that a run appends to, and its one reader."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from vit_dist.files import json_values
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.goodput import running_seconds
from vit_dist.run_folder.lines import is_count, is_measure, is_time, is_whole
from vit_dist.run_folder.outputs import Outputs

Line = dict[str, Any]
Floats = NDArray[np.float64]

_BLOCK = 4096
_LONGEST_LINE = 1 << 24


class MetricsLog:
    """The lines that count, and their file, to which each is appended at once; ranks other than 0 write no file.

    A line that cannot be written is tried again later. A file that was deleted or cut under the run is made again
    from the lines that count. lines: those, oldest first.
    """

    def __init__(self, path: Path, outputs: Outputs, lines: Sequence[Line] = (), *, writes: bool) -> None:
        """lines: that the file holds already, as `read_metrics` returns them."""
        self.path = path
        self.lines = list(lines)
        self._outputs = outputs
        self._writes = writes
        self._file: FileIO | None = None
        self._size = 0
        self._waiting: list[bytes] = []

    def write(self, kind: str, values: Mapping[str, Any]) -> Line:
        """Add a line with its kind and the time in seconds since the epoch, and write it; return it."""
        line: Line = json_values({"kind": kind, "time": time.time(), **values})
        self.lines.append(line)
        if self._writes:
            self._waiting.append(_encode(line))
            self._outputs.write(self.path, self._write_waiting)
        return line

    def _write_waiting(self) -> None:
        """Write the lines that wait, each as a whole or not at all. Raises OSError; the rest then waits on."""
        file = self._opened()
        while self._waiting:
            rest = self._waiting[0]
            try:
                while rest:  # a full disk takes a part of it, and then fails
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._size)
                raise
            self._size += len(self._waiting.pop(0))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> FileIO:
        """Return the file, opened again if another one, or none, has its name now. Raises OSError."""
        if self._file is not None and not self._is_there(self._file):
            self._file.close()
            self._file = None
        if self._file is None:
            file = FileIO(self.path, "a+")
            size = os.fstat(file.fileno()).st_size
            if size < self._size:  # deleted or cut: what the run knows takes its place
                file.truncate(0)
                size, self._waiting = 0, [_encode(line) for line in self.lines]
            self._file, self._size = file, size
        self._size = self._file.seek(0, os.SEEK_END)
        if self._size and not _ends_with_newline(self.path):  # a killed run's last line may be torn
            self._size += self._file.write(b"\n")
        return self._file

    def _is_there(self, file: FileIO) -> bool:
        try:
            there, opened = self.path.stat(), os.fstat(file.fileno())
        except FileNotFoundError:
            return False
        return os.path.samestat(there, opened) and opened.st_size >= self._size


def _encode(line: Line) -> bytes:
    return json.dumps(line, allow_nan=False, default=str).encode() + b"\n"


def position_fields(plan: Plan, position: int) -> Line:
    """Return the `update`, `epoch` and `samples` fields of a line."""
    samples = plan.samples_at(position)
    return {"update": position, "epoch": samples / plan.samples, "samples": samples}


def read_metrics(path: Path) -> list[Line]:
    """Read the lines that count: those that no later start supersedes. A torn line is left out. Raises OSError."""
    return list(_standing_lines(path))


def read_written(path: Path) -> Iterator[Line]:
    """Yield all whole lines, those that a later start supersedes too, in the order of the file. Raises OSError."""
    with path.open("rb") as file:
        lines = (_parse(text) for text in file)
        yield from (line for line in lines if line is not None and is_whole(line))


def read_history(path: Path) -> tuple[list[Line], str | None]:
    """Read the whole lines that count, for a run that goes on; and, on one line, what of the file is not whole."""
    damaged: list[int] = []
    try:
        lines = list(_standing_lines(path, damaged))
    except FileNotFoundError:
        return [], f"{path}: is missing: what it held is left out of the report"
    except OSError as error:
        return [], f"{path}: cannot be read: {error.strerror}: what it holds is left out of the report"
    whole = [line for line in lines if is_whole(line)]
    return whole, damaged_lines(path, len(damaged) + len(lines) - len(whole))


def damaged_lines(path: Path, count: int) -> str | None:
    """Return a line for the user on lines that are damaged, if there are any."""
    return f"{path}: {count} damaged line{'s are' if count > 1 else ' is'} left out" if count else None


def drop_superseded(lines: Iterable[Line], update: int) -> list[Line]:
    """Return the lines that a `start` line at `update` leaves standing."""
    return [line for line in lines if not _is_superseded(line, update)]


def _is_superseded(line: Line, update: int) -> bool:
    """Return whether a later start at `update` supersedes a line: its update is done again, or its end was none."""
    return line["update"] > update or line.get("split") == "test"


@dataclass(frozen=True)
class Metrics:
    """The lines that count, as `read_metrics` returns them, with the `train` lines as columns.

    train: field → float64 [lines], NaN where a line has no number. damaged: how many lines could not be read.
    """

    train: dict[str, Floats]
    other_lines: list[Line]
    damaged: int = 0

    @property
    def seconds(self) -> float:
        """Seconds in which the run ran, from its first line to its last."""
        other_times = np.asarray([line["time"] for line in self.other_lines], np.float64)
        times = np.concatenate([self.train["time"], other_times])
        times = times[np.isfinite(times)]
        return running_seconds(times, np.asarray([line["time"] for line in self.starts], np.float64))

    @property
    def starts(self) -> list[Line]:
        """The `start` lines."""
        return [line for line in self.other_lines if line["kind"] == "start"]

    @property
    def restarts(self) -> list[Line]:
        """The `start` lines that resumed from a checkpoint."""
        return [line for line in self.starts if line["update"]]


def read_columns(path: Path, names: Sequence[str]) -> Metrics:
    """Read the lines that count, with these fields of the train lines, `update` and `time` as columns.

    A million lines take a few seconds. Raises OSError.
    """
    columns: dict[str, list[Floats]] = {name: [np.empty(0)] for name in ("update", "time", *names)}
    other_lines: list[Line] = []
    block: list[Line] = []

    def flush() -> None:
        for name, parts in columns.items():
            parts.append(_floats([line.get(name) for line in block]))
        block.clear()

    damaged: list[int] = []
    for line in _standing_lines(path, damaged):
        if line["kind"] != "train":
            other_lines.append(line)
            continue
        block.append(line)
        if len(block) == _BLOCK:
            flush()
    flush()
    return Metrics({name: np.concatenate(parts) for name, parts in columns.items()}, other_lines, len(damaged))


def _floats(values: list[Any]) -> Floats:
    """Return values as an array: None becomes NaN, "nan" too, and whatever is no number."""
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.array([float(value) if is_measure(value) else np.nan for value in values], np.float64)


def spanned_updates(updates: Floats, starts: Sequence[float]) -> Floats:
    """Return how many updates each train line is of: those since the line, or the start, before it.

    updates: of the train lines, ascending; starts: the updates of the `start` lines.
    """
    if not len(updates):
        return updates
    marks = np.unique(np.asarray([0, *starts], np.float64))
    last_start = marks[np.searchsorted(marks, updates, side="left") - 1]
    spans: Floats = updates - np.maximum(np.concatenate([[0.0], updates[:-1]]), last_start)
    return spans


def _standing_lines(path: Path, damaged: list[int] | None = None) -> Iterator[Line]:
    """Yield the lines of a file, as long as it is now, that no later `start` line supersedes.

    damaged: the numbers of the lines that hold nothing readable are added to it; a last one may only be unfinished.
    """
    starts: list[tuple[int, int]] = []
    count = 0
    with path.open("rb") as file:
        for count, text in enumerate(_texts(file), 1):
            line = _parse(text) if b'"start"' in text else None
            if line is not None and line["kind"] == "start":
                starts.append((count, line["update"]))
        # From the last start to the first, each with the lowest update of those from it on.
        lowest = list(accumulate(reversed(starts), lambda later, start: (start[0], min(start[1], later[1]))))
        file.seek(0)
        for number, text in enumerate(islice(_texts(file), count), 1):
            while lowest and lowest[-1][0] <= number:
                lowest.pop()
            line = _parse(text)
            if line is None and damaged is not None and text.endswith(b"\n") and text.strip():
                damaged.append(number)
            if line is not None and not (lowest and _is_superseded(line, lowest[-1][1])):
                yield line


def _texts(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long to be one of ours, its beginning."""
    while text := file.readline(_LONGEST_LINE):
        whole = text
        while len(whole) == _LONGEST_LINE and not whole.endswith(b"\n"):
            whole = file.readline(_LONGEST_LINE)
        yield text if whole is text else text[:_BLOCK] + b"\n"


def _parse(text: bytes) -> Line | None:
    """Return the content of a line; None if it is torn or damaged."""
    try:
        line: Line = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    return line if is_count(line.get("update")) and is_time(line.get("time", 0)) else None


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"

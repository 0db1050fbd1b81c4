"""Find runs in a folder, and the one that was meant by a path at which there is none."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from vit_dist.errors import ALIKE

_DEEPEST = 2  # levels of folders in which runs are looked for
_RUN_FILES = ("config.yaml", "metrics.jsonl", "status.json")


def run_folders(place: Path, depth: int = 0) -> Iterator[Path]:
    """Yield the folders of runs in a folder, itself included; not what is inside of them."""
    if any(os.path.isfile(place / name) for name in _RUN_FILES):
        yield place
    elif depth < _DEEPEST:
        try:
            entries = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != ".")
        except OSError:
            return
        for name in entries:
            yield from run_folders(place / name, depth + 1)


def newest_run(place: Path, beginning: str = "") -> Path | None:
    """Return the run in a folder that was written to last, of those whose names begin so; None if there is none."""
    times: dict[Path, float] = {}
    for folder in run_folders(place):
        with contextlib.suppress(OSError):
            if folder.name.startswith(beginning):
                times[folder] = max((folder / name).stat().st_mtime for name in _RUN_FILES if (folder / name).is_file())
    return max(times, key=lambda folder: times[folder], default=None)


def run_meant(path: Path) -> str:
    """Return `: name one of the runs in it, as runs/a`, `; did you mean runs/a?`, or nothing, for a path without a run.

    A path that is there may hold runs; one that is not there may be misspelled, or may lack `runs/`.
    """
    if path.exists():
        found = newest_run(path) if path.is_dir() else None
        inside = found is not None and found != path
        return f": name one of the runs in it, as {shlex.quote(str(found))}" if inside else ""
    for place in dict.fromkeys((path.parent, Path("runs") / path.parent)):
        names = [folder.name for folder in run_folders(place) if folder.parent == place]
        close = difflib.get_close_matches(path.name, names, 1, ALIKE)
        if meant := place / close[0] if close else newest_run(place, path.name):
            return f"; did you mean {shlex.quote(str(meant))}?"
    return ""

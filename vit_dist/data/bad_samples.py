"""Samples that cannot be read: named once each, and counted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

from vit_dist.errors import visible

_MOST_NAMED = 20


class BadSamples:
    """The bad samples that this rank meets in one split. count: how many slots asked for one."""

    def __init__(self, rank: int, consequence: str) -> None:
        """consequence: what becomes of them, for people."""
        self.count = 0
        self._prefix = f"rank {rank}: " if rank else ""
        self._consequence = consequence
        self._known: set[str] = set()

    def add(self, problems: Iterable[str]) -> None:
        """Count problems; print each one that is new, the first 20, to the standard error of whichever rank."""
        for problem in problems:
            self.count += 1
            if problem in self._known:
                continue
            self._known.add(problem)
            if len(self._known) <= _MOST_NAMED:
                self._print(f"{problem}; {self._consequence}")
            elif len(self._known) == _MOST_NAMED + 1:
                self._print("more images cannot be read, which are counted, and not named")

    def take(self) -> int:
        """Return the count, which begins anew."""
        count, self.count = self.count, 0
        return count

    def close(self) -> None:
        """Print how many there were in all, if not all were named."""
        if len(self._known) > _MOST_NAMED:
            self._print(f"{len(self._known):,} images could not be read")
            self._known.clear()

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it may be closed; the metrics count them in any case
            print(f"{self._prefix}{visible(text)}", file=sys.stderr, flush=True)

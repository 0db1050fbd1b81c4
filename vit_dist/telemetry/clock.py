"""Measure the seconds spent in training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from vit_dist.runtime.marks import PAUSED, mark
from vit_dist.runtime.runtime import Runtime


class Clock:
    """A stopwatch of training time, which stands still inside `paused`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Start or resume the clock."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, runtime: Runtime) -> Iterator[None]:
        """Stop the clock inside the block. The device first finishes its updates, which belong to training."""
        runtime.synchronize()
        self._before, self._since = self.seconds, None
        try:
            with mark(PAUSED):
                yield
        finally:
            self.start()

"""The clock of training time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from vit_dist.runtime.runtime import Runtime


class Clock:
    """Seconds of training: it stands still inside `paused`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Runs on."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, runtime: Runtime) -> Iterator[None]:
        """For what is not training; the device finishes its updates first, which belong to training."""
        runtime.synchronize()
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()

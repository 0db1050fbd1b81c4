"""Call functions in a thread of their own, so that none of them holds up the training loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable


class Background:
    """Calls functions one after another in a thread. After an error it calls no more.

    error: what ended it. dropped: how many calls found the queue full.
    """

    def __init__(self, limit: int = 1000) -> None:
        """limit: how many calls may wait."""
        self.error: Exception | None = None
        self.dropped = 0
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Call a function after those before it, if there is room for it to wait. Return at once."""
        try:
            self._calls.put_nowait(function)
        except queue.Full:
            self.dropped += 1

    def close(self, last: Callable[[], None], seconds: float) -> bool:
        """Call a last function after all others. Wait for so many seconds at most; return whether that was enough."""
        until = time.monotonic() + seconds
        try:
            for each in (last, None):
                self._calls.put(each, timeout=max(0.001, until - time.monotonic()))
        except queue.Full:
            return False
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            if self.error is None:
                try:
                    function()
                except Exception as error:  # of any kind: it is told, and ends nothing but these calls
                    self.error = error

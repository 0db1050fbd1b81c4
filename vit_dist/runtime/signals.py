"""The request to stop: made by a signal to any process, agreed on by all ranks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor


class StopRequest:
    """A request to save and stop, which all ranks act on after the same update."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        """group: a gloo group of all ranks; None for a single process."""
        self._group = group
        self._requested = False
        self._pending: tuple[Tensor, dist.Work] | None = None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Make SIGTERM and the first Ctrl-C inside the block request a stop; a second Ctrl-C ends the run at once.

        The handlers from before come back afterwards. Outside the main thread, where Python allows none, do nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            if self._requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._requested = True

        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any rank was asked to stop: the same answer on all of them. Called once an update.

        With several ranks the flags start to travel at one update and are read at the next, so that nothing waits.
        """
        if self._group is None:
            return self._requested
        before = self._pending
        flag = torch.tensor([int(self._requested)])
        work = dist.all_reduce(flag, group=self._group, async_op=True)
        assert work is not None
        self._pending = flag, work
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())

    def close(self) -> None:
        """Wait for the flags that still travel."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

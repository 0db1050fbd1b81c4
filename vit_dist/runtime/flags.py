"""Flags that any rank raises and all agree on: stop, save now, a save has failed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vit_dist.runtime.launch import end_with_launcher, is_launched, outlive_launcher

# SIGUSR1 is what SLURM sends before a job's time is up (--signal), SIGHUP what a terminal sends when it is closed.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


class Stopped(BaseException):  # no Exception: it may come at any line, and nothing but the run handles it
    """The run was asked to stop, and the work that raises this is given up: nothing of it is needed to resume."""


class Agreed(NamedTuple):
    """The flags as all ranks agree on them: stop, save now, a checkpoint could not be written."""

    stop: bool
    save: bool
    failed: bool


class Flags:
    """Flags that all ranks act on after the same update.

    raises: whether a signal raises `Stopped` at once, as long as there is nothing to save, or is only noted. reason:
    why the run was asked to stop on this rank.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        environ: Mapping[str, str] = os.environ,
        waiting: Callable[[str], contextlib.AbstractContextManager[None]] = lambda what: contextlib.nullcontext(),
    ) -> None:
        """group: a gloo group of all ranks; None for a single process. waiting: a context of a wait for the others."""
        self.raises = False
        self.reason = ""
        self._group = group
        self._waiting = waiting
        self._signalled = False
        self._stopped = False
        self._save = False
        self._failed = False
        self._deadline = float("inf")
        self._launched = is_launched(environ)
        self._parent = os.getppid()
        self._pending: tuple[Tensor, dist.Work] | None = None

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Make the stop signals inside the block request a stop; a second Ctrl-C ends the run at once.

        The handlers from before come back afterwards. A SIGHUP that is ignored (nohup) stays so. Outside the main
        thread, where Python allows none, do nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(number: int, frame: FrameType | None) -> None:
            if self._signalled and number == signal.SIGINT:
                raise KeyboardInterrupt
            first, self._signalled = not self._signalled, True
            self.reason = signal.Signals(number).name
            outlive_launcher(os.environ)
            if self.raises and first:  # the second would come while the first is answered
                raise Stopped

        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        ignored = [number for number in numbers[2:] if signal.getsignal(number) == signal.SIG_IGN]
        before = {number: signal.signal(number, request) for number in numbers if number not in ignored}
        end_with_launcher(os.environ)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def limit(self, seconds: float) -> None:
        """Request a stop once so many seconds have passed from now on."""
        self._deadline = time.monotonic() + seconds

    def save(self) -> None:
        """Request a checkpoint, once."""
        self._save = True

    def fail(self) -> None:
        """Tell that a checkpoint could not be written. May be called from any thread."""
        self._failed = True

    @property
    def stop(self) -> bool:
        """Return whether this rank has been asked to stop: by a signal, its time limit or the end of its launcher."""
        if not (self._signalled or self._stopped):
            if time.monotonic() > self._deadline:
                self.reason = "run.time_limit"
                self._stopped = True
            elif self._launched and os.getppid() != self._parent:
                self.reason = "the launcher has ended"
                self._stopped = True
        return self._signalled or self._stopped

    def agreed(self) -> Agreed:
        """Return what any rank has asked for: the same answer on all of them. Called equally often on all ranks.

        With several ranks the flags start to travel at one call and are read at the next, so that nothing waits.
        A request to stop stays; one to save is answered once.
        """
        own = Agreed(self.stop, self._save, self._failed)
        self._save = False
        if self._group is None:
            return own
        before = self._pending
        flags = torch.tensor([int(flag) for flag in own])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = flags, work
        if before is None:
            return Agreed(stop=False, save=False, failed=False)
        with self._waiting("the others to make this update"):
            before[1].wait()
        stop, save, failed = (bool(flag) for flag in before[0].tolist())
        if stop and not self.stop:
            self.reason, self._stopped = "another process was asked to", True
        return Agreed(stop, save, failed)

    def close(self) -> None:
        """Wait for the flags that still travel."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None

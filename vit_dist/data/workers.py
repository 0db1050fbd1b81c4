"""Worker processes that read micro-batches ahead: started, fed in turn, watched, and ended."""

from __future__ import annotations

import atexit
import contextlib
import math
import mmap
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from vit_dist.data import worker as worker_process
from vit_dist.data.reader import HostBatch, Reader
from vit_dist.data.sources.source import sample_name
from vit_dist.data.worker import Buffer, progress_of, shared_memory
from vit_dist.errors import UserError, one_line, visible
from vit_dist.formatting import size_text
from vit_dist.plan.plan import Slots
from vit_dist.runtime.free_memory import free_memory

# Micro-batches that each worker reads ahead.
_AHEAD = 2
_TICK_SECONDS = 0.25
# How long a stop request waits for a worker that makes no progress.
_STOP_SECONDS = 5.0


class WaitStoppedError(UserError):
    """Raised when the run was asked to stop while it waited for data that does not come."""


def worker_count(workers: int | str, cores: int) -> int:
    """Return `data.workers` as a number: auto is one for each of the cores that this process may use, 16 at most."""
    return min(cores, 16) if isinstance(workers, str) else workers


@dataclass
class _Worker:
    """A worker process. sent: the micro-batches it has to answer, oldest first: (number of the buffer, slots)."""

    number: int
    buffers: list[Buffer]
    note: Any
    process: Any = None
    connection: Any = None
    sent: deque[tuple[int, Slots]] = field(default_factory=deque)


class Workers:
    """Reads micro-batches in order, ahead of their use, in worker processes that start when they are needed.

    They live until `close`, or until this object is gone, or the interpreter ends.
    """

    def __init__(
        self, reader: Reader, count: int, *, timeout: float, stop_requested: Callable[[], bool] = lambda: False
    ) -> None:
        """count: of processes; 0: read in this one. timeout: seconds that one sample may take.

        stop_requested: asked while a batch does not come.
        """
        self.reader = reader
        self.count = count
        self.timeout = timeout
        self.stop_requested = stop_requested
        self._context: Any = multiprocessing.get_context(worker_process.START_METHOD)
        self._workers: list[_Worker] = []
        # By index in the source: what is known to be wrong with a sample; how often a worker died of it.
        self._unreadable: dict[int, str] = {}
        self._deaths: dict[int, int] = {}
        self._free: int | None = None  # bytes of memory, before the first worker started
        _open.add(self)

    def read(self, slots: Iterable[Slots]) -> Iterator[HostBatch]:
        """Yield the micro-batches of `slots`, which have one length, in order.

        Raises UserError, in one line that names the sample, also where a worker died or hangs; WaitStoppedError.
        """
        if not self.count:
            yield from map(self.reader.read, slots)
            return
        left, turns, done = iter(slots), 0, 0
        try:
            while True:
                while turns - done < self.count * _AHEAD and (task := next(left, None)) is not None:
                    worker, buffer = self._worker(turns % self.count, len(task.index)), turns // self.count % _AHEAD
                    worker.sent.append((buffer, task))
                    self._send(worker, buffer, task)
                    turns += 1
                if done == turns:
                    return
                yield self._receive(self._workers[done % self.count])
                done += 1
        finally:
            if any(worker.sent for worker in self._workers):  # abandoned: what still comes is nobody's
                self.close()
            for worker in self._workers:
                _release(worker.buffers)

    def close(self) -> None:
        """End the workers."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.kill()
            worker.connection.close()
        for worker in workers:
            _join(worker.process)

    def __del__(self) -> None:
        """End the workers of an object that nobody closed."""
        self.close()

    def _worker(self, number: int, slots: int) -> _Worker:
        """Return a worker, started if it was not. slots: of each micro-batch. Raises UserError."""
        if number < len(self._workers):
            return self._workers[number]
        tokens = self.reader.captioner.tokenizer.context_length if self.reader.captioner else 0
        size = Buffer.size(slots, math.prod(self.reader.shape()), tokens)
        self._check_memory(number + 1, size)
        with self._starting(number):
            buffers = [Buffer(shared_memory(self._context, size), slots, tokens) for _ in range(_AHEAD)]
            worker = _Worker(number, buffers, shared_memory(self._context, 16))
        self._start(worker)
        self._workers.append(worker)
        return worker

    def _check_memory(self, workers: int, size: int) -> None:
        """Check that the batches of so many workers, of `size` bytes each, find room in memory. Raises UserError."""
        if workers == 1:
            self._free = free_memory()
        needed = workers * _AHEAD * size  # which the system gives only when they are written
        if self._free is not None and needed > self._free:
            raise UserError(
                f"data.workers: the batches that {workers} of {self.count} workers read ahead take "
                f"{size_text(needed)}, and {size_text(self._free)} of memory are free: set fewer, or a smaller "
                "batch.micro_size or evaluate.batch_size"
            )

    def _start(self, worker: _Worker) -> None:
        """Start the process of a worker, and send it what it has to answer. Raises UserError."""
        arguments = (worker.buffers, worker.note, dict(self._unreadable), os.getpid())
        with self._starting(worker.number):
            worker.connection, theirs = self._context.Pipe()
            with theirs:
                worker.process = self._context.Process(
                    target=worker_process.work, args=(self.reader, theirs, *arguments), daemon=True
                )
                with _stop_signals_blocked():
                    worker.process.start()
        for number, slots in worker.sent:
            self._send(worker, number, slots)

    @contextlib.contextmanager
    def _starting(self, number: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise UserError(
                f"data.workers: worker {number + 1} of {self.count} cannot be started ({reason}): set fewer"
            ) from None

    def _send(self, worker: _Worker, buffer: int, slots: Slots) -> None:
        worker.buffers[buffer].write(slots)
        with contextlib.suppress(ConnectionError):  # it has died, which is found when its answer is waited for
            worker.connection.send((buffer, slots.image_size))

    def _receive(self, worker: _Worker) -> HostBatch:
        """Return the oldest micro-batch that a worker has to answer. Raises UserError, WaitStoppedError."""
        while (answer := self._answer(worker)) is None:
            worker.connection.close()
            self._start(worker)
        bad, error = answer
        number, slots = worker.sent.popleft()
        if error is not None:
            raise error
        buffer = worker.buffers[number]
        pixels = buffer.pixels(self.reader.shape(slots.image_size or self.reader.image_size))
        return self.reader.batch(torch.from_numpy(pixels), buffer.slots(slots.image_size), bad, buffer.captions())

    def _answer(self, worker: _Worker) -> Any:
        """Wait for a worker's answer; None: it had to be ended, and its sample is to be skipped or tried again.

        Raises UserError, WaitStoppedError.
        """
        progress = progress_of(worker.note)
        begun, since = int(progress[1]), time.monotonic()
        while True:
            ready = multiprocessing.connection.wait([worker.connection, worker.process.sentinel], _TICK_SECONDS)
            if worker.connection in ready:
                with contextlib.suppress(EOFError, ConnectionError):
                    return worker.connection.recv()
            if ready:
                return self._died(worker)
            if begun != int(progress[1]):
                begun, since = int(progress[1]), time.monotonic()
            waited = time.monotonic() - since
            if waited > _STOP_SECONDS and self.stop_requested():
                raise WaitStoppedError(
                    f"data: asked to stop while {self._doing(worker)} for {waited:.0f} s: check the storage"
                )
            if waited > self.timeout:
                return self._hangs(worker)

    def _died(self, worker: _Worker) -> None:
        """Note that a worker has died. Raises UserError, unless its sample is skipped or tried again."""
        _join(worker.process)
        code = worker.process.exitcode or 0
        how = f"ended ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        fix = "mend or remove the file, leave it out (data.leave_out), or set data.on_bad_sample skip"
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL)"
            fix = "if memory ran out, set fewer data.workers, a smaller batch.micro_size or data.max_pixels"
        index = int(progress_of(worker.note)[0]) - 1
        self._deaths[index] = self._deaths.get(index, 0) + 1
        if index < 0 or self.reader.on_bad_sample == "fail" or self._deaths[index] > 2:
            raise UserError(f"data: worker {worker.number} {how} while {self._doing(worker)}: {fix}")
        if self._deaths[index] == 2:  # the first time may have been chance
            self._unreadable[index] = f"{self._name(index)}: two workers ended while they read it, the last {how}"

    def _hangs(self, worker: _Worker) -> None:
        """End a worker that hangs. Raises UserError, unless its sample is skipped."""
        doing, index = self._doing(worker), int(progress_of(worker.note)[0]) - 1
        worker.process.kill()
        _join(worker.process)
        if index < 0 or self.reader.on_bad_sample == "fail" or index in self._unreadable:
            raise UserError(
                f"data.timeout: worker {worker.number} has been {doing} for {self.timeout:g} s: check the storage, "
                "or set a longer data.timeout"
            )
        self._unreadable[index] = f"{self._name(index)}: took longer than data.timeout ({self.timeout:g} s)"

    def _doing(self, worker: _Worker) -> str:
        index = int(progress_of(worker.note)[0]) - 1
        return "starting" if index < 0 else f"reading {self._name(index)}"

    def _name(self, index: int) -> str:
        return visible(sample_name(self.reader.subset.source, index, "image"))


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Hold back stop signals while a worker starts: it inherits that, until it has its own handlers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, worker_process.STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _release(buffers: Iterable[Buffer]) -> None:
    """Give the pages of buffers back to the system until they are written again, where it can."""
    for buffer in buffers:
        if isinstance(buffer.memory, mmap.mmap) and hasattr(mmap, "MADV_REMOVE"):
            buffer.memory.madvise(mmap.MADV_REMOVE)


def _join(process: Any) -> None:
    """Wait for a process that was killed; not for ever, since one that waits for its disk does not die."""
    process.join(2)
    if process.is_alive():
        # The interpreter would wait for it when it ends.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


_open: weakref.WeakSet[Workers] = weakref.WeakSet()


def _close_all() -> None:
    for workers in list(_open):
        workers.close()


# Runs before multiprocessing's own, which would ask workers to end, and wait.
atexit.register(_close_all)

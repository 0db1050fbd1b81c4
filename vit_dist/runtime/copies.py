"""Copies of batches to the device, beside what it computes, and how long it waits for them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor


class Copies:
    """Copies tensors to a device; to a GPU from pinned memory, on a stream of its own.

    ahead: whether copies are made ahead of their use, in a thread, which also spares the main thread the pinning. On a
    CPU there is nothing that it could hide. The device holds one update's batches at most, since the host is never
    further ahead of it.
    """

    def __init__(self, device: torch.device, *, ahead: bool) -> None:
        """ahead: whether a thread may read the batches."""
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.ahead = ahead and self._stream is not None

    def buffer(self, size: int) -> Tensor:
        """Return `size` bytes on the host, uint8; pinned for CUDA, where torch keeps them until they are copied."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def staged(self, tensor: Tensor) -> Tensor:
        """Return uint8 values in a buffer of their own, or as they are where nothing is copied to a GPU, nor ahead."""
        if not self.ahead and self._stream is None:
            return tensor
        copy = self.buffer(tensor.numel()).view(tensor.shape)
        copy.numpy()[:] = tensor.numpy()  # torch would start a second team of threads in this one
        return copy

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Give the block's copies to their own stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> torch.cuda.Event | None:
        """Return an event of the copies given so far; None where the host makes them itself."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def receive(self, event: torch.cuda.Event | None, *tensors: Tensor) -> None:
        """Let what the device is given from here on wait for copies. tensors: one of each memory that they wrote."""
        if event is None:
            return
        stream = torch.cuda.current_stream()
        stream.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(stream)  # else the next copy might get its memory while it is still read


class BatchWait:
    """Times the waits for batches.

    On CUDA the device's: from the end of the work that it was given before to the batch's arrival, by events. What the
    host does while the device computes is no wait. Elsewhere the host's, from asking for a batch until it is ready.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds = 0.0
        self._start = 0.0
        self._begun: torch.cuda.Event | None = None
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> None:
        """Note that a batch is asked for."""
        if self._on_device:
            self._begun = _timed_event()
        else:
            self._start = time.perf_counter()

    def arrived(self) -> None:
        """Note that the device has been told to wait for the batch's copy."""
        if self._on_device:
            assert self._begun is not None
            self._events.append((self._begun, _timed_event()))
            if len(self._events) > 64:  # of a long interval between lines
                self._take(8)

    def ready(self) -> None:
        """Note that the batch is ready, augmented."""
        if not self._on_device:
            self._seconds += time.perf_counter() - self._start

    def seconds(self) -> float:
        """Return the seconds so far; on CUDA those of the batches that the device has got to. Waits for nothing."""
        self._take(len(self._events))
        return self._seconds

    def _take(self, most: int) -> None:
        for _ in range(most):
            begun, arrived = self._events[0]
            if not arrived.query():  # type: ignore[no-untyped-call]
                return
            self._seconds += begun.elapsed_time(arrived) / 1e3
            self._events.popleft()


def _timed_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event

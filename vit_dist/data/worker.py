"""The worker process: reads the micro-batches that it is sent into memory that it shares with the main process."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vit_dist.data.augmentation.transforms import enter_worker
from vit_dist.data.reader import Reader
from vit_dist.data.text.captioner import CaptionTokens
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints
from vit_dist.plan.plan import Slots

# Where processes are forked, they share anonymous memory: no file, no name, no descriptor, and nothing of /dev/shm.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
STOP_SIGNALS = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)}
_GRACE_SECONDS = 60
_PARENT_SECONDS = 2


def shared_memory(context: Any, size: int) -> Any:
    """Return `size` zero bytes that a process started by `context` shares. Raises OSError."""
    return mmap.mmap(-1, size) if context.get_start_method() == "fork" else context.RawArray("B", size)


class Buffer:
    """The shared memory of one micro-batch: its slots, and room for their pixels, and for tokens of their captions."""

    def __init__(self, memory: Any, slots: int, tokens: int = 0) -> None:
        """tokens: of each caption; 0: there are none."""
        self.memory = memory
        self.count = slots
        self.tokens = tokens
        self._view()

    @staticmethod
    def size(slots: int, pixels: int, tokens: int = 0) -> int:
        """Return the bytes for so many slots and, in each, pixels' bytes and a caption's tokens."""
        return slots * (8 + 8 + (8 * tokens + 8 if tokens else 0) + 4 + pixels)

    def _view(self) -> None:
        every, n = np.frombuffer(self.memory, np.uint8), self.count
        self.index: Ints = every[: 8 * n].view(np.int64)
        self.epoch: Ints = every[8 * n : 16 * n].view(np.int64)
        end = 16 * n
        self._captions: CaptionTokens | None = None
        if self.tokens:
            ids, end = every[end : end + 8 * n].view(np.int64), end + 8 * n
            rows, end = every[end : end + 8 * n * self.tokens].view(np.int64), end + 8 * n * self.tokens
            self._captions = CaptionTokens(rows.reshape(n, self.tokens), ids)
        self.weight: NDArray[np.float32] = every[end : end + 4 * n].view(np.float32)
        self._pixels = every[end + 4 * n :]

    def pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels as [slots, *shape]."""
        return self._pixels[: self.count * int(np.prod(shape))].reshape(self.count, *shape)

    def write(self, slots: Slots) -> None:
        """Write down the slots, for the other process."""
        self.index[:], self.epoch[:], self.weight[:] = slots.index, slots.epoch, slots.weight

    def slots(self, image_size: int) -> Slots:
        """Return a copy of the slots written down."""
        return Slots(self.index.copy(), self.epoch.copy(), self.weight.copy(), image_size)

    def write_captions(self, captions: CaptionTokens | None) -> None:
        """Write down the captions of the slots, if there are any, for the other process."""
        if captions is not None:
            assert self._captions is not None
            self._captions.tokens[:], self._captions.ids[:] = captions

    def captions(self) -> CaptionTokens | None:
        """Return a copy of the captions written down."""
        return self._captions and CaptionTokens(*(each.copy() for each in self._captions))

    def __getstate__(self) -> tuple[Any, int, int]:
        return self.memory, self.count, self.tokens

    def __setstate__(self, state: tuple[Any, int, int]) -> None:
        self.memory, self.count, self.tokens = state
        self._view()


def progress_of(memory: Any) -> Ints:
    """Return the view of a worker's note: the index in the source of what it reads, plus 1; samples begun so far."""
    return np.frombuffer(memory, np.int64)


def work(
    reader: Reader, connection: Connection, buffers: list[Buffer], note: Any, unreadable: dict[int, str], parent: int
) -> None:
    """Answer (buffer, image size) by (what was wrong by slot, None), or by (None, why the run must end).

    Reads the slots in the buffer, and leaves there the pixels, and the slots as they are then. Ends with the main
    process, whose id is `parent`, or when the connection is closed.
    """
    _outlive_stop_signals()
    torch.set_num_threads(1)
    enter_worker()
    progress = progress_of(note)

    def begin(index: int) -> None:
        progress[0] = index + 1
        progress[1] += 1

    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            while not connection.poll(_PARENT_SECONDS):
                if os.getppid() != parent:
                    return
            number, image_size = connection.recv()
            connection.send(_read(reader, buffers[number], image_size, begin, unreadable))
            progress[0] = 0


def _read(reader: Reader, buffer: Buffer, image_size: int, begin: Any, unreadable: dict[int, str]) -> tuple[Any, Any]:
    try:
        pixels = buffer.pixels(reader.shape(image_size or reader.image_size))
        slots, bad = reader.read_into(pixels, buffer.slots(image_size), begin, unreadable)
        buffer.write(slots)
        buffer.write_captions(reader.captions(slots))
        return bad, None
    except UserError as error:
        return None, error
    except BaseException:
        return None, RuntimeError(f"a worker failed:\n{traceback.format_exc()}")


def _outlive_stop_signals() -> None:
    """Keep a worker alive after a stop signal sent to every process, until the run has saved."""

    def end_later(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_GRACE_SECONDS, os._exit, [0])
        timer.daemon = True
        timer.start()

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

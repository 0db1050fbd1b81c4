"""Run an iterator ahead of its use, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
_CLOSE_SECONDS = 2.0


class Ahead(Iterator[Item], Generic[Item]):
    """Runs an iterator in a thread, up to `depth` items ahead; an error comes with the item that it is raised for.

    The first item is made by the thread that asks for it: processes that the iterator starts are then its children,
    and none is forked beside a busy thread.
    """

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self._items = items
        self._made: SimpleQueue[Item | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._thread: threading.Thread | None = None
        self._closed = False

    def __next__(self) -> Item:
        """Return the next item, or raise what the iterator raised."""
        if self._thread is None:
            first = next(self._items)
            self._thread = threading.Thread(target=self._run, name="batches ahead", daemon=True)
            self._thread.start()
            return first
        made = self._made.get()
        self._room.release()
        if isinstance(made, BaseException):
            self._made.put(made)  # it has ended, whoever asks again
            raise made
        return made

    def close(self) -> None:
        """End the thread once it has made its present item, for which it is waited two seconds at most."""
        self._closed = True
        self._room.release()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            self._room.acquire()
            if self._closed:
                return
            try:
                self._made.put(next(self._items))
            except BaseException as error:  # StopIteration too
                self._made.put(error)
                return

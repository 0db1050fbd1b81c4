"""Do a piece of work for each of many items in several processes, which end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from vit_dist.errors import UserError, one_line

Item = TypeVar("Item")
Result = TypeVar("Result")

_START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def in_processes(work: Callable[[Item], Result], items: Sequence[Item], count: int) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) as they come, from at most `count` processes; with one, from this one.

    Raises the UserError that `work` raises, for an OSError too, and if a process ends by itself.
    """
    count = min(count, len(items))
    if count <= 1:
        yield from ((item, _tried(work, item)) for item in items)
        return
    context: Any = multiprocessing.get_context(_START_METHOD)
    workers: dict[Connection, Any] = {}
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            with theirs:
                process = context.Process(target=_run, args=(work, items, number, count, theirs, os.getpid()))
                process.daemon = True
                process.start()
            workers[ours] = process
        while workers:
            for connection in multiprocessing.connection.wait(list(workers)):
                assert isinstance(connection, Connection)
                message = _received(connection)
                if message is None:  # it has closed its end
                    process = workers.pop(connection)
                    process.join()
                    if process.exitcode:
                        raise UserError(
                            f"a process ended ({process.exitcode}): set fewer --processes, and run it again"
                        )
                    continue
                number, result, error = message
                if error is not None:
                    raise error
                yield items[number], result
    finally:
        for process in workers.values():
            process.kill()
            process.join()


def _received(connection: Connection) -> Any:
    with contextlib.suppress(EOFError, ConnectionError):
        return connection.recv()
    return None


def _run(work: Any, items: Sequence[Any], first: int, step: int, connection: Connection, parent: int) -> None:
    """Do every step-th item from the first on, and send (number, result, error) of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    with contextlib.suppress(ConnectionError):
        for number in range(first, len(items), step):
            if os.getppid() != parent:
                return
            try:
                connection.send((number, _tried(work, items[number]), None))
            except UserError as error:
                connection.send((number, None, error))
                return
            except Exception:
                connection.send((number, None, RuntimeError(traceback.format_exc())))
                return


def _tried(work: Callable[[Item], Result], item: Item) -> Result:
    try:
        return work(item)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{name}{error.strerror or one_line(error)}") from None

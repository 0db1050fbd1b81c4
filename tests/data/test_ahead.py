"""An iterator that runs ahead gives the same items, the same error, and ends when it is told to."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from vit_dist.data.ahead import Ahead


def test_items_come_in_order_and_the_end_stays_the_end() -> None:
    items = Ahead(iter(range(100)), 2)
    assert list(items) == list(range(100))
    assert list(items) == []


def test_it_is_two_items_ahead_and_no_more() -> None:
    made: list[tuple[int, threading.Thread]] = []
    full = threading.Semaphore(0)

    def count() -> Iterator[int]:
        for number in itertools.count():
            made.append((number, threading.current_thread()))
            full.release()
            yield number

    items = Ahead(count(), 2)
    assert next(items) == 0
    for _ in range(3):  # 0, and two ahead of it
        assert full.acquire(timeout=30)
    assert not full.acquire(timeout=0.05)
    assert next(items) == 1
    assert full.acquire(timeout=30)
    items.close()
    threads = [thread for _, thread in made]
    assert [number for number, _ in made] == [0, 1, 2, 3]
    assert threads[0] is threading.current_thread()  # which may start processes
    assert len(set(threads[1:])) == 1
    assert threads[1] is not threads[0]
    assert not threads[1].is_alive()


def test_an_error_comes_where_the_iterator_raised_it() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("gone")

    items = Ahead(broken(), 2)
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match=r"^gone$"):
            next(items)


def test_the_iterator_can_be_closed_before_it_has_begun() -> None:
    items = iter([1])
    Ahead(items, 2).close()
    assert next(items) == 1  # nothing was taken

"""What counts as a process that does not answer, with real processes and stores."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore

from tests.processes import _CONTEXT, run_world
from vit_dist.config.fields import RunConfig
from vit_dist.errors import PeerError
from vit_dist.runtime.runtime import Runtime
from vit_dist.runtime.watch import Failure, Watch

TIMEOUT = 2.0


def working_long() -> list[Any]:
    """Wait for work of rank 0 that takes longer than the timeout, and return what it gives."""
    runtime = Runtime(RunConfig(device="cpu", threads=1, timeout=TIMEOUT))
    start = time.monotonic()
    value = runtime.run_on_main(lambda: threading.Event().wait(2.5 * TIMEOUT))
    waited = time.monotonic() - start
    runtime.end()
    return [value, waited > TIMEOUT]


def test_work_that_the_others_know_of_may_take_longer_than_the_timeout(tmp_path: Path) -> None:
    assert run_world(2, working_long, tmp_path) == [[False, True]] * 2


def fails_on_main(kind: str) -> list[Any]:
    """Return the type and text of what run_on_main raises for an error that is not the user's, and the exit code."""
    runtime = Runtime(RunConfig(device="cpu", threads=1))
    errors: dict[str, Callable[[], None]] = {"disk": lambda: open("/no/such"), "key": lambda: {}["a"]}  # type: ignore[dict-item, return-value] # noqa: SIM115
    try:
        runtime.run_on_main(errors[kind])
    except Exception as error:
        return [type(error).__name__, str(error), error.exit_code if isinstance(error, PeerError) else None]
    finally:
        runtime.end()
    return []


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [("disk", "FileNotFoundError", "[Errno 2] No such file or directory: '/no/such'"), ("key", "KeyError", "'a'")],
)
def test_errors_of_every_kind_reach_all_processes(kind: str, name: str, text: str, tmp_path: Path) -> None:
    main, other = run_world(2, fails_on_main, tmp_path, kind)
    assert main == [name, text, None]
    assert other[0] == "PeerError"
    assert other[1].startswith("process 0 on ")
    assert other[1].endswith(f": {name}: {text}")
    assert other[2] == 1


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Pair:
    """The watches of two ranks in one process, as threads see them."""

    def __init__(self, store: TCPStore, timeout: float) -> None:
        self.watches = [Watch(PrefixStore("run", store), rank, 2, timeout) for rank in range(2)]

    def close(self) -> None:
        for watch in self.watches:
            watch.close(failed=False, hosts_store=False)


@pytest.fixture
def pair(store: TCPStore) -> Iterator[Pair]:
    pair = Pair(store, 60.0)
    yield pair
    pair.close()


def test_the_first_failure_is_what_all_learn(pair: Pair) -> None:
    first, second = Failure([1], "process 1: the first", 2), Failure([0], "the second", 1)
    assert pair.watches[1].fail(first) == first
    assert pair.watches[0].fail(second) == first
    assert pair.watches[0].find_failure() == first
    assert pair.watches[0].left_by_another() == first
    assert pair.watches[1].left_by_another() is None


def test_a_process_that_left_nothing_is_named(pair: Pair) -> None:
    pair.watches[1].close(failed=False, hosts_store=False)
    failure = pair.watches[0].find_failure()
    assert failure.ranks == [1]
    assert failure.text.startswith("process 1 of 2 on ")
    assert failure.text.endswith(" ended without a word: killed, or out of memory; see the log of its host")
    assert (failure.code, failure.speaker) == (1, 0)


def waits_unheard() -> None:
    """Wait for a process that gives no sign of life, with a standard error that nobody reads any more."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = Watch(PrefixStore("run", store), 0, 2, TIMEOUT)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)
    with watch.waiting("ever"):
        threading.Event().wait()


def test_a_process_ends_though_nobody_reads_what_it_says() -> None:
    process = _CONTEXT.Process(target=waits_unheard)
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 1


def test_without_the_store_nobody_is_said_to_have_ended(pair: Pair) -> None:
    watch = pair.watches[0]
    watch._clock, watch._store_lost = 100.0, True
    assert watch.find_failure().ranks == []


def goes_on(flag: str) -> int:
    """Exchange values until all ranks know that they have been stopped and gone on; return how often."""
    runtime = Runtime(RunConfig(device="cpu", threads=1, timeout=TIMEOUT))
    Path(flag + str(runtime.rank)).write_text(str(os.getpid()))
    exchanges = 1
    while not all(runtime.gather(Path(flag + "on").exists())):
        exchanges += 1
    runtime.end()
    return exchanges


def test_a_world_that_was_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    flag = str(tmp_path / "flag-")

    def stop_for_a_while() -> None:
        paths = [Path(flag + str(rank)) for rank in range(2)]
        deadline = time.monotonic() + 60
        while not all(path.exists() and path.read_text() for path in paths):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for path in paths:
                os.kill(int(path.read_text()), number)
            if number == signal.SIGSTOP:
                time.sleep(3 * TIMEOUT)  # what is tested: the time does not count as a wait
        Path(flag + "on").touch()

    thread = threading.Thread(target=stop_for_a_while)
    thread.start()
    try:
        first, second = run_world(2, goes_on, tmp_path / "results", flag)
        assert first == second > 1
    finally:
        thread.join(60)

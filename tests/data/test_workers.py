"""Workers that die, hang or cannot be started; what they share, and what they leave behind."""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY
from vit_dist.data import worker, workers
from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.reader import HostBatch, OnBadSample, Reader
from vit_dist.data.sources.splits import all_of
from vit_dist.data.worker import Buffer
from vit_dist.data.workers import WaitStoppedError, Workers
from vit_dist.errors import UserError
from vit_dist.plan.plan import Slots, evaluation_slots

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    faulthandler.disable()
    os.abort()


def hang() -> None:
    while True:
        signal.pause()


@dataclass
class Pictures:
    """Forty pictures, each of its own colour; `happens` when number `at` is read, once if there is a file `once`."""

    at: int = -1
    happens: Callable[[], None] = kill
    once: Path | None = None

    @property
    def labels(self) -> np.ndarray:
        return np.arange(40)

    @property
    def paths(self) -> list[Path]:
        return [Path(f"pictures/{number}.png") for number in range(40)]

    def __len__(self) -> int:
        return 40

    def image(self, index: int) -> Image.Image:
        if index == self.at and (self.once is None or self.once.exists()):
            if self.once is not None:
                self.once.unlink()
            self.happens()
        return Image.new("RGB", (8, 8), (index, 2 * index, 255 - index))


def workers_of(
    source: Pictures, count: int, on_bad_sample: OnBadSample = "fail", *, timeout: float = 60, stop: bool = False
) -> Workers:
    reader = Reader(all_of(source), EvaluationTransform(1.0), 0, 8, channels=3, on_bad_sample=on_bad_sample)
    return Workers(reader, count, timeout=timeout, stop_requested=lambda: stop)


def slots() -> Iterator[Slots]:
    """Return the slots of one pass: ten batches of four."""
    return evaluation_slots(40, 4, 0, 1)


def copied(batch: HostBatch) -> HostBatch:
    return batch._replace(pixels=batch.pixels.clone())


def colours(opened: Workers) -> list[int]:
    """Return the red of every image of one pass, which is its number."""
    return [int(red) for batch in opened.read(slots()) for red in batch.pixels[:, 0, 3, 3]]


def refusal(opened: Workers) -> str:
    with pytest.raises(UserError) as error:
        colours(opened)
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()
    return str(error.value)


def test_workers_read_the_same_as_the_main_process() -> None:
    here = list(workers_of(Pictures(), 0).read(slots()))
    opened = workers_of(Pictures(), 3)
    for _ in range(2):  # a second pass, by the same workers
        there = [copied(batch) for batch in opened.read(slots())]
        assert len(here) == len(there) == 10
        for one, other in zip(here, there, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))
            assert one.bad == other.bad == {}
    assert len(multiprocessing.active_children()) == 3
    opened.close()
    assert not multiprocessing.active_children()


def test_a_pass_that_was_abandoned_does_not_disturb_the_next() -> None:
    opened = workers_of(Pictures(), 3)
    reads = opened.read(slots())
    next(reads), next(reads)
    reads.close()  # type: ignore[attr-defined]
    assert colours(opened) == list(range(40))
    opened.close()


def test_only_as_many_workers_start_as_there_are_batches() -> None:
    opened = workers_of(Pictures(), 16)
    list(opened.read(evaluation_slots(40, 20, 0, 1)))
    assert len(multiprocessing.active_children()) == 2
    opened.close()


def test_batches_that_memory_cannot_hold_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = workers_of(Pictures(), 3)
    each = 2 * Buffer.size(len(next(iter(slots())).index), math.prod(opened.reader.shape()))
    monkeypatch.setattr(workers, "free_memory", lambda: 2 * each)
    with pytest.raises(UserError, match=r"^data\.workers: the batches that 3 of 3 workers read ahead take .* KiB"):
        list(opened.read(slots()))
    assert not multiprocessing.active_children()
    monkeypatch.setattr(workers, "free_memory", lambda: 3 * each)
    assert colours(opened) == list(range(40))
    opened.close()


@pytest.mark.parametrize(
    ("happens", "text"),
    [
        (
            kill,
            "data: worker 2 was killed (SIGKILL) while reading pictures/9.png: if memory ran out, set fewer "
            "data.workers, a smaller batch.micro_size or data.max_pixels",
        ),
        (
            abort,
            "data: worker 2 ended (SIGABRT) while reading pictures/9.png: mend or remove the file, leave "
            "it out (data.leave_out), or set data.on_bad_sample skip",
        ),
    ],
)
def test_a_worker_that_dies_is_named_with_its_file(happens: Callable[[], None], text: str) -> None:
    assert refusal(workers_of(Pictures(9, happens), 3)) == text


def test_a_worker_that_hangs_is_named_with_its_file() -> None:
    start = time.monotonic()
    assert refusal(workers_of(Pictures(9, hang), 3, timeout=0.5)) == (
        "data.timeout: worker 2 has been reading pictures/9.png for 0.5 s: check the storage, or set a longer "
        "data.timeout"
    )
    assert time.monotonic() - start < 5


@LINUX
def test_a_worker_that_is_stopped_counts_as_hanging() -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    assert refusal(workers_of(Pictures(9, stop), 3, timeout=0.5)).startswith(
        "data.timeout: worker 2 has been reading pictures/9.png for 0.5 s: "
    )


def slow() -> None:
    time.sleep(0.1)


def test_a_slow_batch_of_quick_samples_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Pictures):
        def image(self, index: int) -> Image.Image:
            slow()
            return super().image(index)

    opened = workers_of(Slow(), 2, timeout=0.3)  # a batch takes 0.4 s
    assert colours(opened) == list(range(40))
    opened.close()


def test_a_stop_request_ends_the_wait_for_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_STOP_SECONDS", 0.3)
    opened = workers_of(Pictures(9, hang), 3, timeout=1000, stop=True)
    with pytest.raises(WaitStoppedError, match=r"^data: asked to stop while reading pictures/9\.png for [01] s: "):
        colours(opened)
    assert not multiprocessing.active_children()


def test_a_stop_request_waits_for_data_that_comes() -> None:
    opened = workers_of(Pictures(), 2, stop=True)
    assert colours(opened) == list(range(40))
    opened.close()


def test_a_worker_that_dies_once_is_replaced_without_a_trace_if_bad_samples_are_skipped(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    opened = workers_of(Pictures(9, kill, once), 3, "leave out")
    assert colours(opened) == list(range(40))
    assert not once.exists()
    opened.close()


@pytest.mark.parametrize("happens", [kill, hang])
def test_a_file_that_ends_workers_is_left_out_if_bad_samples_are_skipped(happens: Callable[[], None]) -> None:
    opened = workers_of(Pictures(9, happens), 3, "leave out", timeout=0.5)
    batches = [copied(batch) for batch in opened.read(slots())]
    problem = {
        kill: "pictures/9.png: two workers ended while they read it, the last was killed (SIGKILL)",
        hang: "pictures/9.png: took longer than data.timeout (0.5 s)",
    }[happens]
    assert [batch.bad for batch in batches] == [{1: problem} if number == 2 else {} for number in range(10)]
    weights = torch.cat([batch.weights for batch in batches])
    assert weights.tolist() == [float(number != 9) for number in range(40)]
    reds = torch.cat([batch.pixels[:, 0, 3, 3] for batch in batches]).tolist()
    assert reds == [number if number != 9 else 0 for number in range(40)]
    # In the next pass it is known.
    assert colours(opened) == reds
    opened.close()


def test_a_mistake_in_the_code_comes_with_its_traceback() -> None:
    opened = workers_of(Pictures(), 1)
    opened.reader.transform = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"(?s)^a worker failed:\nTraceback .*assert self.transform is not None"):
        colours(opened)


@LINUX
def test_workers_need_no_shared_memory_files_and_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/shm may be full, and a temporary folder's name too long for a socket."""

    def mapped(process: object) -> set[str]:
        """Return what a process maps of /dev/shm; children inherit it."""
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm" in line}

    inherited = mapped("self")
    monkeypatch.setenv("TMPDIR", "/" + "x" * 150)
    opened = workers_of(Pictures(), 2)
    reads = opened.read(slots())
    next(reads)
    before = set(os.listdir("/dev/shm"))
    for child in multiprocessing.active_children():
        assert mapped(child.pid) <= inherited
    assert len(list(reads)) == 9
    assert set(os.listdir("/dev/shm")) == before
    opened.close()


@LINUX
def test_descriptors_and_memory_are_flat() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def shared() -> int:
        """Return the shared memory in use by this process, in KiB."""
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssShmem"))
        return int(line.split()[1])

    first, opened = descriptors(), workers_of(Pictures(), 2)
    colours(opened)
    open_now, memory = descriptors(), shared()
    for _ in range(20):
        colours(opened)
    assert descriptors() == open_now <= first + 2 * 3
    assert shared() <= memory + 64
    opened.close()
    assert descriptors() == first


@LINUX
@pytest.mark.parametrize(("kind", "reason"), [(resource.RLIMIT_NOFILE, "Too many open files")])
def test_workers_that_cannot_be_started_are_one_line(kind: int, reason: str) -> None:
    before = resource.getrlimit(kind)
    opened = workers_of(Pictures(), 16)
    resource.setrlimit(kind, (len(os.listdir("/proc/self/fd")) + 4, before[1]))
    try:
        with pytest.raises(UserError) as error:
            list(opened.read(evaluation_slots(40, 2, 0, 1)))
    finally:
        resource.setrlimit(kind, before)
    assert str(error.value).startswith("data.workers: worker ")
    assert str(error.value).endswith(f" of 16 cannot be started ({reason}): set fewer")
    assert not multiprocessing.active_children()


def test_workers_outlive_stop_signals() -> None:
    opened = workers_of(Pictures(), 2)
    reads = opened.read(slots())
    next(reads)
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            assert child.pid is not None
            os.kill(child.pid, number)
    assert len(list(reads)) == 9
    opened.close()


def test_workers_of_a_killed_process_end() -> None:
    script = textwrap.dedent("""
        import multiprocessing, os, signal
        from tests.data.test_workers import Pictures, slots, workers_of
        opened = workers_of(Pictures(), 2)
        reads = opened.read(slots())
        next(reads)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": "."}
    ) as process:
        assert process.stdout is not None
        # The workers hold the other end: it is read to its end when they are gone.
        assert len(process.stdout.read().split()) == 2
    assert process.returncode == -signal.SIGKILL


def test_workers_that_nobody_closed_do_not_hold_up_the_end() -> None:
    script = textwrap.dedent("""
        from tests.data.test_workers import Pictures, hang, slots, workers_of
        opened = workers_of(Pictures(30, hang), 3)
        reads = opened.read(slots())
        next(reads)
    """)
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": "."}, timeout=60
    )
    assert time.monotonic() - start < 30


def test_workers_can_be_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "START_METHOD", "spawn")
    opened = workers_of(Pictures(), 1)
    assert colours(opened) == list(range(40))
    opened.close()

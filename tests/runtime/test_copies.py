"""Copies beside what a GPU computes, and how long it waits for them. What needs a GPU is marked."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from vit_dist.runtime import copies as module
from vit_dist.runtime.copies import BatchWait, Copies

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_pinned_staged_or_made_ahead() -> None:
    copies = Copies(CPU, ahead=True)
    pixels = torch.arange(6, dtype=torch.uint8)
    assert not copies.ahead
    assert copies.staged(pixels) is pixels
    assert not copies.buffer(8).is_pinned()
    with copies.beside():
        assert copies.record() is None


def test_what_is_copied_ahead_stays_as_it_was() -> None:
    copies = Copies(CPU, ahead=True)
    copies.ahead = True
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    staged = copies.staged(pixels)
    expected = pixels.clone()
    pixels.zero_()
    assert torch.equal(staged, expected)


@dataclass
class Event:
    """A CUDA event by hand. at: when it happens, in ms; None: it has not yet."""

    at: float | None = None

    def query(self) -> bool:
        return self.at is not None

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None
        assert other.at is not None
        return other.at - self.at


def test_a_wait_on_cuda_is_what_lies_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []

    def record() -> Event:
        events.append(Event())
        return events[-1]

    monkeypatch.setattr(module, "_timed_event", record)
    wait = BatchWait(torch.device("cuda"))
    for _ in range(3):
        wait.start()
        wait.arrived()
        wait.ready()
    assert wait.seconds() == 0  # the device has not got there, and nobody waits for it
    for event, at in zip(events, (10, 14, 100, 100, 200), strict=False):
        event.at = at
    assert wait.seconds() == pytest.approx(0.004)
    events[5].at = 207
    assert wait.seconds() == pytest.approx(0.011)
    assert wait.seconds() == pytest.approx(0.011)


def test_events_of_a_long_interval_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr(module, "_timed_event", lambda: Event(float(next(clock))))
    wait = BatchWait(torch.device("cuda"))
    for _ in range(1000):
        wait.start()
        wait.arrived()
    assert len(wait._events) <= 65
    assert wait.seconds() == pytest.approx(1.0)


def test_on_a_cpu_a_wait_lasts_until_the_batch_is_ready() -> None:
    wait = BatchWait(CPU)
    before = time.perf_counter()
    wait.start()
    wait.arrived()
    assert wait.seconds() == 0
    wait.ready()
    assert 0 < wait.seconds() <= time.perf_counter() - before


@pytest.mark.gpu
def test_copies_are_pinned_and_arrive_whole() -> None:
    device = torch.device("cuda", 0)
    copies = Copies(device, ahead=True)
    for number in range(20):  # memory given back and taken again, while the device is behind
        pixels = torch.full((1 << 20,), number, dtype=torch.uint8)
        with copies.beside():
            staged = copies.staged(pixels)
            assert staged.is_pinned()
            there = staged.to(device, non_blocking=True)
            done = copies.record()
        copies.receive(done, there)
        sums = there.double().sum() * torch.ones(2000, 2000, device=device).mm(torch.ones(2000, 1, device=device))[0, 0]
        del staged, there
        assert sums.item() == number * 2**20 * 2000


@pytest.mark.gpu
def test_only_what_the_device_waits_is_a_wait() -> None:
    device = torch.device("cuda", 0)
    product = torch.randn(4096, 4096, device=device)

    def work() -> None:
        for _ in range(200):  # some tenths of a second
            torch.mm(product, product)

    work()
    torch.cuda.synchronize()
    wait = BatchWait(device)
    wait.start()
    time.sleep(0.1)  # the host makes a batch, and the device has nothing to do
    wait.arrived()
    torch.cuda.synchronize()
    idle = wait.seconds()
    assert idle >= 0.09
    work()
    wait.start()
    time.sleep(0.01)  # the same, hidden by the device's work
    wait.arrived()
    torch.cuda.synchronize()
    assert wait.seconds() - idle < 0.005

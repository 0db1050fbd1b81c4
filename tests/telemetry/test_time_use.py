"""The parts of a profile add up, and each instant is counted to the right one; events are as torch writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vit_dist.telemetry.time_use import PARTS, TimeUse, time_use

MAIN, ENGINE, NETWORK = 1, 2, 3


def host(name: str, start: float, end: float, *, tid: int = MAIN, cat: str = "user_annotation", **args: Any) -> Any:
    """An event on a thread of the host; times in ms."""
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "tid": tid,
        "ts": 1e3 * start,
        "dur": 1e3 * (end - start),
        "args": args,
    }


def kernel(number: int, name: str, start: float, end: float, *, launched: float, cat: str = "kernel") -> list[Any]:
    """An event on a GPU, and its launch by autograd's thread, as CUDA's traces have them."""
    return [
        host("cudaLaunchKernel", launched, launched, tid=ENGINE, cat="cuda_runtime", correlation=number),
        host(name, start, end, tid=7, cat=cat, correlation=number),
    ]


def check(use: TimeUse, expected: Mapping[str, float], seconds: float) -> None:
    """Check the parts in ms; those not named must be 0."""
    assert tuple(use.parts) == PARTS
    assert {name: 1e3 * value for name, value in use.parts.items()} == pytest.approx(
        {**dict.fromkeys(PARTS, 0.0), **expected}
    )
    assert 1e3 * use.seconds == pytest.approx(seconds)
    assert use.seconds == pytest.approx(sum(use.parts.values()))


def gpu_update(at: float = 0.0) -> list[Any]:
    """An update of 100 ms from `at` on: the host is ahead of the GPU, but for the last part."""

    def mark(name: str, start: float, end: float) -> Any:
        return host(name, at + start, at + end)

    number = int(at) * 10
    return [
        mark("update", 0, 60),
        mark("data wait", 0, 10),
        *kernel(number + 1, "Memcpy HtoD (Pinned -> Device)", at + 8, at + 12, launched=at + 8, cat="gpu_memcpy"),
        mark("augmentation", 10, 11),
        *kernel(number + 2, "elementwise", at + 12, at + 14, launched=at + 10.5),
        mark("forward", 11, 20),
        *kernel(number + 3, "gemm", at + 14, at + 34, launched=at + 15),
        mark("backward", 20, 30),
        *kernel(number + 4, "gemm", at + 34, at + 64, launched=at + 25),
        *kernel(number + 5, "ncclDevKernel_AllReduce_Sum", at + 60, at + 72, launched=at + 26),
        mark("optimizer", 50, 58),
        *kernel(number + 6, "multi_tensor_apply", at + 80, at + 95, launched=at + 55),
        *kernel(number + 7, "reduce", at + 96, at + 100, launched=at + 59),
        *kernel(number + 8, "Memcpy DtoH (Device -> Pinned)", at + 95, at + 96, launched=at + 56, cat="gpu_memcpy"),
    ]


def test_parts_of_a_gpu_are_those_that_launched_its_kernels() -> None:
    use = time_use(gpu_update())
    check(
        use,
        {
            "data wait": 4,  # while the batch is copied
            "augmentation": 2,
            "forward": 20,
            "backward": 30,
            "communication": 8,  # 4 of 12 were hidden
            "host": 8,
            "optimizer": 16,  # with the copy of a scalar to the host
            "other": 4,
        },
        92,  # from the first work on
    )
    assert (use.updates, use.on_device, use.kernels, use.copies) == (1, True, 6, 1)


def test_a_gpu_waits_for_data_only_where_it_is_idle_meanwhile() -> None:
    use = time_use([*gpu_update(), *gpu_update(100)])
    assert use.updates == 2
    # The second wait, from 100 to 110, finds the GPU idle, until the batch has come at 112.
    assert 1e3 * use.parts["data wait"] == pytest.approx(4 + 12)
    hidden = [*gpu_update(), host("data wait", 60, 95)]  # of which the GPU was idle from 72 to 80
    assert 1e3 * time_use(hidden).parts["data wait"] == pytest.approx(4 + 8)


def test_short_gaps_between_kernels_are_not_the_host_s() -> None:
    kernels = [
        *kernel(1, "gemm", 1.000, 2.000, launched=0.1),
        *kernel(2, "gemm", 1.500, 2.500, launched=0.2),
        *kernel(3, "gemm", 2.504, 3.000, launched=0.3),  # 4 µs later
        *kernel(4, "gemm", 3.006, 4.000, launched=0.4),  # 6 µs later
        *kernel(5, "ncclDevKernel", 4.001, 4.500, launched=0.5),
        *kernel(6, "gemm", 4.502, 5.000, launched=0.6),
    ]
    use = time_use([host("update", 0, 1), host("forward", 0, 1), *kernels])
    check(use, {"forward": 3.488, "communication": 0.499, "gaps": 0.007, "host": 0.006}, 4)


def test_pauses_count_for_nothing() -> None:
    evaluation = [host("paused", 100, 300), *kernel(99, "gemm", 110, 290, launched=105)]
    with_pause = time_use([*gpu_update(), *evaluation, *gpu_update(300)])
    without = time_use([*gpu_update(), *gpu_update(100)])
    assert with_pause.parts == pytest.approx(without.parts)


def test_without_a_gpu_parts_are_those_that_the_host_is_in() -> None:
    events = [
        host("update", 0, 100),
        host("data wait", 0, 5),
        host("augmentation", 5, 8),
        host("forward", 8, 30),
        host("aten::mm", 9, 29, cat="cpu_op"),
        host("gloo:all_reduce", 10, 12, tid=NETWORK),  # hidden: the host computes
        host("backward", 30, 80),
        host("aten::mm", 30, 60, cat="cpu_op"),
        host("gloo:all_reduce", 50, 75, tid=NETWORK),  # of which 10 ms are hidden
        host("aten::copy_", 70, 71, cat="cpu_op"),
        host("optimizer", 82, 97),
        host("forward", 30, 31, tid=ENGINE),  # of somebody else
    ]
    expected = {"data wait": 5, "augmentation": 3, "forward": 22, "backward": 36, "communication": 14, "optimizer": 15}
    use = time_use(events)
    check(use, {**expected, "host": 5}, 100)
    assert (use.updates, use.on_device, use.kernels, use.copies) == (1, False, 0, 0)
    later = [{**event, "ts": event["ts"] + 150e3} for event in events]
    check(
        time_use([*events, host("paused", 100, 140), *later]),
        {**{k: 2 * v for k, v in expected.items()}, "host": 20},
        210,
    )


def test_a_trace_without_updates_is_empty() -> None:
    check(time_use([host("forward", 0, 1), {"ph": "M", "name": "thread_name"}]), {}, 0)

"""The runtime: precision, devices, threads, signals, values from rank 0."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.processes import run_world
from vit_dist.config.fields import RunConfig
from vit_dist.errors import UserError
from vit_dist.runtime.devices import available_cores
from vit_dist.runtime.runtime import Runtime


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train.precision: fp16 needs a CUDA GPU: set bf16 or fp32$"):
        Runtime(RunConfig(device="cpu"), "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"^run.device: no cuda device here: set run.device auto or cpu$"):
        Runtime(RunConfig(device="cuda"))


def test_threads_are_set_and_can_be_chosen() -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1))
    assert (runtime.threads, torch.get_num_threads()) == (1, 1)
    runtime.end()
    runtime = Runtime(RunConfig(device="cpu"))
    assert torch.get_num_threads() == runtime.threads == available_cores()
    assert (runtime.rank, runtime.world_size, runtime.precision) == (0, 1, "fp32")
    runtime.end()


def test_one_signal_requests_a_stop_and_a_second_interrupts() -> None:
    runtime = Runtime(RunConfig(device="cpu"))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with runtime.flags.on_signals():
        assert not runtime.flags.agreed().stop
        os.kill(os.getpid(), signal.SIGINT)
        assert runtime.flags.agreed().stop
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    runtime.end()


def test_dropout_draws_from_the_seed() -> None:
    runtime = Runtime(RunConfig(device="cpu"))
    runtime.seed(5)
    first = torch.rand(3)
    torch.rand(7)
    runtime.seed(5)
    assert torch.equal(torch.rand(3), first)
    assert runtime.copy_scalar_async(torch.tensor(2.5))() == 2.5
    runtime.end()


def values_on_each_rank() -> dict[str, Any]:
    runtime = Runtime(RunConfig(device="cpu", threads=1))
    order: list[bool] = []
    with runtime.flags.on_signals():
        for update in range(4):
            if update == 1 and runtime.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            order.append(runtime.flags.agreed().stop)
    value = {"rank": runtime.rank, "text": "é" * 10, "none": None} if runtime.rank == 0 else "not this"
    result = {
        "value": runtime.broadcast(value),
        "stops": order,
        "sum": runtime.all_reduce_sum(torch.tensor([1.5, runtime.rank], dtype=torch.float64)).tolist(),
        "device": runtime.device.type,
    }
    runtime.end()
    return result


def test_ranks_agree(tmp_path: Path) -> None:
    for result in run_world(3, values_on_each_rank, tmp_path):
        assert result["value"] == {"rank": 0, "text": "é" * 10, "none": None}
        # Requested at update 1 on one rank, read at update 2 on all.
        assert result["stops"] == [False, False, True, True]
        assert result["sum"] == [4.5, 3.0]
        assert result["device"] == "cpu"


def results_of_run_on_main() -> dict[str, Any]:
    runtime = Runtime(RunConfig(device="cpu", threads=1))
    ran: list[str] = []

    def work() -> dict[str, Any]:
        ran.append("work")
        return {"by": runtime.rank, "text": "é" * 10, "none": None}

    def fail() -> None:
        ran.append("fail")
        raise UserError(f"run.dir: rank {runtime.rank} of é cannot write:\nset another")

    result: dict[str, Any] = {"value": runtime.run_on_main(work)}
    try:
        runtime.run_on_main(fail)
    except UserError as error:
        result["error"] = str(error)
    # The ranks are still in step, and None is a value too.
    result["nothing"] = runtime.run_on_main(lambda: ran.append("last"))
    result["ran"] = ran
    runtime.end()
    return result


@pytest.mark.parametrize("world", [1, 2])
def test_run_on_main_returns_its_result_or_error_on_all_ranks(world: int, tmp_path: Path) -> None:
    results = run_world(world, results_of_run_on_main, tmp_path)
    assert len(results) == world
    for rank, result in enumerate(results):
        assert result["value"] == {"by": 0, "text": "é" * 10, "none": None}
        assert result["error"] == "run.dir: rank 0 of é cannot write:\nset another"
        assert result["nothing"] is None
        assert result["ran"] == (["work", "fail", "last"] if rank == 0 else [])


def results_of_run_on_all() -> dict[str, Any]:
    runtime = Runtime(RunConfig(device="cpu", threads=1))

    def work(failing: tuple[int, ...]) -> int:
        if runtime.rank in failing:
            raise UserError(f"data.root: rank {runtime.rank} has none")
        return runtime.rank * 10

    result: dict[str, Any] = {"values": runtime.gather({"é" * runtime.rank: runtime.rank}), "errors": []}
    result["own"] = [runtime.run_on_all(lambda: work(())), runtime.run_main_first(lambda: work(()))]
    for failing in ((1,), (0, 1), (0,)):
        for run in (runtime.run_on_all, runtime.run_main_first):
            with pytest.raises(UserError) as caught:
                run(lambda ranks=failing: work(ranks))  # type: ignore[misc]
            result["errors"].append(str(caught.value))
    runtime.end()
    return result


def test_an_error_of_any_rank_is_raised_on_all(tmp_path: Path) -> None:
    for rank, result in enumerate(run_world(2, results_of_run_on_all, tmp_path)):
        assert result["values"] == [{"": 0}, {"é": 1}]
        assert result["own"] == [rank * 10, rank * 10]
        first, second = "data.root: rank 0 has none", "data.root: rank 1 has none"
        elsewhere = f"process 1 on {socket.gethostname()}: {second}"
        assert result["errors"] == [elsewhere, elsewhere, first, first, first, first]


def test_run_on_main_raises_other_errors_as_they_are() -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1))

    def fail() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        runtime.run_on_main(fail)
    runtime.end()


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_runs_precision(precision: str, kind: torch.dtype) -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1), precision)
    module = nn.Linear(2, 2)
    with runtime.autocast():
        assert module(torch.zeros(1, 2)).dtype == kind
    assert module(torch.zeros(1, 2)).dtype == torch.float32
    runtime.end()


def test_deterministic_algorithms_last_as_long_as_the_run() -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1, deterministic=True), "fp32")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    runtime.end()
    assert not torch.are_deterministic_algorithms_enabled()


def _uses_another_precision_on_each_rank() -> str:
    runtime = Runtime(RunConfig(device="cpu"), None)
    try:
        runtime.use_precision("fp32" if runtime.rank == 0 else "bf16", "cpu")  # as auto may, on two kinds of GPU
    except UserError as error:
        return str(error)
    finally:
        runtime.end()
    return ""


def test_all_ranks_compute_in_one_precision_or_none_does(tmp_path: Path) -> None:
    first, second = run_world(2, _uses_another_precision_on_each_rank, tmp_path)
    assert first == second
    where = f"fp32 on process 0 and bf16 on process 1 ({socket.gethostname()})"
    assert first == f"train.precision: auto is {where}: set one that all of them have"


def _ends_where_another_is_gone() -> str:
    runtime = Runtime(RunConfig(device="cpu"))
    runtime.flags.agreed()
    runtime.barrier()
    if runtime.rank == 1:
        return "gone"
    runtime.flags.agreed()
    runtime.end()
    return "ended"


def test_a_process_that_is_gone_does_not_make_the_end_fail(tmp_path: Path) -> None:
    assert run_world(2, _ends_where_another_is_gone, tmp_path) == ["ended", "gone"]


class _AddedInAnyOrder(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].put_(torch.tensor([0]), torch.ones(1))


def test_an_operation_that_is_not_deterministic_is_named_in_one_line() -> None:
    runtime = Runtime(RunConfig(device="cpu", deterministic=True), "fp32")
    try:
        x = torch.zeros(3, requires_grad=True)
        with pytest.raises(UserError) as refused, runtime.gradient_sync(nn.Identity(), last=True):
            runtime.backward(_AddedInAnyOrder.apply(x).sum())
        assert str(refused.value) == (
            "run.deterministic: the model needs put_, which can add up in any order on cpu: set run.deterministic "
            "false, or another model"
        )
        with pytest.raises(RuntimeError, match=r"^another"), runtime.gradient_sync(nn.Identity(), last=True):
            raise RuntimeError("another")
    finally:
        runtime.end()

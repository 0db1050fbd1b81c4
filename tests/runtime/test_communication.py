"""The timer of exposed communication, on real processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.processes import run_world
from vit_dist.config.fields import RunConfig
from vit_dist.runtime.communication import CommunicationTimer
from vit_dist.runtime.runtime import Runtime

UPDATES, LATE, DELAY = 14, 12, 0.4


def exposed_times(folder: str) -> list[dict[str, Any]]:
    """Make updates of a small model; in update LATE, rank 1 begins its backward pass DELAY after rank 0's has ended."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    bare = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    model = runtime.prepare(bare)
    timer = CommunicationTimer(model)
    assert timer.every_update
    assert timer.read() is None
    mark = Path(folder) / "rank 0 has its gradients"
    results = []
    for update in range(1, UPDATES + 1):
        for micro_batch in range(2):
            with runtime.gradient_sync(model, last=micro_batch == 1):
                loss = model(torch.ones(4, 8)).sum()
                if micro_batch == 1 and update == LATE:
                    if runtime.rank == 0:
                        bare[0].weight.register_post_accumulate_grad_hook(lambda _: mark.touch())
                    else:
                        while not mark.exists():
                            time.sleep(0.001)
                        time.sleep(DELAY)
                start = time.perf_counter()
                loss.backward()
                wall = time.perf_counter() - start
        exposed = timer.read()
        data = model._get_ddp_logging_data()
        by_ddp = (data["backward_comm_time"] - data["backward_compute_comm_overlap_time"]) * 1e-9
        results.append({"exposed": exposed, "ddp": by_ddp, "wall": wall, "again": timer.read()})
    timer.time_next(False)
    model(torch.ones(4, 8)).sum().backward()
    results.append({"untimed": timer.read()})
    runtime.end()
    return results


def test_the_exposed_communication_of_every_update_is_known(tmp_path: Path) -> None:
    first, second = run_world(2, exposed_times, tmp_path / "results", str(tmp_path))
    for rank in (first, second):
        assert rank.pop() == {"untimed": None}
        for update in rank:
            assert update["exposed"] == update["ddp"]
            assert 0 < update["exposed"] <= update["wall"]
            assert update["again"] is None
    # The one that is early waits; the other one does not wait for it.
    assert first[LATE - 1]["exposed"] > 0.75 * DELAY
    assert second[LATE - 1]["exposed"] < first[LATE - 1]["exposed"]


def test_a_model_that_is_not_wrapped_has_no_communication() -> None:
    timer = CommunicationTimer(nn.Linear(2, 2))
    timer.time_next(True)
    assert timer.read() is None

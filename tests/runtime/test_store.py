"""Ranks agree on a name for each run, whatever earlier ones left in the store."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from tests.processes import run_world
from vit_dist.config.fields import RunConfig
from vit_dist.errors import UserError
from vit_dist.runtime import store
from vit_dist.runtime.runtime import Runtime
from vit_dist.runtime.store import agree_on_name


def names(store: TCPStore, size: int) -> list[str]:
    clients = [TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=20)) for _ in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: agree_on_name(clients[rank], rank, size, 20.0), range(size)))


def test_each_run_has_a_name_that_all_ranks_share() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # What processes of an earlier start have left, who knocked and were answered.
    store.set("vit_dist/1", "old")
    store.set("vit_dist/1/old", "old name")
    store.set("vit_dist/old name/1", "here")
    store.set("vit_dist/2", "old too")
    seen = [names(store, 3) for _ in range(3)]
    assert all(len(set(run)) == 1 for run in seen)
    assert len({run[0] for run in seen}) == 3
    assert "old name" not in {run[0] for run in seen}


def test_who_does_not_arrive_is_named() -> None:
    with pytest.raises(UserError, match=r"^of 3 processes these did not arrive within 0 s: 1, 2$"):
        agree_on_name(HashStore(), 0, 3, 0.1)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(UserError, match=r"^process 0 of 3 did not arrive within 0 s$"):
        agree_on_name(store, 1, 3, 0.1)


def three_runs() -> list[float]:
    """Return a sum over the ranks in each of three runs of one world."""
    sums = []
    for number in range(3):
        runtime = Runtime(RunConfig(device="cpu", threads=1))
        sums.append(float(runtime.all_reduce_sum(torch.tensor(float(runtime.rank + number))).item()))
        runtime.end()
    return sums


def test_one_world_trains_one_run_after_another(tmp_path: Path) -> None:
    assert run_world(2, three_runs, tmp_path) == [[1.0, 3.0, 5.0], [1.0, 3.0, 5.0]]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_alone_says_where_the_others_should_meet_it(
    rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(store, "_LONGEST_WAIT", 1.0)
    for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        store._world_store.__wrapped__()
    start = (
        f"process {rank} on {socket.gethostname()}: the 2 processes have not all met at 127.0.0.1:{port} within 1 s ("
    )
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("): see that all are started, and the network")
    assert "\n" not in str(error.value)

"""Run a function in several real processes, as the ranks of a gloo process group."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "accelerate", "torchvision.transforms.v2", "vit_dist.training.loop"])


def run_world(size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return what `function(*arguments)` returns on ranks 0 … size-1, in that order.

    The results pass through JSON files in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        _CONTEXT.Process(target=_run_rank, args=(rank, size, port, function, folder / f"{rank}.json", arguments))
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * size
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _run_rank(rank: int, size: int, port: int, function: Callable[..., Any], path: Path, arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    path.write_text(json.dumps(function(*arguments)))

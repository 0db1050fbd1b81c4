"""A store for each run of a launched world, under a name that its ranks agree on.

A process group keeps its addresses in a store that outlives it: the launcher's, or one that the first run of a script
opened. Without a name of its own, the next run there would read the addresses of the one before.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import MutableMapping
from datetime import timedelta
from functools import cache
from typing import Any

from torch.distributed import DistError, DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vit_dist.errors import UserError, one_line

_PREFIX = "vit_dist"
_LONGEST_WAIT = 300.0  # seconds, for all processes to arrive
_PAUSE = 0.01


def own_store(environ: MutableMapping[str, str]) -> dict[str, Any]:
    """Return what makes the process group of a launched world use a store of this run's; nothing without a launcher.

    Raises UserError if a process does not arrive within five minutes.
    """
    if "LOCAL_RANK" not in environ:
        return {}
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    store = _world_store()
    name = agree_on_name(store, rank, world_size, _LONGEST_WAIT)
    own = PrefixStore(f"{_PREFIX}/{name}", store)
    return {"store": own, "rank": rank, "world_size": world_size}


@cache
def _world_store() -> Store:
    """Return the store that the environment names; it lives as long as the process. Raises UserError."""
    try:
        store: Store = next(rendezvous("env://", timeout=timedelta(seconds=_LONGEST_WAIT)))[0]
    except DistError as error:  # it cannot be reached, or not all have come
        rank, place = os.environ["RANK"], f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"process {rank} on {socket.gethostname()}: the {os.environ['WORLD_SIZE']} processes have not all met at "
            f"{place} within {_LONGEST_WAIT:.0f} s ({one_line(error, 120)}): see that all are started, and the network"
        ) from None
    return store


def agree_on_name(store: Store, rank: int, world_size: int, seconds: float) -> str:
    """Return a name that rank 0 draws, on every rank.

    Each of the others draws a number of its own and believes only an answer to that number, so nothing that earlier
    runs or processes left in the store is taken for this run's. Raises UserError after so many seconds.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(_key(rank), own)
        try:
            store.wait([_key(rank, own)], timedelta(seconds=seconds))
        except DistStoreError:
            raise UserError(f"process 0 of {world_size} did not arrive within {seconds:.0f} s") from None
        name: str = store.get(_key(rank, own)).decode()
        store.set(_key(name, rank), "here")
        return name
    answered: dict[int, bytes] = {}
    missing = set(range(1, world_size))
    deadline = time.monotonic() + seconds
    while missing:
        for other in sorted(missing):
            if store.check([_key(own, other)]):
                missing.discard(other)
            elif store.check([_key(other)]) and store.get(_key(other)) != answered.get(other):
                answered[other] = store.get(_key(other))
                store.set(_key(other, answered[other].decode()), own)
        if missing and time.monotonic() > deadline:
            late = ", ".join(map(str, sorted(missing)))
            raise UserError(f"of {world_size} processes these did not arrive within {seconds:.0f} s: {late}")
        time.sleep(_PAUSE)
    return own


def _key(*parts: object) -> str:
    return "/".join(map(str, (_PREFIX, *parts)))

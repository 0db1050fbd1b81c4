"""The order of samples in shards: how well it mixes against a full shuffle, and what it costs at any size.

python benchmarks/shards.py
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.data.shards.index import INDEX, TYPES, Shard, ShardIndex, load_columns, write_index
from vit_dist.data.shards.source import ShardSource, open_index
from vit_dist.data.shards.storage import LocalFolder
from vit_dist.plan.blocks import BlockOrder
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute

IMAGES, CLASSES, SHARDS, BATCH = 1_281_167, 1000, 1_100, 1024


def quality() -> None:
    """Print how two epochs of an ImageNet in shards are mixed, in batches of 1,024."""
    sizes = np.full(SHARDS, IMAGES // SHARDS, np.int64)
    sizes[: IMAGES % SHARDS] += 1
    shard = np.repeat(np.arange(SHARDS), sizes)
    by_class = np.arange(IMAGES) * CLASSES // IMAGES
    packed = by_class[permute(np.arange(IMAGES), IMAGES, key(0, Purpose.SHARDS))]
    print(f"{IMAGES:,} images of {CLASSES} classes in {SHARDS:,} shards, batches of {BATCH}")
    print("order                     shards    pairs of   images of epoch 0's   variance of class counts, of chance's")
    print("                          in batch  one shard  batch together again  packed by us   sorted by class")
    orders: dict[str, Any] = {"full shuffle": None}
    for lanes, window in ((1, 1), (1, 4), (1, 16), (1, 64), (8, 16), (8, 64), (32, 64), (64, 64)):
        orders[f"window {window}, lanes {lanes}"] = BlockOrder(
            sizes, seed=0, global_size=BATCH, lanes=lanes, window=window
        )
    for name, order in orders.items():
        batches = IMAGES // BATCH
        places = np.arange(2 * IMAGES)
        if order is None:
            every = np.concatenate(
                [permute(np.arange(IMAGES), IMAGES, key(0, Purpose.ORDER, epoch)) for epoch in (0, 1)]
            )
        else:
            every = order.indices(places)
        first = every[: batches * BATCH].reshape(batches, BATCH)
        shards = shard[first]
        distinct = np.mean([len(np.unique(row)) for row in shards])
        same = np.mean([_pairs(np.bincount(row)) for row in shards]) / (BATCH * (BATCH - 1) / 2)
        batch_of = np.full(IMAGES, -1)
        batch_of[first.ravel()] = np.repeat(np.arange(batches), BATCH)
        second = every[IMAGES : IMAGES + batches * BATCH].reshape(batches, BATCH)
        again = np.mean([_pairs(np.bincount(row[row >= 0])) for row in batch_of[second]])
        print(
            f"{name:<25} {distinct:8.1f}  {same:9.5f}  {again:20.2f}  "
            f"{_balance(packed[first]):12.3f}   {_balance(by_class[first]):15.3f}"
        )


def _pairs(counts: Any) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _balance(labels: Any) -> float:
    """Return the variance of the counts of classes in batches, as a multiple of that of drawing without repetition."""
    counts = np.stack([np.bincount(row, minlength=CLASSES) for row in labels])
    share = 1 / CLASSES
    chance = BATCH * share * (1 - share) * (IMAGES - BATCH) / (IMAGES - 1)
    return float(((counts - BATCH * share) ** 2).mean() / chance)


def scale() -> None:
    """Print what order and index cost at any number of samples in 100,000 shards, each in a process of its own."""
    print("\n100,000 shards, lanes 64, window 64, batches of 4,096: micro-batches of 64; CPU time")
    print("samples         order   first     next ones  index     one image's   most memory, of which")
    print("                made    micro-b.             opened    place         before all that")
    for samples in (10**5, 10**6, 10**7, 10**8, 10**9):
        process = multiprocessing.get_context("fork").Process(target=_scale_of, args=(samples,))
        process.start()
        process.join()


def _scale_of(samples: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    sizes = np.full(100_000, samples // 100_000, np.int64)
    order = BlockOrder(sizes, seed=0, global_size=4096, lanes=64, window=64)
    made = time.process_time() - start
    places = [position * 4096 + np.arange(64) for position in range(3 * samples // 4096, 3 * samples // 4096 + 200)]
    start = time.process_time()
    rows = [order.indices(places[0])]
    first = time.process_time() - start
    start = time.process_time()
    rows += [order.indices(each) for each in places[1:]]
    following = (time.process_time() - start) / 199
    opened, place = _index_costs(samples, np.concatenate(rows).tolist())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{samples:<15,} {made * 1e3:3.0f} ms  {first * 1e3:4.1f} ms  {following * 1e3:6.2f} ms  "
        f"{opened * 1e3:5.0f} ms  {place * 1e6:8.1f} µs  {memory:8.0f} MiB, {before:.0f}"
    )


def _index_costs(samples: int, rows: list[int]) -> tuple[float, float]:
    """Return the seconds to open an index whose columns are files of zeros, and to look up the place of an image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = tuple(
            Shard(f"train-{number:06d}.tar", "train", samples // 100_000, 2**27, "0" * 64) for number in range(100_000)
        )
        empty = {column: np.zeros(0, dtype) for column, dtype in TYPES.items()}
        write_index(folder, ShardIndex(("a", "b"), shards, empty, None))
        for column, dtype in TYPES.items():
            np.lib.format.open_memmap(folder / "index" / f"{column}.npy", "w+", dtype, (samples,))
        start = time.process_time()
        index = open_index(folder)
        source = ShardSource(index, LocalFolder(folder))
        opened = time.process_time() - start
        start = time.process_time()
        for row in rows:
            source._place(row)
        place = (time.process_time() - start) / len(rows)
        assert len(load_columns(folder)) == len(TYPES)
        assert (folder / INDEX).is_file()
    return opened, place


if __name__ == "__main__":
    scale()
    quality()

"""Read the stream of any data as the ranks of a world do, each with its own view of the data."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vit_dist.config.config import Config
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.shards.source import shard_sizes
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.stream import Stream
from vit_dist.plan.plan import Plan

FIELDS = {
    "run.auto": [], "data.image_size": 16, "augment.crop_min": 0.4, "augment.flip": 0.5, "schedule.warmup": "0%",
    "train.duration": "2 epochs", "batch.global_size": 16, "batch.micro_size": 4,
}  # fmt: skip


def read_stream(
    open_it: Callable[[], LabelledSplits],
    fields: dict[str, Any],
    *,
    world: int = 1,
    workers: int = 0,
    start: int = 0,
    end: int | None = None,
) -> tuple[dict[str, Tensor], list[LabelledSplits]]:
    """Return ids, images and targets of global batches `start` … `end` (None: all), and the data as each rank has it.

    open_it: opens the data, once for each rank.
    """
    config = Config.load("folder", {**FIELDS, **fields})
    every = [open_it() for _ in range(world)]
    train = every[0].splits["train"]
    plan = Plan.from_config(config, len(train), world, shard_sizes(train))
    preprocessing = Preprocessing(16, every[0].mean, every[0].std)
    streams = []
    for rank, data in enumerate(every):
        runtime: Any = SimpleNamespace(
            rank=rank, world_size=world, device=torch.device("cpu"), to_device=lambda tensor: tensor
        )
        streams.append(Stream(data.splits["train"], plan, preprocessing, config.augment, runtime, workers=workers))
    found: dict[str, list[Tensor]] = {"ids": [], "images": [], "targets": []}
    for position in range(start, plan.updates if end is None else end):
        windows = [[(b.ids, b.images, b.targets, b.weights) for b in stream.window(position)] for stream in streams]
        for of_ranks in zip(*windows, strict=True):
            for ids, images, targets, weights in of_ranks:
                real = weights > 0
                found["ids"].append(ids[real])
                found["images"].append(images[real].clone())
                found["targets"].append(targets[real])
    for stream in streams:
        stream.close()
    return {name: torch.cat(parts) for name, parts in found.items()}, every


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert equality to the bit."""
    for name, values in expected.items():
        assert torch.equal(actual[name], values), name

"""Hold what the parts share: the device, sizes of models, the time that is left, and seconds by the device's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import Stream
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.losses import Loss
from vit_dist.training.update import Updater

SKIPPED = {"skipped": "no GPU"}
Found = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """device: to measure. small: tiny models, to try the parts on a CPU. left: seconds left. results: by part."""

    device: torch.device
    small: bool
    left: Callable[[], float]
    results: Mapping[str, Any]

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def side(self) -> int:
        """Return the images' side in pixels."""
        return 32 if self.small else 224

    @property
    def names(self) -> list[str]:
        """Return the models."""
        return ["vit_tiny"] if self.small else ["vit_small", "vit_base", "vit_large"]

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], least: float = 0.2, warm: int = 3) -> float:
        """Return seconds of one call, by the device's clock, over at least `least` seconds."""
        for _ in range(1 if self.small else warm):
            function()
        self.sync()
        began = time.perf_counter()
        function()
        self.sync()
        # So many calls, fixed beforehand: the host runs ahead of the device, and its clock would let it issue for
        # minutes.
        least = least / 10 if self.small else least
        count = max(2, min(20_000, int(least / max(time.perf_counter() - began, 1e-6))))
        began = time.perf_counter()
        if not self.cuda:
            for _ in range(count):
                function()
            return (time.perf_counter() - began) / count
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(count):
            function()
        last.record()
        self.sync()
        return first.elapsed_time(last) / 1e3 / count

    def model(self, name: str, **more: Any) -> ViT:
        """Return a model on the device."""
        sizes = {"width": 48, "depth": 2, "heads": 3} if self.small else PRESETS[name]
        with torch.device(self.device):
            return ViT(
                image_size=self.side, patch_size=8 if self.small else 16, channels=3, classes=1000, **{**sizes, **more}
            )

    def noise(self, count: int, classes: int = 1000, side: int = 0) -> MemorySource:
        """Return a source of random images."""
        draw, side = np.random.default_rng(0), side or self.side
        return MemorySource(
            draw.integers(0, 256, (count, 3, side, side), dtype=np.uint8), draw.integers(0, classes, count)
        )


@contextmanager
def runtime_of(run: RunConfig, precision: str) -> Iterator[Runtime]:
    """Return the runtime of a block, which ends with it."""
    runtime = Runtime(run, precision)
    try:
        yield runtime
    finally:
        runtime.end()


def updater_of(
    config: Config, plan: Plan, runtime: Runtime, module: nn.Module, *, loss: Any = None, ema: float = 0.0
) -> Updater:
    """Return the update over a model; ema: the average's decay, 0 for none."""
    prepared = runtime.prepare(module)
    prepared.train()
    optimizer = build_optimizer(config.optimizer, module, config.optimizer.lr)
    schedule = Schedule(config.schedule, optimizer, plan, config.optimizer.lr)
    average = EMA(module, ema) if ema else None
    values: Any = {"clip_norm": config.optimizer.clip_norm, "average": average}
    return Updater(prepared, loss or Loss(config.loss), optimizer, schedule, TrainState(), runtime, **values)


def stream_of(config: Config, source: MemorySource, plan: Plan, runtime: Any, side: int, **values: Any) -> Stream:
    """Return the stream of a source in memory, at a side, with means and deviations of 0.5."""
    form = Preprocessing(side, (0.5,) * source.pixels.shape[1], (0.5,) * source.pixels.shape[1])
    return Stream(all_of(source), plan, form, config.augment, runtime, workers=0, **values)


def update(updater: Updater, stream: Stream, plan: Plan, position: int) -> None:
    """Make the update at a position."""
    updater.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))


def failure(error: BaseException) -> str:
    """Return an error in one short line."""
    return f"{type(error).__name__}: {str(error)[:200]}"

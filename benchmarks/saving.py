"""Measure how long a save holds up training, and how long it takes in all.

    python benchmarks/saving.py [--models vit_small,vit_base,vit_large] [--folder DIR] [--saves 4]

Each model has AdamW's moments and an average of its weights. Prints the size of a checkpoint and, for the first save
(whose host memory is fresh) and the median of the others, seconds: to begin it, for which the loop stands still; until
the copy is made, for which the next optimizer step waits if its forward and backward passes are not longer; until the
checkpoint has its name.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vit_dist.checkpointing.checkpointer import Checkpointer
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.formatting import size_text
from vit_dist.models.build import build_model
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime


def measure(name: str, folder: Path, saves: int, runtime: Runtime) -> str:
    """Save a model several times; return a row of the table."""
    config = Config.load("imagenet_vit_s16_90ep", {"model.name": name, "train.ema": 0.999})
    model = build_model(config.model, classes=1000, channels=3, image_size=224, seed=0).to(runtime.device)
    optimizer = build_optimizer(config.optimizer, model, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    schedule = Schedule(config.schedule, optimizer, Plan.from_config(config, 1_281_167, 1), 1e-3)
    state = TrainState()
    checkpointer = Checkpointer(folder, 1, runtime, model, optimizer, schedule, EMA(model, 0.999), state, {})
    rows = []
    for position in range(1, saves + 1):
        state.position = position
        marks = [time.perf_counter()]
        for step in (checkpointer.save, checkpointer.wait_for_copy, checkpointer.wait):
            step()
            marks.append(time.perf_counter())
        rows.append([mark - marks[0] for mark in marks[1:]])
    (*_, (_, values)) = checkpointer.take_written()
    columns = list(zip(*rows[1:], strict=True))
    figures = [
        number for column, first in zip(columns, rows[0], strict=True) for number in (first, statistics.median(column))
    ]
    return f"{name:<10} {size_text(values['bytes']):>10}" + "".join(f"{figure:10.3f}" for figure in figures)


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="vit_small,vit_base,vit_large")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--saves", type=int, default=4)
    arguments = parser.parse_args()
    runtime = Runtime(RunConfig(), "fp32")
    print("model            size     begin     later    copied     later     whole     later")
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(measure(name, Path(folder), arguments.saves, runtime), flush=True)
    runtime.end()


if __name__ == "__main__":
    main()

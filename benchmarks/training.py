"""The trainer's own loop, a few updates at a time, with neither checkpoints nor evaluations: for benchmarks."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

from vit_dist.cli.arguments import parse_arguments
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.training.loop import loop
from vit_dist.training.resolve import resolve
from vit_dist.training.resume import ResumePoint
from vit_dist.training.setup import setup


class Training:
    """A run that was set up as `train` does it: `vit_dist.training.loop.loop` makes its updates and logs them."""

    def __init__(self, words: list[str], *, runtime: Runtime | None = None, most: int = 1_000_000) -> None:
        """words: of the command line of `train`. runtime: one to share. most: updates that can be made in all."""
        self._folder = tempfile.TemporaryDirectory()
        own = ["--run.dir", self._folder.name, "--train.duration", f"{most} updates", "--log.trackers", "none"]
        own += ["--data.val_fraction", "0", "--schedule.warmup", "0 updates", "--checkpoint.every", f"{most} updates"]
        config = parse_arguments("train", [*own, *words]).load_config()
        self._own_runtime = runtime is None
        self.runtime = runtime or Runtime(config.run, config.train.precision)
        self.trainer = setup(resolve(config), self.runtime, Console(speaks=False), ResumePoint(), None)
        self.trainer.evaluation_streams.clear()
        self.trainer.save = lambda: None  # type: ignore[method-assign]
        self.components = self.trainer.components

    @property
    def batch(self) -> int:
        """Return the images of an update."""
        return self.components.config.batch.global_size

    def run(self, updates: int) -> int:
        """Make so many updates, wait for the device, and return how many images they took."""
        trainer = self.trainer
        plan = dataclasses.replace(self.components.plan, updates=trainer.state.position + updates)
        trainer.components = dataclasses.replace(self.components, plan=plan)
        trainer.clock = trainer.meter.clock = Clock(trainer.clock.seconds)
        loop(trainer)
        self.runtime.synchronize()
        return updates * self.batch

    def close(self) -> None:
        """End workers and files, and the runtime unless it is shared."""
        self.trainer.close()
        if self._own_runtime:
            self.runtime.end()
        self._folder.cleanup()

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

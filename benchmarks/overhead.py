"""Compare the whole trainer with a bare PyTorch loop of the same model, batch and precision, in turn.

    python benchmarks/overhead.py [--config RECIPE] [--updates 10] [--rounds 20] [--section.field VALUE …]

The trainer's side is `vit_dist.training.loop.loop` itself: stream, augmentation, exact update, logging; checkpoints and
evaluations are left out on both sides. The bare loop indexes images that were normalised beforehand. Prints the
images/s of each round, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import sys
import tempfile
import time

import torch
from torch.nn import functional as F

from vit_dist.cli.arguments import parse_arguments
from vit_dist.data.sources.source import decoded
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.training.loop import loop
from vit_dist.training.resolve import resolve
from vit_dist.training.resume import ResumePoint
from vit_dist.training.setup import setup
from vit_dist.training.trainer import Trainer


class BareLoop:
    """The loop that one would write for one device, and nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        components, runtime = trainer.components, trainer.runtime
        subset, preprocessing = components.data.splits["train"], components.preprocessing
        held = decoded(subset.source)
        assert held is not None, "the bare loop needs images in memory"
        mean, std = torch.tensor(preprocessing.mean)[:, None, None], torch.tensor(preprocessing.std)[:, None, None]
        pixels = torch.from_numpy(held[subset.indices])
        self.images = ((pixels / 255 - mean) / std).to(runtime.device)
        self.labels = torch.from_numpy(subset.labels).to(runtime.device)
        self.model = copy.deepcopy(components.model).train()
        config = components.config
        self.config, self.size = config, config.batch.global_size
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optimizer.lr, fused=True)
        self.autocast = torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 1.0)

    def run(self, updates: int) -> float:
        """Return the seconds of so many updates, with the loss read every `log_every` as the trainer does."""
        order = torch.randperm(len(self.labels))
        start = time.perf_counter()
        for update in range(updates):
            index = order[(update * self.size) % (len(order) - self.size) :][: self.size]
            with self.autocast:
                logits = self.model(self.images[index])
            loss = F.cross_entropy(logits.float(), self.labels[index], label_smoothing=self.config.loss.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm or float("inf"))
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10, help="updates of one side in one round")
    parser.add_argument("--rounds", type=int, default=20)
    own, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        total = own.updates * (own.rounds + 1)
        settings = ["--run.dir", folder, "--train.duration", f"{total} updates", "--data.val_fraction", "0"]
        settings += ["--log.every", f"{own.updates} updates", "--checkpoint.every", f"{total} updates"]
        settings += ["--log.trackers", "none", "--schedule.warmup", "0 updates"]
        config = parse_arguments("train", [*settings, *rest]).load_config()
        runtime = Runtime(config.run, config.train.precision)
        trainer = setup(resolve(config), runtime, Console(speaks=False), ResumePoint(), None)
        trainer.evaluation_streams.clear()
        bare = BareLoop(trainer)
        trainer.save = lambda: None  # type: ignore[method-assign]
        components = trainer.components
        size = config.batch.global_size
        ratios = []
        print(f"{config.model.name}, {components.parameters:,} parameters, batch {size}, {runtime.precision}, "
              f"{runtime.device_name}, {runtime.threads} threads, torch {torch.__version__}")  # fmt: skip

        def trainer_seconds(number: int) -> float:
            plan = dataclasses.replace(components.plan, updates=own.updates * (number + 1))
            trainer.components = dataclasses.replace(components, plan=plan)
            before = trainer.clock.seconds
            loop(trainer)
            after = trainer.clock.seconds
            trainer.clock = trainer.meter.clock = Clock(after)
            return after - before

        for number in range(own.rounds + 1):
            # The machine's speed drifts: who goes first changes with each round.
            if number % 2:
                ours, seconds = trainer_seconds(number), bare.run(own.updates)
            else:
                seconds, ours = bare.run(own.updates), trainer_seconds(number)
            if number:  # the first round warms both up
                ratios.append(seconds / ours)
                print(f"round {number}: trainer {own.updates * size / ours:8.1f} images/s, "
                      f"bare loop {own.updates * size / seconds:8.1f} images/s, ratio {ratios[-1]:.3f}")  # fmt: skip
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"trainer / bare loop: {middle:.3f} (median of {own.rounds} rounds; quartiles {low:.3f}, {high:.3f})")
        trainer.close()
        runtime.end()


if __name__ == "__main__":
    sys.exit(main())

"""Compare the whole trainer with a bare PyTorch loop of the same model, batch and precision, in turn.

    python benchmarks/overhead.py [--config RECIPE] [--updates 10] [--rounds 20] [--out JSON] [--section.field VALUE …]

The trainer's side is `vit_dist.training.loop.loop` itself: stream, augmentation, exact update, logging; checkpoints and
evaluations are left out on both sides. The bare loop indexes images that were normalised beforehand, and augments
nothing: to compare loops alone, switch the recipe's augmentation off (--augment.shift 0). The loss is read once a
round. Printed is the time of the trainer as a multiple of the bare loop's, and its inverse.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from timing import KINDS, Side, alternate, write
from torch.nn import functional as F
from training import Training

from vit_dist.data.sources.source import decoded
from vit_dist.training.trainer import Trainer


class BareLoop:
    """The loop that one would write for one device, and nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        components, runtime = trainer.components, trainer.runtime
        subset, preprocessing = components.data.splits["train"], components.preprocessing
        held = decoded(subset.source)
        assert held is not None, "the bare loop needs images in memory"
        pixels = torch.from_numpy(held[subset.indices])
        self.images = preprocessing.normalise(pixels).to(runtime.device)
        self.labels = torch.from_numpy(subset.labels).to(runtime.device)
        self.model = copy.deepcopy(components.model).train()
        config = components.config
        self.config, self.size = config, config.batch.global_size
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.optimizer.lr, fused=True)
        self.autocast = torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=runtime.precision == "bf16")
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda update: 1.0)

    def run(self, updates: int) -> int:
        """Make so many updates, read the loss of the last, and return how many images they took."""
        order = torch.randperm(len(self.labels))
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
        return updates * self.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10, help="updates of one side in one round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args()
    with Training(["--log.every", f"{own.updates} updates", *rest]) as training:
        components, runtime = training.components, training.runtime
        bare = BareLoop(training.trainer)
        about = {
            "model": components.config.model.name,
            "parameters": components.parameters,
            "batch": training.batch,
            "precision": runtime.precision,
        }
        print(", ".join(f"{name} {value}" for name, value in about.items()))
        sides = {
            "trainer": Side(lambda: training.run(own.updates)),
            "bare loop": Side(lambda: bare.run(own.updates)),
        }
        times = alternate("overhead", sides, own.rounds)
        print(times.table())
        for kind in KINDS:
            low, middle, high = times.ratio("bare loop", kind)
            print(f"images/s of the trainer ÷ bare loop, {kind}: {middle:.3f} (quartiles {low:.3f}, {high:.3f})")
        write(own.out, {**about, "overhead": times.to_json()})


if __name__ == "__main__":
    main()

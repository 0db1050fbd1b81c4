"""Contrastive training: memory of an update by pairs, speed beside open_clip's loss, and where that loss is exact.

    python benchmarks/contrastive.py memory [--most 65536] [--loss clip]
    python benchmarks/contrastive.py speed [--batch 256] [--rounds 10] [--section.field VALUE …]
    python benchmarks/contrastive.py exact [--world 2]

memory: each number of pairs is one update in a process of its own, of towers so small that what grows is what the pairs
take; beside the peak of the process stand the bytes of inputs and of embeddings. speed: the trainer's loop and a loop
as open_clip's train_one_epoch makes it, of the same towers and batch, without accumulation, in turn. exact: the
gradient of a model under DDP on gloo, in float64, with open_clip's ClipLoss and SigLipLoss, against one process.
`speed` and `exact` need open_clip_torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, LENGTH, WIDTH = 8, 8, 16
PAIRS = [2**power for power in (10, 12, 14, 16)]
# What ClipLoss is built with, by what its users call it.
FLAGS = {
    "default": {},
    "local_loss": {"local_loss": True},
    "gather_with_grad": {"gather_with_grad": True},
    "local_loss, gather_with_grad": {"local_loss": True, "gather_with_grad": True},
}


def one_update(pairs: int, loss: str) -> dict[str, int]:
    """Make one update of so many pairs, and return the peak of this process before and after, in bytes."""
    from vit_dist.checkpointing.state import TrainState
    from vit_dist.config.config import Config
    from vit_dist.data.batch import Batch
    from vit_dist.models.contrastive_loss import ContrastiveLoss
    from vit_dist.models.two_tower import build_two_tower
    from vit_dist.optim.optimizers import build_optimizer
    from vit_dist.optim.schedules import Schedule
    from vit_dist.plan.plan import Plan
    from vit_dist.runtime.runtime import Runtime
    from vit_dist.training.contrastive import ContrastiveUpdater

    text = {"width": WIDTH, "depth": 1, "heads": 2, "context_length": LENGTH, "embed_dim": WIDTH}
    config = Config.from_dict(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {"patch_size": 4, "width": WIDTH, "depth": 1, "heads": 2},
            "text": text,
            "batch": {"global_size": pairs, "micro_size": 256},
            "loss": {"name": loss},
            "schedule": {"warmup": "0 updates"},
            "train": {"duration": "1 updates"},
        }
    )
    runtime = Runtime(config.run, "fp32")
    model = build_two_tower(config.model, config.text, loss, vocabulary_size=64, channels=1, image_size=SIDE, seed=0)
    plan = Plan.from_config(config, pairs, 1)
    optimizer = build_optimizer(config.optimizer, model, 1e-3)
    any_loss: Any = ContrastiveLoss(config.loss)
    schedule = Schedule(config.schedule, optimizer, plan, 1e-3)
    updater = ContrastiveUpdater(model, any_loss, optimizer, schedule, TrainState(), runtime, clip_norm=1.0)
    generator = torch.Generator().manual_seed(0)

    def window(count: int) -> Any:
        for number in range(count):
            ids = torch.arange(256) + 256 * number
            tokens = torch.randint(1, 64, (256, LENGTH), generator=generator)
            images, weights = torch.randn(256, 1, SIDE, SIDE, generator=generator), torch.ones(256)
            yield Batch(images, ids, weights, ids, None, number, tokens, ids)

    updater.update(window(2), 2, 512)  # what is allocated once
    before = runtime.peak_memory_bytes()
    updater.update(window(pairs // 256), pairs // 256, pairs)
    peak = runtime.peak_memory_bytes()
    runtime.end()
    return {"pairs": pairs, "before": before, "peak": peak, "inputs": pairs * (4 * SIDE**2 + 3 * 8 * 1 + 8 * LENGTH)}


def memory(most: int, loss: str) -> None:
    """Print the peak of an update by its number of pairs."""
    print("| pairs | MiB over a small update | inputs | embeddings, both towers | rest | all logits would be |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pairs in (each for each in PAIRS if each <= most):
        words = [sys.executable, __file__, "one", str(pairs), loss]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        grown, embeddings = found["peak"] - found["before"], 2 * 4 * WIDTH * pairs
        rest = grown - found["inputs"] - embeddings
        sizes = (grown, found["inputs"], embeddings, rest, 4 * pairs**2)
        print(f"| {pairs:,} | " + " | ".join(f"{size / 2**20:,.1f}" for size in sizes) + " |", flush=True)


class TheirLoop:
    """A loop as open_clip's train_one_epoch makes it, over images and tokens in memory."""

    def __init__(self, trainer: Any) -> None:
        import open_clip

        components = trainer.components
        subset, tokenizer = components.data.splits["train"], components.tokenizer
        pixels = torch.from_numpy(subset.source.pixels[subset.indices])
        self.images = components.preprocessing.normalise(pixels)
        texts = [next(iter(subset.captions[int(index)])) for index in subset.indices]
        self.tokens = torch.from_numpy(np.asarray(tokenizer(texts)))
        self.model = copy.deepcopy(components.model).train()
        self.size = components.config.batch.global_size
        self.loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def run(self, updates: int) -> int:
        """Make so many updates, and return how many pairs they took."""
        order = torch.randperm(len(self.images))
        for update in range(updates):
            index = order[(update * self.size) % (len(order) - self.size) :][: self.size]
            self.optimizer.zero_grad()
            image, text = self.model(self.images[index], self.tokens[index])
            loss = self.loss(image, text, self.model.logit_scale.exp())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, float(np.log(100)))
        loss.item()
        return updates * self.size


def speed(batch: int, rounds: int, words: list[str]) -> None:
    """Print what an update takes, ours and theirs in turn."""
    from timing import Side, alternate
    from training import Training

    own = ["--config", "digits_captions", "--batch.global_size", str(batch), "--batch.micro_size", str(batch)]
    # What a bare loop does not have is left out on both sides: the loops alone are compared.
    own += ["--optimizer.name", "adamw", "--optimizer.lr", "1e-3", "--augment.shift", "0", "--model.drop_path", "0"]
    own += ["--text.drop_path", "0", "--run.device", "cpu"]
    with Training([*own, *words]) as training:
        theirs = TheirLoop(training.trainer)
        sides = {"vit_dist": Side(lambda: training.run(10)), "open_clip's loss": Side(lambda: theirs.run(10))}
        print(alternate(f"updates of {batch} pairs", sides, rounds, piece="a pair").table())


class Towers(nn.Module):
    """Two linear towers and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.logit_bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        pair = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return (*pair, self.logit_scale.exp(), self.logit_bias)


def their_gradients(rank: int, world: int, port: int, folder: str) -> None:
    """Save this rank's gradient of 24 pairs with each of open_clip's losses, under DDP."""
    import open_clip
    import torch.distributed as dist
    from safetensors.torch import save_file

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    places = {"rank": rank, "world_size": world}
    losses: dict[str, Any] = {f"clip, {name}": open_clip.ClipLoss(**flags, **places) for name, flags in FLAGS.items()}
    losses["siglip"] = open_clip.loss.SigLipLoss(**places)
    for number, (name, loss) in enumerate(losses.items()):
        torch.manual_seed(0)
        model = Towers().double()
        images, texts = torch.randn(24, 6).double(), torch.randn(24, 5).double()
        own = slice(rank * 24 // world, (rank + 1) * 24 // world)
        wrapped = nn.parallel.DistributedDataParallel(model)
        *pair, scale, bias = wrapped(images[own], texts[own])
        (loss(*pair, scale, bias) if name == "siglip" else loss(*pair, scale) + 0 * bias).backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        if rank == 0:
            save_file(gradients, f"{folder}/{world}_{number}.safetensors", {"name": name})
    dist.destroy_process_group()


def exact(world: int) -> None:
    """Print how far open_clip's gradients on several ranks are from those on one."""
    from safetensors import safe_open

    found: dict[int, dict[str, dict[str, Tensor]]] = {1: {}, world: {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in found:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            torch.multiprocessing.spawn(their_gradients, (size, port, folder), size)
            for path in sorted(Path(folder).glob(f"{size}_*.safetensors")):
                with safe_open(path, "pt") as file:
                    found[size][file.metadata()["name"]] = {key: file.get_tensor(key) for key in list(file.keys())}
    print(f"| loss on {world} ranks | encoders' gradient ÷ exact | left after that | scale's ÷ exact |")
    print("| --- | --- | --- | --- |")
    for name, one in found[1].items():
        several = found[world][name]
        mine, theirs = (torch.cat([g.flatten() for key, g in x.items() if "." in key]) for x in (one, several))
        ratio = (mine @ theirs / (mine @ mine)).item()
        left = ((theirs - ratio * mine).norm() / theirs.norm()).item()
        scale = (several["logit_scale"] / one["logit_scale"]).item()
        print(f"| {name} | {ratio:.4f} | {left:.1e} | {scale:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["memory", "speed", "exact", "one"])
    parser.add_argument("--most", type=int, default=PAIRS[-1])
    parser.add_argument("--loss", default="clip")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--world", type=int, default=2)
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one_update(int(sys.argv[2]), sys.argv[3])))
        return
    options, words = parser.parse_known_args()
    if options.part == "memory":
        memory(options.most, options.loss)
    elif options.part == "speed":
        speed(options.batch, options.rounds, words)
    else:
        exact(options.world)


if __name__ == "__main__":
    main()

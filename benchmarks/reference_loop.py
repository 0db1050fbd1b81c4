"""Measure how fast a plain PyTorch loop trains the reference model of recipe `mnist_reference`.

    python benchmarks/reference_loop.py [--updates 100] [--epochs 5] --data.root DIR

Measures so many updates after a warm-up, and prints images/s and the time of so many epochs of 60,000 images.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional as F

from vit_dist.cli.arguments import parse_arguments
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import decoded
from vit_dist.models.build import build_model
from vit_dist.runtime.devices import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    own, rest = parser.parse_known_args()
    words = ["--config", "mnist_reference", "--data.val_fraction", "0", *rest]
    config = parse_arguments("train", words).load_config()
    torch.set_num_threads(available_cores())
    source = open_data(config.data).splits["train"].source
    pixels = decoded(source)
    assert pixels is not None, "the plain loop needs images in memory"
    images = ((torch.from_numpy(pixels.copy()) / 255) - 0.1307) / 0.3081
    labels = torch.from_numpy(source.labels)
    model = build_model(config.model, classes=10, channels=1, image_size=28, seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    order, start = torch.randperm(len(labels)), 0.0
    for update in range(10 + own.updates):
        if update == 10:
            start = time.perf_counter()
        index = order[update * 128 : (update + 1) * 128]
        loss = F.cross_entropy(model(images[index]), labels[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    rate = own.updates * 128 / (time.perf_counter() - start)
    print(f"plain loop of the reference model: {rate:.1f} images/s, {torch.get_num_threads()} threads")
    print(f"{own.epochs} epochs of {len(labels):,} images: {own.epochs * len(labels) / rate:.0f} s")


if __name__ == "__main__":
    main()

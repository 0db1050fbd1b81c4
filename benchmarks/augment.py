"""Measure the cost of each augmentation on the CPU, or draw a picture of it.

    python benchmarks/augment.py [--images 64] [--side 224] [--threads 1] [--picture docs/augmentation.png]

Print milliseconds of CPU per image for each augmentation alone, minus those of the stream without any: in this process
(no workers), the median of `--rounds` interleaved passes.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from timing import Side, alternate

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import Stream
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime

CASES = {
    "none": {},
    "flip": {"flip": 0.5},
    "shift": {"shift": 4},
    "rotate, translate, scale": {"rotate": 15.0, "translate": 0.1, "scale": 0.1},
    "the same, with shift and flip": {"rotate": 15.0, "translate": 0.1, "scale": 0.1, "shift": 4, "flip": 0.5},
    "erasing, const": {"erasing": 1.0},
    "erasing, pixel": {"erasing": 1.0, "erasing_mode": "pixel"},
    "mixup": {"mixup": 0.8},
    "CutMix": {"cutmix": 1.0},
    "random resized crop": {"crop_min": 0.35},
    "colour jitter": {"color_jitter": 0.3},
    "RandAugment": {"auto": "rand-m9-mstd0.5-inc1"},
    "TrivialAugment": {"auto": "trivial"},
    "3-Augment": {"auto": "3a"},
}


def photographs(count: int, side: int) -> MemorySource:
    """Return squares cut from the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    squares = []
    for number in range(count):
        picture = pictures[number % 2]
        left = (number * 37) % (picture.width - picture.height + 1)
        square = picture.crop((left, 0, left + picture.height, picture.height)).resize((side, side))
        squares.append(np.asarray(square).transpose(2, 0, 1))
    return MemorySource(np.stack(squares), np.arange(count, dtype=np.int64) % 2)


def stream(source: MemorySource, augment: AugmentConfig, runtime: Runtime) -> Stream:
    """Return a stream of one micro-batch of all images for each position."""
    size = len(source)
    config = Config(
        run=RunConfig(device="cpu"),
        augment=augment,
        batch=BatchConfig(global_size=size, micro_size=size),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration="1000 epochs"),
    )
    preprocessing = Preprocessing(source.pixels.shape[2], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Stream(
        all_of(source), Plan.from_config(config, size, 1), preprocessing, augment, runtime, workers=0, classes=2
    )


def measure(arguments: argparse.Namespace, runtime: Runtime) -> None:
    """Print a line for each case."""
    source = photographs(arguments.images, arguments.side)
    streams = {name: stream(source, AugmentConfig(**case), runtime) for name, case in CASES.items()}
    positions = dict.fromkeys(CASES, 0)

    def one_pass(name: str) -> int:
        for _ in streams[name].window(positions[name]):
            pass
        positions[name] += 1
        return arguments.images

    sides = {name: Side(partial(one_pass, name)) for name in CASES}
    times = alternate("augmentation", sides, arguments.rounds)
    base = times.median("none", "cpu")
    print(
        f"{arguments.images} images of {arguments.side} pixels, {torch.get_num_threads()} threads, ms of CPU an image"
    )
    for name in CASES:
        print(f"{name:<32} {1e3 * (times.median(name, 'cpu') - (base if name != 'none' else 0)):8.3f}")


def draw(path: Path, side: int, runtime: Runtime) -> None:
    """Draw a row of eight images for each case, as the model would see them."""
    source, gap, label = photographs(8, side), 4, 190
    sheet = Image.new("RGB", (label + 8 * (side + gap), len(CASES) * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for row, (name, case) in enumerate(CASES.items()):
        pen.text((4, row * (side + gap) + side // 2), name, fill="black")
        [batch] = stream(source, AugmentConfig(**case), runtime).window(0)
        order = batch.ids.argsort()
        for column, image in enumerate(batch.images[order].numpy()):
            pixels = np.clip((image.transpose(1, 2, 0) * std + mean) * 255, 0, 255).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (label + column * (side + gap), row * (side + gap)))
    sheet.save(path, optimize=True)
    print(f"picture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    runtime = Runtime(RunConfig(device="cpu", threads=arguments.threads), "fp32")
    if arguments.picture:
        draw(arguments.picture, 64, runtime)
    else:
        measure(arguments, runtime)
    runtime.end()


if __name__ == "__main__":
    main()

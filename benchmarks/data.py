"""Compare what training's images cost with timm's loader and torchvision's ImageFolder: the same files and transforms.

    python benchmarks/data.py --images FOLDER|TAR [--rounds 9] [--batch 32] [--side 224] [--scale 0.08] [--out JSON]
    python benchmarks/data.py --memory RECIPE [--rounds 9] [--section.field VALUE …]

One core, no worker processes, everything in this process as a worker runs it: files are read, decoded, cropped at
random, resized, mirrored, augmented and normalised, to batches of float32. In each round every loader reads every image
once, one after the other, in an order that changes; read the CPU's times. Printed are medians over the rounds, and the
median of the rounds' ratios. Photos of 12 megapixels are made by enlarging the files, with the
noise of a camera and without. Then the same crops are made from the whole image by Pillow, and compared.

--memory: what share of an update goes into making its batch, where images are in memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import enlarge, unpack
from PIL import Image
from timing import Side, alternate, write
from timm.data import ImageDataset, create_loader
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from training import Training

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.data.augmentation.transforms import TrainingTransform, enter_worker, seeded
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.crop import random_box
from vit_dist.data.sources.decode import decode
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.stream import Stream
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND = "rand-m9-mstd0.5-inc1"
Loader = Callable[[], Iterable[Any]]


def our_loader(files: Path, augment: AugmentConfig, side: int, batch: int, runtime: Runtime) -> Loader:
    """Return the trainer's own stream; each call goes on by an epoch."""
    subset = read_folder(files).splits["train"]
    config = Config(
        run=RunConfig(device="cpu"),
        augment=augment,
        batch=BatchConfig(global_size=batch, micro_size=batch),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration="1000 epochs"),
    )
    preprocessing = Preprocessing(side, MEAN, STD)
    plan = Plan.from_config(config, len(subset), 1)
    stream = Stream(subset, plan, preprocessing, augment, runtime, workers=0, classes=2)
    position = 0

    def epoch() -> Iterable[Any]:
        nonlocal position
        for _ in range(len(subset) // batch):
            for made in stream.window(position):
                yield made.images
            position += 1

    return epoch


def timm_loader(files: Path, auto: str | None, side: int, batch: int, scale: float) -> Loader:
    """Return timm's loader, with normalisation after collation, as timm's train.py has it."""
    loader = create_loader(
        ImageDataset(str(files)),
        (3, side, side),
        batch,
        is_training=True,
        scale=(scale, 1.0),
        hflip=0.5,
        color_jitter=None,
        auto_augment=auto,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    return lambda: (images for images, _ in loader)


def torchvision_loader(files: Path, auto: str | None, side: int, batch: int, scale: float) -> Loader:
    """Return torchvision's ImageFolder with its transforms, and timm's RandAugment where it is asked for."""
    steps: list[Any] = [
        transforms.RandomResizedCrop(side, (scale, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
    ]
    if auto:
        colour = tuple(min(255, round(255 * value)) for value in MEAN)
        settings = {"translate_const": int(side * 0.45), "img_mean": colour, "interpolation": Image.Resampling.BICUBIC}
        steps.append(rand_augment_transform(auto, settings))
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    dataset = ImageFolder(str(files), transforms.Compose(steps))
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=0, drop_last=True)
    return lambda: (images for images, _ in loader)


def epoch_of(loader: Loader) -> int:
    """Read an epoch, and return its images."""
    return sum(len(images) for images in loader())


def differences(files: Path, augment: AugmentConfig, side: int) -> dict[str, float]:
    """Compare crops of a few keys of each image with those of Pillow, which decodes it whole."""
    transform = TrainingTransform(augment, MEAN, side, None)
    source = read_folder(files).splits["train"].source
    assert isinstance(source, FileSource)
    found = []
    for index in range(len(source)):
        encoded = source.encoded(index)
        whole = decode(encoded)
        for key in range(3):
            drawn = 1000 * key + index
            ours = transform.decode(encoded, transform.open(encoded, drawn, side), drawn, side)
            with seeded(drawn):
                part = random_box(augment.crop_min, *whole.size).of(whole)
            pillows = torch.from_numpy(np.array(part.resize((side, side), Image.Resampling.BICUBIC))).permute(2, 0, 1)
            found.append(float((ours.float() - pillows.float()).abs().mean()))
    print(f"  mean difference to Pillow's: {statistics.mean(found):.4f} of 255, of one image at most {max(found):.4f}")
    return {"mean": statistics.mean(found), "largest of an image": max(found)}


def measure_files(own: argparse.Namespace) -> dict[str, Any]:
    """Return the results for image files."""
    results: dict[str, Any] = {}
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        files = unpack(own.images, Path(temporary))
        cases = [("files", files, own.batch, ""), ("files, RandAugment", files, own.batch, RAND)]
        for name, noise in (("12 megapixels", 0.0), ("12 megapixels, noise", 6.0)):
            cases.append((name, enlarge(files, Path(temporary) / name, own.photos, noise), own.photos, ""))
        for name, folder, batch, auto in cases:
            augment = AugmentConfig(crop_min=own.scale, flip=0.5, auto=auto)
            theirs = folder, auto or None, own.side, batch, own.scale
            loaders = {
                "vit_dist": our_loader(folder, augment, own.side, batch, runtime),
                "timm": timm_loader(*theirs),
                "torchvision": torchvision_loader(*theirs),
            }
            sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
            title = f"{name}: {len(sizes)} files of {statistics.mean(sizes) / 1e3:,.0f} kB, crops from {own.scale:g}"
            sides = {each: Side(partial(epoch_of, loader)) for each, loader in loaders.items()}
            times = alternate(title, sides, own.rounds)
            print(times.table())
            results[name] = times.to_json()
            if not auto:
                results[name]["difference"] = differences(folder, AugmentConfig(crop_min=own.scale), own.side)
    runtime.end()
    return results


def measure_memory(own: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Return the share of an update that makes its batch, by round."""
    words = ["--config", own.memory, "--log.every", "20 updates", "--run.device", "cpu", "--run.threads", "1"]
    with Training([*words, *rest]) as training:
        spent, window = 0.0, training.trainer.stream.window

        def timed(position: int) -> Iterable[Any]:
            nonlocal spent
            batches = window(position)
            while True:
                start = time.process_time()
                made = next(batches, None)
                spent += time.process_time() - start
                if made is None:
                    return
                yield made

        training.trainer.stream.window = timed  # type: ignore[method-assign, assignment]
        shares, wholes = [], []
        for number in range(own.rounds + 1):
            spent, start = 0.0, time.process_time()
            training.run(20)
            whole = time.process_time() - start
            if number:  # the first round warms up
                shares.append(spent / whole)
                wholes.append(whole / 20)
    share, whole = statistics.median(shares), statistics.median(wholes)
    print(f"{own.memory}: {100 * share:.1f} % of an update's CPU time makes its batch "
          f"({1e3 * share * whole:.2f} of {1e3 * whole:.2f} ms; median of {own.rounds} rounds)")  # fmt: skip
    return {"share": share, "ms per update": 1e3 * whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--memory", metavar="RECIPE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--photos", type=int, default=8, help="of 12 megapixels")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--scale", type=float, default=0.08, help="least area of a crop")
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args()
    if (own.images is None) == (own.memory is None) or (rest and own.images):
        parser.error("give --images, or --memory and fields of the config")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if own.images:
        enter_worker()
    results = measure_files(own) if own.images else measure_memory(own, rest)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write(own.out, {"peak KiB": peak, **results})


if __name__ == "__main__":
    main()

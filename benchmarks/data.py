"""Compare what training's images cost with timm's loader and torchvision's ImageFolder: the same files and transforms.

    python benchmarks/data.py --images FOLDER|TAR [--rounds 9] [--batch 32] [--side 224] [--scale 0.08] [--out JSON]
    python benchmarks/data.py --memory RECIPE [--rounds 9] [--section.field VALUE …]

One core, no worker processes, everything in this process as a worker runs it: files are read, decoded, cropped at
random, resized, mirrored, augmented and normalised, to batches of float32. In each round every loader reads every image
once, one after the other, in an order that changes; seconds are of the CPU (time.process_time). Printed are the medians
over the rounds, and the median of the rounds' ratios. Photos of 12 megapixels are made by enlarging the files, with the
noise of a camera and without. Then the same crops are made from the whole image by Pillow, and compared.

--memory: what share of an update goes into making its batch, where images are in memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import ImageDataset, create_loader
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

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


def unpack(images: Path, folder: Path) -> Path:
    """Return a folder of two class folders with the images of a folder or a tar."""
    if images.is_file():
        with tarfile.open(images) as tar:
            tar.extractall(folder / "all", filter="data")
        images = folder / "all"
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, path in enumerate(files):
        target = folder / "files" / f"class_{number % 2}" / path.with_suffix(".jpg").name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder / "files"


def enlarge(files: Path, folder: Path, count: int, noise: float) -> Path:
    """Return a folder of photos of 12 megapixels, enlarged from some of the files; noise: its standard deviation."""
    draw = np.random.default_rng(0)
    for number, path in enumerate(sorted(files.rglob("*.jpg"))[:count]):
        with Image.open(path) as image:
            photo = image.convert("RGB").resize(
                (4000, 3000) if image.width >= image.height else (3000, 4000), Image.Resampling.BICUBIC
            )
        if noise:
            grain = draw.normal(0, noise, (photo.height, photo.width, 1)).astype(np.float32)
            photo = Image.fromarray((np.asarray(photo) + grain).round().clip(0, 255).astype(np.uint8))
        target = folder / f"class_{number % 2}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.save(target, quality=92)
    return folder


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


def milliseconds(loader: Loader) -> float:
    """Return the CPU's milliseconds for an image, over an epoch."""
    start, count = time.process_time(), 0
    for images in loader():
        count += len(images)
    return 1e3 * (time.process_time() - start) / count


def compare(name: str, loaders: dict[str, Loader], rounds: int) -> dict[str, Any]:
    """Time the loaders in turn; print and return medians, and the ratios of the others to the first."""
    times: dict[str, list[float]] = {each: [] for each in loaders}
    names = list(loaders)
    for number in range(rounds + 1):
        shift = number % len(names)
        for each in names[shift:] + names[:shift]:
            spent = milliseconds(loaders[each])
            if number:  # the first round warms all up
                times[each].append(spent)
    ours, *others = names
    result: dict[str, Any] = {"ms per image": {each: statistics.median(times[each]) for each in names}, "ratio": {}}
    print(name)
    for each in names:
        print(f"  {each:<12} {statistics.median(times[each]):8.3f} ms of CPU an image")
    for each in others:
        ratios = [theirs / own for theirs, own in zip(times[each], times[ours], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result["ratio"][each] = {"median": middle, "quartiles": [low, high]}
        print(f"  {ours} against {each:<12} {middle:.2f} times as fast (quartiles {low:.2f}, {high:.2f})")
    return result


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
            results[name] = compare(title, loaders, own.rounds)
            if not auto:
                results[name]["difference"] = differences(folder, AugmentConfig(crop_min=own.scale), own.side)
    runtime.end()
    return results


def measure_memory(own: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Return the share of an update that makes its batch."""
    from vit_dist.cli.arguments import parse_arguments
    from vit_dist.telemetry.console import Console
    from vit_dist.training.loop import loop
    from vit_dist.training.resolve import resolve
    from vit_dist.training.resume import ResumePoint
    from vit_dist.training.setup import setup

    updates = 20 * (own.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--config", own.memory, "--run.dir", folder, "--train.duration", f"{updates} updates"]
        settings += ["--log.every", "20 updates", "--checkpoint.every", f"{updates} updates", "--run.device", "cpu"]
        settings += ["--log.trackers", "none", "--run.threads", "1", "--schedule.warmup", "0 updates"]
        config = parse_arguments("train", [*settings, *rest]).load_config()
        runtime = Runtime(config.run, config.train.precision)
        trainer = setup(resolve(config), runtime, Console(speaks=False), ResumePoint(), None)
        trainer.evaluation_streams.clear()
        trainer.save = lambda: None  # type: ignore[method-assign]
        spent, window = 0.0, trainer.stream.window

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

        trainer.stream.window = timed  # type: ignore[method-assign, assignment]
        start = time.process_time()
        loop(trainer)
        whole = time.process_time() - start
        trainer.close()
        runtime.end()
    print(f"{own.memory}: {100 * spent / whole:.1f} % of an update's CPU time makes its batch "
          f"({1e3 * spent / updates:.2f} of {1e3 * whole / updates:.2f} ms)")  # fmt: skip
    return {"share": spent / whole, "ms per update": 1e3 * whole / updates}


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
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm, PIL)}
    print(
        ", ".join(f"{name} {number}" for name, number in versions.items()), platform.processor() or platform.machine()
    )
    if own.images:
        enter_worker()
    results = measure_files(own) if own.images else measure_memory(own, rest)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if own.out:
        about = {"command": " ".join(["python", *sys.argv]), "versions": versions, "peak KiB": peak}
        own.out.write_text(json.dumps({**about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Make ten small image folders from MNIST, CIFAR-10 and photographs: what people train on, in short.

Each has train and val folders of class folders. val is larger than a person's own would be, so that accuracies can be
told apart. Every choice is keyed by the set's name: the same files, wherever they are made.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Part = tuple[str, str, Image.Image]  # split, class, image


class SmallSet(NamedTuple):
    """A set: what it is, its classes and training images, and the function that makes them."""

    about: str
    classes: int
    images: int
    make: Callable[[Raw, np.random.Generator], Iterator[Part]]


class Raw:
    """The raw images in a folder: mnist/*.gz, cifar10.tar.xz, imagenet-sample.tar; each is read when needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cifar: dict[str, dict[str, list[bytes]]] = {}
        self._photos: list[Image.Image] = []

    def digits(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return images [n, 28, 28] and labels of MNIST's `train` or `t10k`."""
        images, labels = (self.folder / "mnist" / f"{split}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
        pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        return pixels, np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)

    def cifar(self, split: str, name: str) -> list[bytes]:
        """Return the files of a class of CIFAR-10's `train` or `test`."""
        if not self._cifar:
            with tarfile.open(self.folder / "cifar10.tar.xz") as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None:
                        part, label = Path(member.name).parts[-3:-1]
                        self._cifar.setdefault(part, {}).setdefault(label, []).append(file.read())
        return self._cifar[split][name]

    def photos(self) -> list[Image.Image]:
        """Return the photographs whose longer side has 400 pixels or more, in the order of the archive."""
        if not self._photos:
            with tarfile.open(self.folder / "imagenet-sample.tar") as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                        image = Image.open(BytesIO(file.read())).convert("RGB")
                        if max(image.size) >= 400 and min(image.size) >= 300:
                            self._photos.append(image)
        return self._photos


def digits(classes: str, train: int, val: int) -> Callable[[Raw, np.random.Generator], Iterator[Part]]:
    """Return the maker of a balanced set of MNIST's digits, in grey."""

    def make(raw: Raw, draw: np.random.Generator) -> Iterator[Part]:
        for split, source, count in (("train", "train", train), ("val", "t10k", val)):
            pixels, labels = raw.digits(source)
            for name in classes:
                for index in draw.permutation(np.flatnonzero(labels == int(name)))[: count // len(classes)]:
                    yield split, name, Image.fromarray(pixels[index])

    return make


def numbers(train: int, val: int) -> Callable[[Raw, np.random.Generator], Iterator[Part]]:
    """Return the maker of numbers from 00 to 99: two digits beside each other in 56 × 56 pixels, a little displaced."""

    def make(raw: Raw, draw: np.random.Generator) -> Iterator[Part]:
        for split, source, count in (("train", "train", train), ("val", "t10k", val)):
            pixels, labels = raw.digits(source)
            of = [np.flatnonzero(labels == digit) for digit in range(10)]
            for number in range(100):
                for _ in range(count // 100):
                    canvas = np.zeros((56, 56), np.uint8)
                    for place, digit in enumerate(divmod(number, 10)):
                        top, left = draw.integers(4, 25), min(max(place * 28 + draw.integers(-3, 4), 0), 28)
                        image = pixels[draw.choice(of[digit])]
                        canvas[top : top + 28, left : left + 28] |= image
                    yield split, f"{number:02}", Image.fromarray(canvas)

    return make


def objects(counts: dict[str, int], val: int, side: int = 32) -> Callable[[Raw, np.random.Generator], Iterator[Part]]:
    """Return the maker of a set of CIFAR-10's classes with so many training images each, enlarged to `side` pixels."""

    def make(raw: Raw, draw: np.random.Generator) -> Iterator[Part]:
        for split, source in (("train", "train"), ("val", "test")):
            for name, count in counts.items():
                files = raw.cifar(source, name)
                for index in draw.permutation(len(files))[: count if split == "train" else val // len(counts)]:
                    image = Image.open(BytesIO(files[index])).convert("RGB")
                    yield split, name, image if side == 32 else image.resize((side, side), Image.Resampling.BICUBIC)

    return make


def scenes(
    photos: int, train: Sequence[int], val: int, sides: tuple[int, int]
) -> Callable[[Raw, np.random.Generator], Iterator[Part]]:
    """Return the maker of a set of parts of photographs: which of them is a part from?

    Training images come from the left six tenths of a photograph, validation images from the rest, so that what is
    learned is its colours and textures. train: training images of the classes in turn. sides: range in pixels.
    """

    def make(raw: Raw, draw: np.random.Generator) -> Iterator[Part]:
        for number, photo in enumerate(raw.photos()[:photos]):
            width, height = photo.size
            halves = {"train": (0, round(0.6 * width)), "val": (round(0.6 * width), width)}
            for split, (left, right) in halves.items():
                for _ in range(train[number % len(train)] if split == "train" else val // photos):
                    part = round(min(right - left, height) * draw.uniform(0.6, 1))
                    x, y = draw.integers(left, right - part + 1), draw.integers(0, height - part + 1)
                    side = int(draw.integers(sides[0], sides[1] + 1))
                    image = photo.crop((x, y, x + part, y + part)).resize((side, side), Image.Resampling.BICUBIC)
                    if draw.random() < 0.5:
                        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                    yield split, f"scene_{number:02}", image

    return make


_ANIMALS = {"bird": 400, "cat": 220, "deer": 130, "dog": 80, "frog": 45, "horse": 25}
_VEHICLES = ("airplane", "automobile", "ship", "truck")
_ALL = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SETS = {
    "two_digits": SmallSet("MNIST, 3 against 5, 28 pixels", 2, 60, digits("35", 60, 500)),
    "few_digits": SmallSet("MNIST, 28 pixels", 10, 500, digits("0123456789", 500, 500)),
    "digits": SmallSet("MNIST, 28 pixels", 10, 2000, digits("0123456789", 2000, 500)),
    "numbers": SmallSet("MNIST, 00 to 99, 56 pixels", 100, 3000, numbers(3000, 500)),
    "horse_ship": SmallSet(
        "CIFAR-10, horse against ship, 32 pixels", 2, 400, objects({"horse": 200, "ship": 200}, 500)
    ),
    "animals": SmallSet("CIFAR-10, 400 to 25 images of a class, 32 pixels", 6, 900, objects(_ANIMALS, 480)),
    "objects": SmallSet("CIFAR-10, 32 pixels", 10, 5000, objects(dict.fromkeys(_ALL, 500), 500)),
    "enlarged": SmallSet("CIFAR-10, enlarged to 128 pixels", 4, 600, objects(dict.fromkeys(_VEHICLES, 150), 500, 128)),
    "scenes": SmallSet(
        "parts of 60 photographs, 120 to 240 pixels", 60, 750, scenes(60, (20, 15, 10, 5), 480, (120, 240))
    ),
    "few_scenes": SmallSet("parts of 5 photographs, 300 to 500 pixels", 5, 50, scenes(5, (10,), 300, (300, 500))),
}


def make_set(name: str, raw: Raw, folder: Path) -> Path:
    """Write a set's images into `folder`/name, unless they are there, and return that folder."""
    root, done = folder / name, folder / f"{name}.done"
    if not done.exists():
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        for number, (split, label, image) in enumerate(SETS[name].make(raw, draw)):
            path = root / split / label
            path.mkdir(parents=True, exist_ok=True)
            suffix = "png" if image.mode == "L" else "jpg"
            image.save(path / f"{number:05}.{suffix}", **({} if suffix == "png" else {"quality": 90}))
        done.touch()
    return root


def make_sets(names: Iterable[str], data: Path, folder: Path) -> dict[str, Path]:
    """Make the sets of these names and return their folders."""
    raw = Raw(data)
    return {name: make_set(name, raw, folder) for name in names}

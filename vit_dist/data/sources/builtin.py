"""Built-in data sets: digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, each read without a pickle."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of, keyed_split
from vit_dist.errors import UserError


def read_digits(root: Path) -> LabelledSplits:
    """Return scikit-learn's digits; a keyed fifth of them is test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    source = all_of(MemorySource(pixels, digits.target.astype(np.int64)))
    test, train = keyed_split(source, round(len(source) / 5))
    names = tuple(str(i) for i in range(10))
    return LabelledSplits({"train": train, "test": test}, names, 1, 8, (0.3053,), (0.3760,))


def _mnist_like(dataset: str, names: Sequence[str], mean: float, std: float) -> Callable[[Path], LabelledSplits]:
    def read(root: Path) -> LabelledSplits:
        splits = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            pixels = _idx(_mnist_file(dataset, root, f"{prefix}-images-idx3-ubyte"), 3)
            labels = _idx(_mnist_file(dataset, root, f"{prefix}-labels-idx1-ubyte"), 1)
            if len(pixels) != len(labels):
                raise UserError(f"{root}: {prefix} has {len(pixels)} images and {len(labels)} labels: download it anew")
            splits[split] = all_of(MemorySource(pixels[:, None], labels.astype(np.int64)))
        return LabelledSplits(splits, tuple(names), 1, 28, (mean,), (std,))

    return read


def _mnist_file(dataset: str, root: Path, name: str) -> Path:
    """Return the IDX file `name`, plain or .gz, in the root or in torchvision's layout; download it if absent."""
    raw = root / dataset / "raw"
    for folder in (root, raw):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    if root.is_dir() and any(path.name != dataset for path in root.iterdir()):
        raise UserError(f"data.root: no {name}[.gz] in {root}: give the folder that holds it, or an empty one")
    import torchvision

    made = [folder for folder in (root, root / dataset, raw) if not folder.exists()]
    try:
        getattr(torchvision.datasets, dataset)(str(root), download=True)
    except (OSError, RuntimeError):
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise UserError(f"data.root: no {name}[.gz] in {root}, and no mirror of {dataset} can be reached") from None
    return raw / name


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes (LeCun's format), gzipped or not. Raises UserError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path}: not an IDX file of {dimensions} dimensions of bytes: download it anew")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if len(content) != header + int(np.prod(shape)):
        raise UserError(f"{path}: holds {len(content) - header} bytes for shape {shape}: download it anew")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@dataclass(frozen=True)
class CifarArchive:
    """An official binary archive of CIFAR: for each image its label bytes, then 3,072 bytes of R, G and B planes."""

    file: str
    md5: str
    folder: str
    label_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str

    @property
    def url(self) -> str:
        """Return its address on the data set's home page."""
        return f"https://www.cs.toronto.edu/~kriz/{self.file}"


CIFAR10 = CifarArchive(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    1,
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ("test_batch.bin",),
    "batches.meta.txt",
)


CIFAR100 = CifarArchive(
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary",
    2,
    ("train.bin",),
    ("test.bin",),
    "fine_label_names.txt",
)


def read_cifar(archive: CifarArchive, root: Path) -> LabelledSplits:
    """Read CIFAR (Krizhevsky, 2009) from an official archive in `root`, downloaded if absent; its hash is checked."""
    path = root / archive.file
    if not path.is_file():
        _download(archive.url, path)
    content = path.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != archive.md5:
        raise UserError(f"{path}: its MD5 is {digest}, not {archive.md5}: remove it, and it is downloaded anew")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(f"{archive.folder}/{name}")
            assert file is not None, name
            return file.read()

        names = tuple(member(archive.names).decode().split())
        splits = {}
        for split, files in (("train", archive.train), ("test", archive.test)):
            rows = np.frombuffer(b"".join(member(name) for name in files), np.uint8)
            rows = rows.reshape(-1, archive.label_bytes + 3072)
            labels = rows[:, archive.label_bytes - 1].astype(np.int64)
            pixels = rows[:, archive.label_bytes :].reshape(-1, 3, 32, 32)
            splits[split] = all_of(MemorySource(pixels, labels))
    mean_std = {10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}
    mean, std = mean_std.get(len(names), ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))
    return LabelledSplits(splits, names, 3, 32, mean, std)


def _download(url: str, path: Path) -> None:
    """Download to a temporary name next to `path` and rename, so that a broken download never looks complete."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
        part.replace(path)
    except (OSError, urllib.error.URLError) as error:
        raise UserError(f"data.root: no {path}, and its download failed ({error}): fetch {url} yourself") from None


_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# Name → function that reads the data in a folder, downloading it first if it is absent.
BUILTIN: dict[str, Callable[[Path], LabelledSplits]] = {
    "digits": read_digits,
    "mnist": _mnist_like("MNIST", [str(i) for i in range(10)], 0.1307, 0.3081),
    "fashion_mnist": _mnist_like("FashionMNIST", _FASHION, 0.2860, 0.3530),
    "cifar10": lambda root: read_cifar(CIFAR10, root),
    "cifar100": lambda root: read_cifar(CIFAR100, root),
}

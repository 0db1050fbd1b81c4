"""The named data sets: digits, IDX files and CIFAR's archives, read as their authors laid them out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.builtin import CIFAR10, CIFAR100, CifarArchive, _idx, read_cifar
from vit_dist.data.sources.open import default_root, open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, Subset
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints

HERE = "http://127.0.0.1:1/"
MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def refusal(config: DataConfig) -> str:
    with pytest.raises(UserError) as error:
        open_data(config)
    return str(error.value)


def memory(subset: Subset) -> MemorySource:
    assert isinstance(subset.source, MemorySource)
    return subset.source


def test_digits_are_read_with_their_splits() -> None:
    data = open_data(DataConfig())
    assert {name: len(subset) for name, subset in data.splits.items()} == {"train": 1294, "test": 359, "val": 144}
    ids = np.concatenate([subset.indices for subset in data.splits.values()])
    assert np.array_equal(np.sort(ids), np.arange(1797))
    source = memory(data.splits["train"])
    assert source.pixels.shape == (1797, 1, 8, 8)
    assert source.pixels.dtype == np.uint8
    assert source.pixels.min() == 0
    assert source.pixels.max() == 255
    # The first scanned digit is a 0; its top row reads 0 0 5 13 9 1 0 0 out of 16.
    assert source.labels[:4].tolist() == [0, 1, 2, 3]
    assert source.pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert (data.classes, data.channels, data.image_size) == (tuple("0123456789"), 1, 8)
    scaled = source.pixels / 255
    np.testing.assert_allclose((data.mean[0], data.std[0]), (scaled.mean(), scaled.std()), atol=5e-4)
    # Held out at random: the classes are balanced in every split.
    for name, subset in data.splits.items():
        counts = np.bincount(source.labels[subset.indices], minlength=10)
        assert counts.min() > 0.4 * counts.mean(), name


def test_digits_splits_are_the_same_for_every_seed() -> None:
    first, second = (open_data(Config.load("digits", {"run.seed": seed}).data).splits for seed in (0, 1))
    for name in ("train", "val", "test"):
        assert np.array_equal(first[name].indices, second[name].indices)
    all_train = open_data(DataConfig(val_fraction=0)).splits
    assert set(all_train) == {"train", "test"}
    # What is tested on does not depend on what is held out for val.
    assert np.array_equal(all_train["test"].indices, first["test"].indices)
    assert len(all_train["train"]) == 1438
    # Pinned, so that the test split can never change silently.
    assert first["test"].indices[:5].tolist() == [203, 933, 243, 1113, 28]


def test_an_unknown_data_set_is_refused() -> None:
    assert refusal(DataConfig(name="mnst")) == "data.name: no data set mnst (did you mean mnist?)"
    assert refusal(DataConfig(name="zebra")) == (
        "data.name: no data set zebra; known: digits, mnist, fashion_mnist, cifar10, cifar100, digits_captions, folder"
    )


def test_digits_with_a_root_and_a_folder_without_one_are_refused() -> None:
    assert refusal(DataConfig(name="digits", root="/pictures")) == (
        "data.root: digits come with scikit-learn: drop data.root, or set data.name folder"
    )
    assert refusal(DataConfig(name="folder")) == "data.root: set the folder of your images"


def test_a_root_without_a_name_is_read_as_a_folder(image_folder: Path) -> None:
    data = open_data(DataConfig(root=str(image_folder)))
    assert data.classes == ("ant", "bee", "cat")
    assert {name: len(subset) for name, subset in data.splits.items()} == {"train": 60, "val": 21}


def test_a_tilde_in_root_is_expanded(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert len(open_data(DataConfig(root=f"~/{image_folder.name}")).splits["train"]) == 60


def test_downloads_go_to_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "vit_dist"
    write_mnist(default_root() / "mnist")
    assert len(open_data(DataConfig(name="mnist", val_fraction=0)).splits["train"]) == 6
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "vit_dist"


# MNIST and its like


def test_real_mnist(real_mnist: Path) -> None:
    data = open_data(DataConfig(name="mnist", root=str(real_mnist)))
    assert {name: len(subset) for name, subset in data.splits.items()} == {"train": 54_000, "test": 10_000, "val": 6000}
    train, test = memory(data.splits["train"]), memory(data.splits["test"])
    assert train.pixels.shape == (60_000, 1, 28, 28)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    held = np.concatenate([data.splits["train"].indices, data.splits["val"].indices])
    assert np.array_equal(np.sort(held), np.arange(60_000))
    assert (data.classes, data.channels, data.image_size) == (tuple("0123456789"), 1, 28)
    np.testing.assert_allclose(train.pixels.mean() / 255, data.mean[0], atol=1e-4)
    np.testing.assert_allclose(train.pixels.std() / 255, data.std[0], atol=1e-4)


def idx(array: np.ndarray) -> bytes:
    """Encode in LeCun's format: 0 0, 8 for bytes, number of dimensions, each as a big-endian int32, then the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_arrays() -> list[np.ndarray]:
    """Make six training and four test images as in MNIST_FILES; 28 rows and 27 columns tell the axes apart."""
    generator = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    for count in (6, 4):
        arrays.append(generator.integers(0, 256, (count, 28, 27), dtype=np.uint8))
        arrays.append(generator.permutation(10)[:count])
    return arrays


def write_mnist(root: Path, *, compressed: tuple[str, ...] = ()) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, array in zip(MNIST_FILES, mnist_arrays(), strict=True):
        if name in compressed:
            (root / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (root / name).write_bytes(idx(array))


@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [(), MNIST_FILES, MNIST_FILES[1:3]])
def test_idx_files_plain_or_compressed_in_either_layout(
    tmp_path: Path, folder: str, compressed: tuple[str, ...]
) -> None:
    write_mnist(tmp_path / folder, compressed=compressed)
    data = open_data(DataConfig(name="mnist", root=str(tmp_path), val_fraction=0))
    for split, pixels, labels in zip(("train", "test"), mnist_arrays()[::2], mnist_arrays()[1::2], strict=True):
        source = memory(data.splits[split])
        assert np.array_equal(source.pixels, pixels[:, None])
        assert np.array_equal(source.labels, labels)
        assert source.labels.dtype == np.int64
        assert data.splits[split].indices.tolist() == list(range(len(labels)))


def test_fashion_mnist_reads_its_own_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    data = open_data(DataConfig(name="fashion_mnist", root=str(tmp_path), val_fraction=0))
    assert np.array_equal(memory(data.splits["test"]).pixels, mnist_arrays()[2][:, None])
    assert (len(data.classes), data.classes[0], data.classes[9]) == (10, "T-shirt", "Ankle boot")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (MNIST_FILES[0], lambda b: b[:-1], "{path}: holds 4535 bytes for shape (6, 28, 27): download it anew"),
        (MNIST_FILES[0], lambda b: b + b"x", "{path}: holds 4537 bytes for shape (6, 28, 27): download it anew"),
        (MNIST_FILES[0], lambda b: b"", "{path}: not an IDX file of 3 dimensions of bytes: download it anew"),
        (MNIST_FILES[0], lambda b: b[:9], "{path}: not an IDX file of 3 dimensions of bytes: download it anew"),
        (MNIST_FILES[3], lambda b: b"<html>" + b, "{path}: not an IDX file of 1 dimensions of bytes: download it anew"),
        (
            MNIST_FILES[1],
            lambda b: idx(np.zeros(5)),
            "{root}: train has 6 images and 5 labels: download it anew",
        ),
    ],
    ids=["short", "long", "empty", "half a header", "a web page", "a label too few"],
)
def test_broken_idx_files_are_refused(tmp_path: Path, name: str, change: object, expected: str) -> None:
    write_mnist(tmp_path)
    path = tmp_path / name
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    assert refusal(DataConfig(name="mnist", root=str(tmp_path))) == expected.format(path=path, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b[:-20], "Compressed file ended before the end-of-stream marker was reached"),
        (lambda b: b"PK" + b[2:], "Not a gzipped file (b'PK')"),
        (lambda b: b[:-8] + b"\0\0\0\0" + b[-4:], "CRC check failed"),
    ],
    ids=["cut", "not gzip", "checksum"],
)
def test_broken_gzip_files_are_refused(tmp_path: Path, change: object, reason: str) -> None:
    write_mnist(tmp_path, compressed=MNIST_FILES)
    path = tmp_path / f"{MNIST_FILES[0]}.gz"
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    root = tmp_path / "new"
    message = refusal(DataConfig(name="mnist", root=str(root)))
    assert message == f"data.root: no {MNIST_FILES[0]}[.gz] in {root}, and no mirror of MNIST can be reached"
    assert not root.exists()


def test_nothing_is_downloaded_into_a_folder_with_other_content(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    message = refusal(DataConfig(name="mnist", root=str(tmp_path)))
    assert message == (
        f"data.root: no {MNIST_FILES[0]}[.gz] in {tmp_path}: give the folder that holds it, or an empty one"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["dog"]


# CIFAR


def cifar_rows(count: int, classes: int, seed: int) -> tuple[np.ndarray, Ints]:
    """Return pixels [count, row, column, RGB] and fine labels."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return pixels, generator.integers(0, classes, count)


def cifar_archive(archive: CifarArchive, root: Path) -> CifarArchive:
    """Write a small archive of the official layout; return `archive` with its hash."""
    hundred = archive is CIFAR100
    if hundred:
        folder, parts = "cifar-100-binary", ["train.bin", "test.bin"]
    else:
        folder, parts = "cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    members: dict[str, bytes] = {"readme.html": b"<html></html>"}
    for seed, name in enumerate(parts):
        content = b""
        for picture, label in zip(*cifar_rows(3, 100 if hundred else 10, seed), strict=True):
            # CIFAR-100 puts the coarse label first; the planes are all of R, then G, then B, row by row.
            content += bytes([200, label] if hundred else [label])
            content += b"".join(bytes(picture[row, :, c].tolist()) for c in range(3) for row in range(32))
        members[name] = content
    if hundred:
        members["coarse_label_names.txt"] = "".join(f"coarse_{i}\n" for i in range(20)).encode()
        members["fine_label_names.txt"] = "".join(f"fine_{i}\n" for i in range(100)).encode()
    else:
        members["batches.meta.txt"] = ("".join(f"class_{i}\n" for i in range(10)) + "\n").encode()
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / archive.file, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    md5 = hashlib.md5((root / archive.file).read_bytes(), usedforsecurity=False).hexdigest()
    return dataclasses.replace(archive, md5=md5)


def check_cifar(data: LabelledSplits, classes: int, train_files: int) -> None:
    for split, files in (("train", range(train_files)), ("test", range(train_files, train_files + 1))):
        parts = [cifar_rows(3, classes, seed) for seed in files]
        source = memory(data.splits[split])
        assert np.array_equal(source.pixels.transpose(0, 2, 3, 1), np.concatenate([pixels for pixels, _ in parts]))
        assert np.array_equal(source.labels, np.concatenate([labels for _, labels in parts]))
        assert source.pixels.dtype == np.uint8
        assert source.labels.dtype == np.int64
        assert data.splits[split].indices.tolist() == list(range(3 * len(parts)))
    assert (data.channels, data.image_size, len(data.mean), len(data.std)) == (3, 32, 3, 3)


def test_cifar10_is_read_with_its_labels(tmp_path: Path) -> None:
    data = read_cifar(cifar_archive(CIFAR10, tmp_path), tmp_path)
    check_cifar(data, 10, 5)
    assert data.classes == tuple(f"class_{i}" for i in range(10))
    assert data.mean == (0.4914, 0.4822, 0.4465)


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    data = read_cifar(cifar_archive(CIFAR100, tmp_path), tmp_path)
    check_cifar(data, 100, 1)
    assert data.classes == tuple(f"fine_{i}" for i in range(100))
    assert data.mean == (0.5071, 0.4865, 0.4409)


@pytest.mark.parametrize("archive", [CIFAR10, CIFAR100])
def test_an_archive_of_another_hash_is_refused(tmp_path: Path, archive: CifarArchive) -> None:
    digest = cifar_archive(archive, tmp_path).md5
    path = tmp_path / archive.file
    name = archive.file.split("-binary")[0].replace("-", "")
    assert refusal(DataConfig(name=name, root=str(tmp_path))) == (
        f"{path}: its MD5 is {digest}, not {archive.md5}: remove it, and it is downloaded anew"
    )
    good = dataclasses.replace(archive, md5=digest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"not {digest}: remove it, and it is downloaded anew"):
        read_cifar(good, tmp_path)


class Elsewhere(CifarArchive):
    """Return CIFAR-10's archive with `base` as its home page."""

    base = HERE

    @property
    def url(self) -> str:
        return self.base + self.file


def test_cifar_urls_and_hashes_are_the_official_ones() -> None:
    assert CIFAR10.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert CIFAR100.md5 == "03b5dce01913d631647c71ecec9e9cb8"
    assert CIFAR10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert CIFAR100.url == "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"


def test_a_failed_cifar_download_gives_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    archive = Elsewhere(**dataclasses.asdict(CIFAR10))
    root = tmp_path / "new" / "folder"
    with pytest.raises(UserError) as error:
        read_cifar(archive, root)
    message = str(error.value)
    assert message.startswith(f"data.root: no {root / archive.file}, and its download failed (<urlopen error ")
    assert message.endswith(f"): fetch {HERE}{archive.file} yourself")
    assert "\n" not in message
    assert list(root.iterdir()) == []


def test_cifar_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, root = tmp_path / "served", tmp_path / "root"
    archive = Elsewhere(**dataclasses.asdict(cifar_archive(CIFAR10, served)))
    monkeypatch.setattr(Elsewhere, "base", f"{served.as_uri()}/")
    check_cifar(read_cifar(archive, root), 10, 5)
    assert [path.name for path in root.iterdir()] == [archive.file]
    (served / archive.file).unlink()
    check_cifar(read_cifar(archive, root), 10, 5)


def test_a_damaged_gzip_file_gives_a_one_line_error(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 1, 0]) + bytes(range(256))))
    content[12] ^= 0xFF
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: cannot be read: Error -3 while decompressing data"):
        _idx(path, 1)

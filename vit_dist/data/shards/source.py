"""A source of images in shards: tar files whose index says where each image is, read one by one from their place."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import numpy as np
from PIL import Image

from vit_dist.data.shards.archive import BLOCK, member_name
from vit_dist.data.shards.cache import PartCache
from vit_dist.data.shards.index import (
    CAPTIONS,
    COLUMNS,
    INDEX,
    WEIGHT,
    Shard,
    ShardIndex,
    column_hashes,
    load_columns,
    make_index,
)
from vit_dist.data.shards.remote import Files, RemoteFolder, cache_name, fetch_hashed, fetch_index, files_at
from vit_dist.data.shards.storage import LocalFolder, Storage
from vit_dist.data.sources.decode import MAX_PIXELS, EncodedImage, ImageError, check_bytes, decode
from vit_dist.data.sources.splits import IMAGENET, LabelledSplits, Subset
from vit_dist.errors import UserError, one_line, visible
from vit_dist.plan.keys import Ints, Keys


class ShardSource:
    """A source of the images in shards. mode: Pillow's, RGB or L (grey). max_pixels: of the largest that is decoded."""

    def __init__(self, index: ShardIndex, storage: Storage, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> None:
        self.index = index
        self.storage = storage
        self.mode = mode
        self.max_pixels = max_pixels
        self.shard_starts = index.starts
        self.content = index.content

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Ints:
        """Class numbers, int64 [length]."""
        labels: Ints = self.index.columns["label"]
        return labels

    @property
    def keys(self) -> Keys:
        """Return, of each image, what decides whether it is held out as val, uint64 [length]."""
        keys: Keys = self.index.columns["key"]
        return keys

    def checksums(self, indices: Ints) -> Keys:
        """Return of each image its length and the CRC-32 of its bytes as one number, which copies share."""
        columns = self.index.columns
        sums: Keys = (columns["size"][indices] << np.uint64(32)) | columns["crc32"][indices].astype(np.uint64)
        return sums

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as the bytes of its file. Raises ImageError that names shard and image."""
        shard, offset, size = self._place(index)
        path = f"{self.storage.name}/{shard.file}"
        check_bytes(size, f"{path}: image {index}", self.max_pixels)
        expected, place = int(self.index.columns["crc32"][index]), (shard.file, offset - BLOCK, BLOCK + size)
        try:
            content = self.storage.read(*place)
            if zlib.crc32(content[BLOCK:]) != expected and self.storage.forget(*place):
                content = self.storage.read(*place)
        except OSError as error:
            reason = error.strerror or one_line(error, 200)
            raise ImageError(f"{visible(path)}: image {index} cannot be read ({reason})") from None
        name = f"{path}: {member_name(content[:BLOCK]) or f'image {index}'}"
        content = content[BLOCK:]
        if zlib.crc32(content) != expected:
            raise ImageError(
                f"{visible(name)}: has other bytes than the index says: vit-dist shards verify names all damage"
            )
        return EncodedImage(content, name, self.mode, self.max_pixels)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image, upright, in the source's mode. Raises ImageError that names shard and image."""
        return decode(self.encoded(index))

    def image_name(self, index: int) -> str:
        """Return the name of an image for people: its shard, and its name in it, or its number if it has none."""
        shard, offset, _ = self._place(index)
        with contextlib.suppress(OSError):
            if name := member_name(self.storage.read(shard.file, offset - BLOCK, BLOCK)):
                return f"{self.storage.name}/{shard.file}: {name}"
        return f"{self.storage.name}/{shard.file}: image {index}"

    def _place(self, index: int) -> tuple[Shard, int, int]:
        """Return the shard of an image, and where in it its bytes begin and how many they are."""
        number = int(np.searchsorted(self.shard_starts, index, "right")) - 1
        columns = self.index.columns
        return self.index.shards[number], int(columns["offset"][index]), int(columns["size"][index])


def is_shards(root: Path) -> bool:
    """Return whether a folder holds shards with their index."""
    return (root / INDEX).is_file() and (root / COLUMNS).is_dir()


def tar_files(root: Path) -> list[Path]:
    """Return the tar files in a folder and in the folders in it, sorted."""
    return sorted([*root.glob("*.tar"), *root.glob("*/*.tar")])


def open_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards. Raises UserError."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"{folder}: holds tar files without an index: vit-dist shards index {quote(str(folder))} writes it"
        )
    try:
        return make_index(path.read_bytes(), load_columns(folder), str(path))
    except UserError:
        raise
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{path}: its columns cannot be read: {reason or one_line(error, 200)}") from None


def read_shards(root: Path, max_pixels: int = MAX_PIXELS) -> LabelledSplits:
    """Read the splits of a folder of shards. Raises UserError."""
    return splits_of(open_index(root), LocalFolder(root), max_pixels)


def read_remote_shards(address: str, cache: Path, limit: int, max_pixels: int = MAX_PIXELS) -> LabelledSplits:
    """Read the splits of a folder of shards at an address (https://, s3://, gs:// …). Raises UserError.

    cache: the folder for local copies: of the index in full, of the shards at most `limit` bytes.
    """
    address = address.rstrip("/")
    files = files_at(address)
    text = fetch_index(files, INDEX, address)
    hashes = column_hashes(text, f"{address}/{INDEX}")
    name = cache_name(text)
    folder = cache / "indexes" / (f"{name}-captions" if hashes.keys() & {*CAPTIONS} else name)
    try:
        if not folder.is_dir():
            _fetch_columns(files, address, hashes, folder)
        columns = load_columns(folder)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error, 200)
        raise UserError(f"data.root: {address}: its index cannot be kept in {folder}: {reason}") from None
    index = make_index(text, columns, f"{address}/{INDEX}")
    lengths = {shard.file: shard.bytes for shard in index.shards}
    storage = RemoteFolder(address, lengths, PartCache(cache / "parts" / name, limit))
    return splits_of(index, storage, max_pixels)


def _fetch_columns(files: Files, address: str, hashes: Mapping[str, str], folder: Path) -> None:
    """Fetch the columns of an index to a folder, which is whole once it is there. Raises UserError, OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        hidden = Path(name) / folder.name
        (hidden / COLUMNS).mkdir(parents=True)
        for column, digest in hashes.items():
            file = f"{COLUMNS}/{column}.npy"
            (hidden / file).write_bytes(fetch_hashed(files, file, address, digest))
        with contextlib.suppress(OSError):  # another process was faster
            hidden.rename(folder)
    if not folder.is_dir():
        raise OSError("cannot be written")


def splits_of(index: ShardIndex, storage: Storage, max_pixels: int) -> LabelledSplits:
    """Return the splits of an index whose shards are in a storage. Raises UserError for a label without a class."""
    source = ShardSource(index, storage, max_pixels=max_pixels)
    splits = {}
    for split in dict.fromkeys(shard.split for shard in index.shards):
        begin, end = index.rows(split)
        labels = source.labels[begin:end]
        if end == begin or labels.min() < 0 or labels.max() >= len(index.classes):
            raise UserError(f"{storage.name}/{INDEX}: {split} has no images, or some of no class: write it anew")
        weights = np.asarray(index.columns[WEIGHT][begin:end]) if WEIGHT in index.columns else None
        indices = np.arange(begin, end, dtype=np.int64)
        splits[split] = Subset(source, indices, np.asarray(labels), weights, index.captions)
    notes = ("images have weights in the training loss",) if WEIGHT in index.columns else ()
    return LabelledSplits(splits, index.classes, 3, 224, *IMAGENET, index.sizes, notes=notes)


def shard_sizes(subset: Subset) -> Ints | None:
    """Return how many images of a subset are in each shard of its source; None for a source without shards."""
    starts: Ints | None = getattr(subset.source, "shard_starts", None)
    if starts is None:
        return None
    assert len(subset) < 2 or bool((np.diff(subset.indices) > 0).all()), "its images must be in the source's order"
    edges = np.searchsorted(subset.indices, np.append(starts, len(subset.source)))
    sizes: Ints = np.diff(edges).astype(np.int64)
    return sizes

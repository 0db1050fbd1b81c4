"""Open the data that a config names."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from vit_dist.config.fields import DataConfig
from vit_dist.config.values import parse_bytes
from vit_dist.data.shards.source import is_shards, open_index, read_remote_shards, read_shards, tar_files
from vit_dist.data.sources.builtin import BUILTIN
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.digits_captions import read_digits_captions
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.huggingface import HUB, is_saved, parquet_files, read_huggingface
from vit_dist.data.sources.leave_out import leave_out
from vit_dist.data.sources.listing import columns_read
from vit_dist.data.sources.names import is_table
from vit_dist.data.sources.scan import table_beside
from vit_dist.data.sources.splits import UNLABELLED, LabelledSplits, with_val
from vit_dist.errors import UserError, nearest

_NAMED = {**BUILTIN, "digits_captions": read_digits_captions}
_NAMES = [*_NAMED, "folder"]


def open_data(config: DataConfig, captions: bool = False) -> LabelledSplits:
    """Open the data of a config, downloading it if it is absent, without what it leaves out. Raises UserError.

    captions: read them, where the data has them.
    """
    with _no_collections():
        data = _open_all(config, columns_read(config.columns, captions))
    if not captions:
        data = replace(data, splits={name: replace(split, captions=None) for name, split in data.splits.items()})
    return leave_out(data, config.leave_out, config.root)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Hold Python's collector of cycles back, which would go through a million names again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _open_all(config: DataConfig, columns: Mapping[str, str]) -> LabelledSplits:
    name = config.source
    if name not in _NAMES:
        raise UserError(f"data.name: no data set {name}{nearest(name, _NAMES)}")
    if name in ("digits", "digits_captions") and config.root:
        raise UserError("data.root: digits come with scikit-learn: drop data.root, or set data.name folder")
    if name == "folder" and not config.root:
        raise UserError("data.root: set the folder of your images")
    root = Path(config.root).expanduser() if config.root else default_root() / name
    if name != "folder":
        return with_val(_NAMED[name](root), config.val_fraction)
    data = _read(config, columns)
    if "caption" not in columns and data.classes == UNLABELLED:
        raise UserError(f"data.root: {root} has captions and no classes: set loss.name clip or siglip")
    if len(data.classes) == 1 and "caption" not in columns:
        images, fix = sum(map(len, data.splits.values())), ""
        if root.is_dir():
            fix = ", each in a folder of its own" + (f"; {beside}" if (beside := table_beside(str(root))) else "")
        raise UserError(
            f"data.root: {root} has one class, {data.classes[0]} ({images:,} image{'s' * (images > 1)}): a classifier "
            f"needs two or more{fix}"
        )
    return with_val(data, config.val_fraction)


def is_address(root: str) -> bool:
    """Return whether a `data.root` is no path on this machine, but the address of data elsewhere."""
    return "://" in root


def _read(config: DataConfig, columns: Mapping[str, str]) -> LabelledSplits:
    """Read data by what it is: shards, a Hugging Face data set, a table, or a folder of images. Raises UserError.

    columns: those of `data.columns` that are read.
    """
    root = Path(config.root).expanduser()
    if config.root.startswith(HUB):
        return read_huggingface(config.root, config.max_pixels, columns)
    if is_saved(root):
        return read_huggingface(str(root), config.max_pixels, columns)
    if root.is_file() and is_table(root.name):
        return from_source(root, config, "data.root", captions="caption" in columns)
    if config.columns and not (root.is_dir() and parquet_files(root)):
        raise UserError(f"data.columns: are those of a table, and {config.root} is none: leave them out")
    if is_address(config.root):
        cache = default_root() / "shards"
        return read_remote_shards(config.root, cache, parse_bytes(config.cache_size), config.max_pixels)
    if is_shards(root):
        return read_shards(root, config.max_pixels)
    try:
        return read_folder(root, config.max_pixels, config.classes)
    except UserError:
        if root.is_dir() and parquet_files(root):
            return read_huggingface(str(root), config.max_pixels, columns)
        if root.is_dir() and tar_files(root):
            open_index(root)  # says what to do with tar files alone
        raise


def default_root() -> Path:
    """Return the folder that downloads go to without `data.root`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_dist"

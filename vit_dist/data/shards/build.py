"""Build shards from image files: in parallel, resumable, and with the same bytes however often it was interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.data.shards.archive import Entry, Written, entry_bytes, room, tar_keys, write_shard
from vit_dist.data.shards.index import CAPTIONS, FORMAT, INDEX, WEIGHT, Shard, ShardIndex, write_index
from vit_dist.data.shards.processes import in_processes
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.image_files import file_names
from vit_dist.data.sources.splits import UNLABELLED, ImageSizes, LabelledSplits, Subset, name_keys
from vit_dist.errors import UserError, one_line, visible
from vit_dist.files import WRITING, remove, write_durably
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute

_BUILDING = ".building"
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Planned:
    """A shard to be written, and the rows of its images in the index."""

    file: str
    split: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class BuildPlan:
    """Describe what is to be built: shards, their images' keys for holding out, and a hash that names it all.

    weights: of the images in training's loss, if they have any. captioned: whether they have captions.
    """

    data: LabelledSplits
    shards: tuple[Planned, ...]
    keys: Any
    digest: str
    weights: Any = None
    captioned: bool = False


def plan_shards(data: LabelledSplits, shard_size: int) -> BuildPlan:
    """Deal the images of each split to shards of at most `shard_size` bytes, in an order that a key decides.

    A file that is larger has a shard of its own. Raises UserError for images that are no files, or are gone.
    """
    shards: list[Planned] = []
    keys, weights = [], []
    for split in [name for name in ("train", "val", "test") if name in data.splits]:
        subset = data.splits[split]
        order = permute(np.arange(len(subset), dtype=np.int64), len(subset), key(0, Purpose.SHARDS))
        shuffled = subset.take(order)
        entries, hold_out = _entries(shuffled, data.classes)
        keys.append(hold_out)
        weights.append(np.ones(len(shuffled), np.float32) if shuffled.weights is None else shuffled.weights)
        for number, part in enumerate(_parts(entries, shard_size)):
            shards.append(Planned(f"{split}-{number:06d}.tar", split, part))
    digest = hashlib.sha256(json.dumps([FORMAT, data.classes, shard_size]).encode())
    for shard in shards:
        for entry in shard.entries:
            text = f"{shard.file}\0{entry.size}\0{entry.key}\0{entry.ending}\0{entry.label}\n"
            digest.update(text.encode("utf-8", "surrogateescape") + entry.texts().get("txt", b""))
    weighted = any(split.weights is not None for split in data.splits.values())
    if weighted:
        digest.update(np.concatenate(weights).astype("<f4").tobytes())
    return BuildPlan(
        data,
        tuple(shards),
        np.concatenate(keys),
        digest.hexdigest(),
        np.concatenate(weights) if weighted else None,
        captioned=all(split.captions is not None for split in data.splits.values()),
    )


def build(plan: BuildPlan, out: Path, processes: int, progress: Progress = lambda items, count: items) -> int:
    """Write the shards of a plan and their index; return how many shards were written, those of earlier calls not.

    progress: called with the finished shards and their number, yields the former. Raises UserError.
    """
    building = out / _BUILDING
    if _is_built(out, plan.digest):
        remove(building)
        return 0
    try:
        building.mkdir(parents=True, exist_ok=True)
        for abandoned in [*out.glob(f"{WRITING}*"), *building.glob(f"{WRITING}*")]:
            remove(abandoned)
        write_durably(building / "plan", plan.digest)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or one_line(error)}") from None
    written = {shard.file: _finished(out, shard) for shard in plan.shards}
    left = [shard for shard in plan.shards if written[shard.file] is None]
    for shard, result in progress(in_processes(partial(_write, out), left, processes), len(left)):
        written[shard.file] = result
    write_index(out, _index(plan, {file: result for file, result in written.items() if result is not None}))
    remove(building)
    return len(left)


def _is_built(out: Path, digest: str) -> bool:
    """Return whether a folder holds all shards of a plan. Raises UserError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file: name a new folder")
    building = out / _BUILDING
    if (out / INDEX).is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads((out / INDEX).read_text(encoding="utf-8")).get("plan") == digest:
                return True
        raise UserError(f"{out}: holds shards of other images, or of another --shard_size: name another folder")
    if building.is_dir():
        begun = building / "plan"
        if begun.is_file() and begun.read_text(encoding="utf-8") != digest:
            raise UserError(
                f"{out}: holds a part of shards of other images, or of another --shard_size: remove it, or name another"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: holds other files: name a new folder")
    return False


def _write(out: Path, shard: Planned) -> Written:
    """Write a shard, and then what the index needs to know of it: a shard without that is written again."""
    written = write_shard(out / shard.file, shard.entries)
    write_durably(out / _BUILDING / f"{shard.file}.json", json.dumps(asdict(written)))
    return written


def _finished(out: Path, shard: Planned) -> Written | None:
    """Return what a shard became in an earlier call; None if it is not there."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        written = Written(**json.loads((out / _BUILDING / f"{shard.file}.json").read_text(encoding="utf-8")))
        if (out / shard.file).stat().st_size == written.bytes and len(written.offset) == len(shard.entries):
            return written
    return None


def _index(plan: BuildPlan, written: dict[str, Written]) -> ShardIndex:
    entries = [entry for shard in plan.shards for entry in shard.entries]
    columns: dict[str, Any] = {
        "offset": np.asarray([offset for shard in plan.shards for offset in written[shard.file].offset], np.uint64),
        "size": np.asarray([entry.size for entry in entries], np.uint64),
        "label": np.asarray([entry.label or 0 for entry in entries], np.int64),
        "key": plan.keys,
        "crc32": np.asarray([crc32 for shard in plan.shards for crc32 in written[shard.file].crc32], np.uint32),
    }
    if plan.weights is not None:
        columns[WEIGHT] = plan.weights
    if plan.captioned:
        columns |= dict(zip(CAPTIONS, Captions.of(entry.captions for entry in entries).parts, strict=True))
    shards = tuple(
        Shard(shard.file, shard.split, len(shard.entries), written[shard.file].bytes, written[shard.file].sha256)
        for shard in plan.shards
    )
    return ShardIndex(plan.data.classes, shards, columns, _sizes(plan), plan.digest)


def _sizes(plan: BuildPlan) -> ImageSizes | None:
    """Return the sizes of the images, with those that cannot be read by their names in the shards."""
    sizes = plan.data.sizes
    if sizes is None or not sizes.unreadable:
        return sizes
    names = {
        _short(entry.path): _short(f"{entry.key}.{entry.ending}") for shard in plan.shards for entry in shard.entries
    }
    return replace(sizes, unreadable=tuple(names.get(name, name) for name in sizes.unreadable))


def _short(path: str) -> str:
    return "/".join(path.replace(os.sep, "/").split("/")[-2:])


def _entries(subset: Subset, classes: tuple[str, ...]) -> tuple[list[Entry], Any]:
    """Return the entries of a split's images, and their keys for holding out. Raises UserError."""
    paths = file_names(subset.source, subset.indices)
    if not paths:
        raise UserError(f"shards are built from image files: {type(subset.source).__name__} has none")
    labels = subset.labels.tolist()
    keys = tar_keys(paths, [classes[label] for label in labels])
    labelled, captions = classes != UNLABELLED, subset.captions
    entries = [
        Entry(path, _size(path), name, ending, label if labelled else None, () if captions is None else captions[index])
        for path, (name, ending), label, index in zip(paths, keys, labels, subset.indices.tolist(), strict=True)
    ]
    hold_out = getattr(subset.source, "keys", None)
    if hold_out is None:
        return entries, name_keys(f"{name}.{ending}" for name, ending in keys)
    return entries, hold_out[subset.indices]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"{visible(path)}: cannot be read: {error.strerror}: mend or remove the file") from None


def _parts(entries: list[Entry], shard_size: int) -> Iterator[tuple[Entry, ...]]:
    part: list[Entry] = []
    total, most = 0, room(shard_size)
    for entry in entries:
        size = entry_bytes(entry)
        if part and total + size > most:
            yield tuple(part)
            part, total = [], 0
        part.append(entry)
        total += size
    if part:
        yield tuple(part)

"""The fingerprint of a run's data: which samples are in which split, so that a resume can tell other data."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.data.sources.image_files import FilePaths, file_names, sizes_of_files
from vit_dist.data.sources.source import decoded, read_image
from vit_dist.data.sources.splits import LabelledSplits, Subset
from vit_dist.errors import UserError
from vit_dist.files import read_json_or_empty, replacing
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute
from vit_dist.run_folder.data_facts import FACTS

# Of each sample of each split: the split, its name, the size of its file in bytes and the number of its class.
SAMPLES = "samples.csv.gz"
Sample = tuple[str, int, int]
# What a fingerprint says of captions.
TEXTS = ("captions", "tokenizer")
_SAMPLED = 16  # images of a source without files
_FILES_READ, _BYTES_READ = 256, 64 * 1024


def fingerprint(data: LabelledSplits, tokenizer: str = "") -> dict[str, dict[str, Any]]:
    """Return (samples, sha256) of each split: of names, file sizes and classes, or of pixels held in memory.

    Of files also (content): of the first 64 KiB of at most 256 of them, chosen by key, since other images may have the
    same names and sizes. Of shards, of the hashes in their index; of other sources without files or pixels, of the
    classes, a few of the images, and those that a list leaves out. Names are
    relative to the folder that holds all files, so that data may be moved. A file that is gone has 0 bytes. With
    captions also their hash, and the digest of their `tokenizer`, if it is given.
    """
    root = _common_folder(data)
    found = {name: _of_split(data, name, root) for name in data.splits}
    if tokenizer:
        for of_split in found.values():
            of_split["tokenizer"] = tokenizer
    return found


def same_samples(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two splits' fingerprints agree in all that both say of their images: older ones say less."""
    alike = all(before[name] == now[name] for name in (before.keys() & now.keys()) - {*TEXTS})
    return alike and all(before.get(name) == now.get(name) for name in ("weights", "without"))


def split_fingerprint(data: LabelledSplits, name: str) -> dict[str, Any]:
    """Return what `fingerprint` says of one split, without a look at the files of the others."""
    return _of_split(data, name, _common_folder(data))


def write_samples(path: Path, data: LabelledSplits) -> None:
    """Write the list of all samples that are files, replacing the file; nothing for other data. Raises OSError."""
    root = _common_folder(data)
    if not root:
        return
    with replacing(path) as hidden, gzip.open(hidden, "wt", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        for name, split in data.splits.items():
            writer.writerows((name, *sample) for sample in _samples(split, root))


def trained_on(path: Path, subset: Subset) -> int:
    """Return how many files of a subset have the name, size and class of a training image in a list of samples.

    Names are those of the files alone, since other folders may hold them. 0 if the list cannot be read.
    """
    if not path.is_file():
        return 0
    files = Counter((os.path.basename(name), size, label) for name, size, label in _samples(subset, os.sep))
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            known = {
                (os.path.basename(name), int(size), int(label))
                for split, name, size, label in csv.reader(file)
                if split == "train"
            }
    except (OSError, EOFError, ValueError, csv.Error):
        return 0
    return sum(files[sample] for sample in known & files.keys())


def difference(path: Path, data: LabelledSplits) -> str:
    """Return in words how files differ from those in a list; empty if it cannot be told.

    Classes are compared by name if the data's facts beside the list name them: one that is added numbers others anew.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="") as file:
            before = {name: (split, size, label) for split, name, size, label in csv.reader(file)}
    except (OSError, EOFError, ValueError, csv.Error):
        return ""
    root = _common_folder(data)
    if not root:
        return ""
    now = {
        name: (split, str(size), str(label))
        for split, subset in data.splits.items()
        for name, size, label in _samples(subset, root)
    }
    both = before.keys() & now.keys()
    named = read_json_or_empty(path.parent / FACTS).get("classes")
    known = {str(number): name for number, name in enumerate(named)} if isinstance(named, list) else {}
    names = {str(number): name for number, name in enumerate(data.classes)} if known else {}
    kinds = {
        "added": now.keys() - before.keys(),
        "removed": before.keys() - now.keys(),
        "changed": {name for name in both if before[name][1] != now[name][1]},
        "of another class": {
            name
            for name in both
            if known.get(before[name][2], before[name][2]) != names.get(now[name][2], now[name][2])
        },
        "in another split": {name for name in both if before[name][0] != now[name][0]},
    }
    return ", ".join(_count_text(names, kind) for kind, names in kinds.items() if names)


def _count_text(names: set[str], kind: str) -> str:
    """Return a number of images in words, with the first of them: 3 images added (a.png, b.png …)."""
    few = ", ".join(sorted(names)[:2]) + (" …" if len(names) > 2 else "")
    return f"{len(names):,} image{'s' if len(names) > 1 else ''} {kind} ({few})"


def _of_split(data: LabelledSplits, name: str, root: str) -> dict[str, Any]:
    split = data.splits[name]
    found: dict[str, Any] = {"samples": len(split), "sha256": _digest(split, root)}
    if split.weights is not None:
        found["weights"] = hashlib.sha256(split.weights.astype("<f4").tobytes()).hexdigest()
    if data.without and not root and decoded(split.source) is None:
        found["without"] = data.without
    if split.captions is not None:
        found["captions"] = split.captions.digest(split.indices)
    return {**found, "content": _content_digest(split)} if root else found


def _content_digest(split: Subset) -> str:
    digest = hashlib.sha256()
    places = permute(np.arange(min(_FILES_READ, len(split)), dtype=np.int64), len(split), key(0, Purpose.FINGERPRINT))
    for path in file_names(split.source, split.indices[places]):
        # One that cannot be read is told when it is its turn; a pipe would be waited for.
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode):
                with open(path, "rb") as file:
                    digest.update(file.read(_BYTES_READ))
        digest.update(b"\0")
    return digest.hexdigest()


def _digest(split: Subset, root: str) -> str:
    digest = hashlib.sha256()
    pixels = decoded(split.source)
    if pixels is not None:
        digest.update(split.labels.tobytes())
        digest.update(pixels[split.indices].tobytes())
    elif isinstance(content := getattr(split.source, "content", None), str):
        digest.update(content.encode())
        digest.update(split.labels.tobytes())
        digest.update(split.indices.tobytes())
    elif root:
        for name, size, label in _samples(split, root):
            digest.update(f"{name}\0{size}\0{label}\n".encode("utf-8", "surrogateescape"))
    else:
        digest.update(split.labels.tobytes())
        _add_few_images(digest, split)
    return digest.hexdigest()


def _add_few_images(digest: Any, split: Subset) -> None:
    """Add a few images of a source that has neither files nor pixels: to read all may take as long as an epoch."""
    places = permute(np.arange(min(_SAMPLED, len(split)), dtype=np.int64), len(split), key(0, Purpose.FINGERPRINT))
    for index in split.indices[places].tolist():
        with contextlib.suppress(UserError):  # one that cannot be read is told when it is its turn
            image = read_image(split.source, index)
            digest.update(f"{index}\0{image.mode}\0{image.size}\n".encode())
            digest.update(image.tobytes())


def _samples(split: Subset, root: str) -> Iterator[Sample]:
    """Yield (name, bytes, class) of each sample of a split of files."""
    plain = isinstance(getattr(split.source, "paths", None), FilePaths)  # without doubled slashes
    sizes = np.maximum(sizes_of_files(split.source, split.indices).bytes, 0).tolist()
    for path, size, label in zip(file_names(split.source, split.indices), sizes, split.labels.tolist(), strict=True):
        short = plain and path.startswith(root) and ".." not in path
        yield path[len(root) :] if short else os.path.relpath(path, root), size, label


def _common_folder(data: LabelledSplits) -> str:
    """Return the folder that holds the files of all splits, with the slash at its end; empty for data without files."""
    ends: list[str] = []
    for split in data.splits.values():
        paths: Sequence[Path] | None = getattr(split.source, "paths", None)
        if paths is None or decoded(split.source) is not None:
            return ""
        names = file_names(split.source, split.indices)
        ends += [min(names), max(names)] if names else []
    common = os.path.commonpath([os.path.dirname(name) for name in ends])
    return os.path.join(common, "") or os.path.join(".", "")

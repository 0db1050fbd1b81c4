"""Labelled images of the user's own, in any form that Python programs hold them in, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vit_dist.data.sources.arrays import array_source, is_arrays, read_images
from vit_dist.data.sources.captions import Captions, plain_captions
from vit_dist.data.sources.datasets import dataset_source
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.listing import Listing, from_pairs, from_table, plain_label
from vit_dist.data.sources.names import class_order, is_table, order_notes
from vit_dist.data.sources.source import Source
from vit_dist.data.sources.tables import read_table
from vit_dist.errors import UserError, one_line
from vit_dist.files import user_path
from vit_dist.plan.keys import Ints

_KNOWN = "give (images, labels), a torch Dataset, a table or a list of paths with labels, or an object with __len__(), "
_KNOWN += "labels (class numbers) and image(index), which returns a PIL image"


@dataclass(frozen=True)
class Labelled:
    """Labelled images as they were given.

    classes: the names that the source's labels number; None if only the numbers are known. field: what errors call it.
    name: of the data, for people. notes: lines for the user on how it was read. weights: of the samples, float32.
    captions: of the samples, where they are read.
    """

    source: Source
    classes: tuple[str, ...] | None
    field: str
    name: str
    notes: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    captions: Captions | None = None


def open_labelled(value: Any, field: str, max_pixels: int, columns: Mapping[str, str]) -> Labelled:
    """Open labelled images of any form but splits; with captions in place of labels where `columns` has them.

    columns: `data.columns`, as they are read. Raises UserError.
    """
    captions = "caption" in columns
    listing = open_listing(value, field, columns)
    if listing is not None:
        return labelled_files(*listing, field, max_pixels)
    if is_arrays(value):
        images = read_images(value[0], f"{field}[0]")
        if not hasattr(value[1], "__iter__"):
            raise UserError(f"{field}[1]: must be a label for each image, not {type(value[1]).__name__}")
        texts = _packed(value[1], len(images), f"{field}[1]") if captions else None
        labels, classes = _number([""] * len(images) if captions else list(value[1]), len(images), f"{field}[1]")
        mode = "L" if images.shape[1] == 1 else "RGB"
        return Labelled(array_source(images, labels, mode), classes, field, "arrays", captions=texts)
    if isinstance(value, (np.ndarray, Tensor)):
        second = "captions" if captions else "labels"
        raise UserError(f"{field}: is an array without {second}: give (images, {second})")
    missing = [name for name in ("__len__", "labels", "image") if not hasattr(value, name)]
    if missing and (hasattr(value, "__getitem__") or hasattr(value, "__iter__")):
        source, found = dataset_source(value, field, columns)
        labels, classes = _number(found.labels, len(source), f"{field}.labels")
        of_numbers = None if found.classes is None else _named(found.classes, int(labels.max()), field)
        texts = None if found.captions is None else _packed(found.captions, len(source), field)
        return Labelled(replace(source, labels=labels), classes or of_numbers, field, _kind(value), captions=texts)
    if missing or not callable(value.image):
        lacks = ", ".join(missing) or "image(index), a method"
        raise UserError(f"{field}: {type(value).__name__} has no {lacks}: {_KNOWN}")
    names = getattr(value, "classes", None)
    labels = _check_labels(value, field)
    known = None if names is None else _named(names, int(labels.max()), field)
    texts = None
    if captions and callable(getattr(value, "captions", None)):
        texts = _packed([value.captions(index) for index in range(len(value))], len(value), f"{field}.captions")
    return Labelled(value, known, field, _kind(value), captions=texts)


def open_listing(value: Any, field: str, columns: Mapping[str, str]) -> tuple[Listing, str] | None:
    """Return the files, labels and name of a listing in any form; None for anything else.

    columns: `data.columns`. Raises UserError.
    """
    if isinstance(value, (str, Path)):
        path = user_path(str(value), field)
        if path.is_dir():
            raise UserError(f"{field}: {path} is a folder: set data.root to it, without a source")
        if not path.is_file():
            raise UserError(
                f"{field}: {path} is not there: give a table with columns path and label (.csv, .parquet …)"
            )
        if not is_table(path.name):
            raise UserError(f"{field}: {path} is no table by its ending: name it .csv, .tsv, .jsonl or .parquet")
        return read_table(path, field, columns), path.stem
    if isinstance(value, Mapping):
        return from_table(value, list(value), field, columns), "table"
    names = getattr(value, "columns", None)
    if names is not None and hasattr(value, "__getitem__"):
        return from_table(value, list(names), field, columns), "table"
    if isinstance(value, (list, tuple)) and not is_arrays(value):
        return from_pairs(value, field, "caption" if "caption" in columns else "label"), "listing"
    return None


def labelled_files(listing: Listing, name: str, field: str, max_pixels: int) -> Labelled:
    """Return the images of a listing, whose splits are left aside. Raises UserError."""
    labels, classes = _number(listing.labels, len(listing.paths), f"{field}, labels")
    source = FileSource(listing.paths, labels, max_pixels=max_pixels)
    notes = (*listing.notes, *order_notes(classes or ()))
    return Labelled(source, classes, field, name, notes, listing.weights, listing.captions)


def _number(labels: Sequence[Any], length: int, field: str) -> tuple[Ints, tuple[str, ...] | None]:
    """Return labels as class numbers int64 [length], and their names in order if they are names. Raises UserError."""
    plain = [plain_label(label) for label in labels]
    if len(plain) != length:
        raise UserError(f"{field}: has {len(plain)} labels for {length} images")
    if all(isinstance(label, str) for label in plain):
        names = class_order(set(plain))
        number_of = {name: number for number, name in enumerate(names)}
        return np.fromiter((number_of[label] for label in plain), np.int64, length), tuple(names)
    odd = next((label for label in plain if isinstance(label, bool) or not isinstance(label, (int, np.integer))), None)
    if odd is not None:
        raise UserError(f"{field}: must be class numbers or names, not {one_line(repr(odd), 60)}, {type(odd).__name__}")
    return _not_negative(np.asarray(plain, np.int64), field), None


def _packed(captions: Any, length: int, field: str) -> Captions:
    """Return the captions of images, each a text or several. Raises UserError."""
    if not hasattr(captions, "__len__") or isinstance(captions, str) or len(captions) != length:
        raise UserError(f"{field}: must be a caption, or a list of captions, for each of the {length:,} images")
    return Captions.of(plain_captions(value, f"{field}[{number}]".__str__) for number, value in enumerate(captions))


def _kind(value: Any) -> str:
    """Return what an object is called after: its class, or that of the Dataset that it is a part of."""
    while hasattr(value, "dataset") and hasattr(value, "indices"):
        value = value.dataset
    return type(value).__name__


def _check_labels(source: Any, field: str) -> Ints:
    """Return the labels as int64 [length]. Raises UserError."""
    length, labels = len(source), np.asarray(source.labels)
    if not length:
        raise UserError(f"{field}: has no images")
    if labels.shape != (length,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{field}.labels: must be one class number, 0 or more, for each of its {length} images, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    return _not_negative(labels.astype(np.int64), f"{field}.labels")


def _not_negative(labels: Ints, field: str) -> Ints:
    if labels.min() < 0:
        index = int(labels.argmin())
        raise UserError(f"{field}: must be 0 or more, not {labels[index]} (image {index})")
    return labels


def _named(names: Any, largest: int, field: str) -> tuple[str, ...]:
    """Return the names of a source's classes, up to its largest label at least. Raises UserError."""
    if isinstance(names, str) or not isinstance(names, Sequence) or len(set(names)) != len(names):
        raise UserError(f"{field}.classes: must be a list of different names")
    if len(names) <= largest:
        raise UserError(f"{field}.classes: has {len(names)} names, and {field}.labels go up to {largest}")
    return tuple(map(str, names))

"""Sources made of a torch Dataset, or of a Hugging Face one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from vit_dist.data.sources.decode import Header, image_header
from vit_dist.data.sources.images import to_pil
from vit_dist.data.sources.listing import CAPTIONS, LABELS, column, plain_label, usual_column
from vit_dist.errors import UserError, one_line
from vit_dist.plan.keys import Ints

# Lists of (file, label) that torchvision's folders have.
_FILES = ("samples", "imgs")
IMAGES = ("image", "img", "pixels", "picture", "x")
# How often the first item is read: one that is mirrored at random comes out the same each time once in 128.
_READS = 8
_LOOKED_AT = 16


@dataclass(frozen=True)
class DatasetSource:
    """A source of the items of a Dataset: (image, label, …), or dictionaries.

    image_key: where the image is in an item. mode: Pillow's, RGB or L (grey), of the images that it gives. sizes:
    what some of them say of themselves. paths: the file of each, if the Dataset has them.
    """

    dataset: Any
    labels: Ints
    image_key: Any
    mode: str
    sizes: tuple[Header, ...]
    paths: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image in the source's mode. Raises UserError that names its number."""
        return to_pil(self.dataset[index][self.image_key], f"source[{index}]", self.mode)


class BesideImages(NamedTuple):
    """Hold what a Dataset has beside its images. labels: numbers or names. classes: their names, if it has them.

    captions: of each image a text, or several, where they are read.
    """

    labels: list[Any]
    classes: Sequence[str] | None
    captions: list[Any] | None = None


def dataset_source(dataset: Any, field: str, columns: Mapping[str, str]) -> tuple[DatasetSource, BesideImages]:
    """Return the source of a Dataset, still without labels, and what it has beside the images.

    Labels come from its `targets` or `labels`, or its column of labels, if a few items agree; else all items are read.
    columns: `data.columns`; with captions these are the second of an item, or its column, and labels a column that may
    be missing. Raises UserError for one that gives other images each time, or floats, in one line that says what to
    change.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, (IterableDataset, DataLoader)) or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{field}: {kind} cannot be read in any order: give a Dataset with a length and items by number"
        )
    if not len(dataset):
        raise UserError(f"{field}: has no images")
    image_key, label_key, caption_key = _keys(_item(dataset, 0, field), field, kind, columns)
    _check_repeatable(dataset, image_key, field, kind)
    places = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int)).tolist()
    looked_at = {place: _item(dataset, place, field) for place in places}
    labels: Sequence[Any] | None = [""] * len(dataset)
    if label_key is not None:
        labels = None if _changes_labels(dataset) else _labels(dataset, label_key)
        if labels is None or any(
            plain_label(labels[place]) != plain_label(item[label_key]) for place, item in looked_at.items()
        ):
            labels = [_item(dataset, index, field)[label_key] for index in range(len(dataset))]
    captions: list[Any] | None = None
    if caption_key is not None:
        named = hasattr(dataset, "column_names") and isinstance(caption_key, str)
        captions = list(dataset[caption_key]) if named else None
        captions = captions or [_item(dataset, index, field)[caption_key] for index in range(len(dataset))]
    files = _attribute(dataset, _FILES)
    paths = [Path(pair[0]) for pair in files] if files is not None and len(files) == len(dataset) else None
    sizes = tuple(_header(item[image_key], f"{field}[{place}]") for place, item in looked_at.items())
    mode = "L" if all(header.grey for header in sizes) else "RGB"
    source = DatasetSource(dataset, np.zeros(len(dataset), np.int64), image_key, mode, sizes, paths)
    classes = None if label_key is None else _classes(dataset, label_key)
    return source, BesideImages([plain_label(label) for label in labels or ()], classes, captions)


def _header(image: Any, name: str) -> Header:
    """Return what an image says of itself. Raises UserError if it is none that can be used."""
    plain = to_pil(image, name)
    return image_header(image if isinstance(image, Image.Image) else plain)


def _item(dataset: Any, index: int, field: str) -> Any:
    """Return an item. Raises UserError that names it for whatever the Dataset raises."""
    try:
        return dataset[index]
    except Exception as error:
        raise UserError(f"{field}[{index}]: cannot be read ({type(error).__name__}: {one_line(error, 200)})") from error


def _keys(item: Any, field: str, kind: str, columns: Mapping[str, str]) -> tuple[Any, Any, Any]:
    """Return where the image, the label and the captions are in an item; None where they are not. Raises UserError."""
    captions = "caption" in columns
    if isinstance(item, Mapping):
        names = list(item)
        image = column(names, IMAGES, field, "images")
        if not captions:
            return image, column(names, LABELS, field, "labels"), None
        known = (columns["caption"].lower().strip(),) if columns["caption"] else CAPTIONS
        return image, usual_column(names, LABELS), column(names, known, field, "captions")
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return (0, None, 1) if captions else (0, 1, None)
    second = "caption" if captions else "label"
    raise UserError(f"{field}: an item of {kind} is {type(item).__name__}: it must be (image, {second})")


def _check_repeatable(dataset: Any, key: Any, field: str, kind: str) -> None:
    """Check that an image is the same each time. Raises UserError."""
    first = [np.asarray(to_pil(_item(dataset, 0, field)[key], f"{field}[0]")) for _ in range(_READS)]
    if any(not np.array_equal(first[0], other) for other in first[1:]):
        raise UserError(
            f"{field}: {kind}[0] is another image each time it is read: take random transforms out of the Dataset and "
            "set augment.* instead, which any machine repeats"
        )


def _changes_labels(dataset: Any) -> bool:
    """Return whether a Dataset, or one that it is made of, says that its items have other labels than it holds."""
    parts = [dataset.dataset] if isinstance(dataset, Subset) else getattr(dataset, "datasets", [])
    return getattr(dataset, "target_transform", None) is not None or any(map(_changes_labels, parts))


def _labels(dataset: Any, key: Any) -> Sequence[Any] | None:
    """Return the labels that a Dataset holds beside its images, if it does."""
    if isinstance(dataset, TensorDataset):
        return list(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
    if hasattr(dataset, "column_names") and isinstance(key, str):
        labels = list(dataset[key])
        return labels if len(labels) == len(dataset) else None
    return _attribute(dataset, ("targets", "labels"))


def _attribute(dataset: Any, names: Sequence[str]) -> list[Any] | None:
    """Return the first of some attributes with an entry for each item, of a Dataset or of those that it is made of."""
    if isinstance(dataset, Subset):
        whole = _attribute(dataset.dataset, names)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_attribute(part, names) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or ()]
    for name in names:
        values = getattr(dataset, name, None)
        if values is not None and hasattr(values, "__len__") and len(values) == len(dataset):
            return list(values)
    return None


def _classes(dataset: Any, key: Any) -> Sequence[str] | None:
    """Return the names of a Dataset's classes, if it has them."""
    while isinstance(dataset, (Subset, ConcatDataset)):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    features = getattr(dataset, "features", None)
    named = features[key] if isinstance(features, Mapping) and key in features else dataset
    names = getattr(named, "classes", None) or getattr(named, "names", None)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else None

"""Data sets of Hugging Face: saved to disk, in Parquet files, or by their name on the Hub."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_dist.data.sources.captions import Captions, plain_captions
from vit_dist.data.sources.datasets import IMAGES
from vit_dist.data.sources.decode import MAX_PIXELS, EncodedImage, Header, ImageError, check_bytes, decode, decoding
from vit_dist.data.sources.image_files import header_of, open_regular
from vit_dist.data.sources.listing import CAPTIONS, LABELS, column, plain_label, usual_column
from vit_dist.data.sources.names import class_order, split_of
from vit_dist.data.sources.splits import IMAGENET, SPLITS, ImageSizes, LabelledSplits, LeftOut, Subset, all_of
from vit_dist.data.sources.survey import sizes_of
from vit_dist.errors import UserError, one_line, visible
from vit_dist.plan.keys import Ints, Keys, Purpose, key, keys
from vit_dist.plan.permutation import permute

HUB = "hf://"
_HALF = ((0.5,), (0.5,))
_MEASURED, _SIDE = 500, 224


@dataclass(frozen=True)
class HuggingFaceSource:
    """A source of the images of one split, as the bytes that the data set holds.

    rows: gives {column: bytes, or {bytes, path}} of each. name: of the split, for people. mode: Pillow's, RGB or L.
    """

    rows: Any
    column: str
    labels: Ints
    name: str
    mode: str = "RGB"
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def keys(self) -> Keys:
        """Return what decides whether each image is held out as val: of its row, so that rows may be added."""
        return keys(0, Purpose.SPLIT, np.arange(len(self), dtype=np.int64))

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as the bytes of its file. Raises ImageError that names its row."""
        value = self.rows[index][self.column]
        name = self.image_name(index)
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        if content is None and path:
            name = f"{name} ({path})"
            with decoding(name, self.max_pixels), open_regular(Path(path)) as file:
                check_bytes(os.fstat(file.fileno()).st_size, name, self.max_pixels)
                content = file.read()
        if not isinstance(content, bytes):
            raise ImageError(f"{visible(name)}: has no image: remove the row")
        check_bytes(len(content), name, self.max_pixels)
        return EncodedImage(content, name, self.mode, self.max_pixels)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image, upright, in the source's mode. Raises ImageError that names its row."""
        return decode(self.encoded(index))

    def image_name(self, index: int) -> str:
        """Return the name of an image for people: its split and row."""
        return f"{self.name}, row {index}"


def is_saved(root: Path) -> bool:
    """Return whether a folder is what `save_to_disk` of `datasets` writes."""
    return (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def parquet_files(root: Path) -> list[Path]:
    """Return the Parquet files in a folder, and in the folders in it, sorted."""
    return sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])


def read_huggingface(root: str, max_pixels: int, chosen: Mapping[str, str]) -> LabelledSplits:
    """Read a folder that `datasets` saved, one of Parquet files, or hf://owner/name[@revision][/configuration].

    Columns are found by their types, then by their names. chosen: `data.columns`, path being that of the images. Raises
    UserError.
    """
    with _one_line(root):
        every = _load(root)
        found: dict[str, tuple[Any, str, list[Any], Captions | None]] = {}
        left_out: list[LeftOut] = []
        names: Sequence[str] | None = None
        for name, dataset in every.items():
            split = SPLITS.get(name.lower())
            if split is None:
                left_out.append(LeftOut("splits that are none of train, val and test", 1, name))
                continue
            if split in found:
                raise UserError(f"data.root: {root} has two splits that mean {split}, {name} is one: remove it")
            images, label, caption = _columns(dataset.features, root, chosen)
            labels: list[Any] = [0] * len(dataset)
            if not label:
                names = [""]
            else:
                labels = [plain_label(each) for each in dataset.select_columns([label]).with_format("numpy")[:][label]]
                names = names or getattr(dataset.features[label], "names", None)
            if split != "train" and labels and all(each in (-1, None) for each in labels):
                left_out.append(LeftOut("splits without labels", 1, name))
                continue
            texts = _captions(dataset, caption, f"data.root: {root}, {name}") if caption else None
            found[split] = (_encoded_column(dataset, images), images, labels, texts)
        if "train" not in found:
            raise UserError(f"data.root: {root} has the splits {', '.join(every)}, and none of them is train")
        classes, numbers = _number({split: labels for split, (_, _, labels, _) in found.items()}, names, root)
        splits = {}
        for split, (rows, images, _, texts) in found.items():
            source = HuggingFaceSource(rows, images, numbers[split], f"{root}, {split}", max_pixels=max_pixels)
            splits[split] = replace(all_of(source), captions=texts)
        sizes = _measure(splits["train"].source)
    return _described(splits, classes, sizes, tuple(left_out))


def _described(
    splits: dict[str, Subset], classes: tuple[str, ...], sizes: ImageSizes | None, left_out: tuple[LeftOut, ...]
) -> LabelledSplits:
    """Return the splits with one channel if all images are grey, and the images' own side if they are equal squares."""
    grey = sizes is not None and sizes.grey == 1
    side = sizes.smallest if sizes is not None and sizes.smallest == sizes.largest else _SIDE
    if grey:
        for split, part in splits.items():
            source: Any = part.source
            splits[split] = replace(part, source=replace(source, mode="L"))
    mean, std = _HALF if grey else IMAGENET
    return LabelledSplits(splits, classes, 1 if grey else 3, side, mean, std, sizes, left_out)


def _load(root: str) -> Mapping[str, Any]:
    """Return the splits of a data set by their names. Raises UserError without the package, and what that raises."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"data.root: {root} needs the package datasets: pip install datasets") from None
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if root.startswith(HUB):
            name, _, revision = root.removeprefix(HUB).partition("@")
            revision, _, of_revision = revision.partition("/")
            owner, _, rest = name.partition("/")
            repository, _, configuration = rest.partition("/")
            if not owner or not repository:
                raise UserError(
                    f"data.root: {root} must be hf://owner/name, hf://owner/name@revision or …/configuration"
                )
            loaded = datasets.load_dataset(
                f"{owner}/{repository}", configuration or of_revision or None, revision=revision or None
            )
        elif is_saved(Path(root)):
            loaded = datasets.load_from_disk(root)
        else:
            files: dict[str, list[str]] = {}
            for path in parquet_files(Path(root)):
                split = split_of(path.relative_to(root).as_posix()) or "train"
                files.setdefault(split, []).append(str(path))
            loaded = datasets.load_dataset("parquet", data_files=files)
    finally:
        if shown:
            datasets.enable_progress_bars()
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


@contextlib.contextmanager
def _one_line(root: str) -> Iterator[None]:
    """Turn whatever `datasets` raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of pyarrow, of the network, of the files
        raise UserError(f"data.root: {root} cannot be read: {type(error).__name__}: {one_line(error, 300)}") from error


def _columns(features: Mapping[str, Any], root: str, chosen: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the columns of images, labels and captions; empty: these are not read.

    Where captions are read there may be no labels. Raises UserError with the columns that there are.
    """
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    field = f"data.root: {root}"
    for what, name in chosen.items():
        if what == "caption" and not name:
            continue
        if what not in ("path", "label", "caption"):
            why = "has splits of its own" if what == "split" else "is no table: weights are read from tables alone"
            raise UserError(f"data.columns.{what}: {root} {why}: leave it out")
        if name not in features:
            raise UserError(f"data.columns.{what}: {root} has no column {name}: it has {', '.join(features)}")
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if not images:
        images = [name for name, feature in features.items() if isinstance(feature, Mapping) and "bytes" in feature]
    image = chosen.get("path") or (
        images[0] if len(images) == 1 else column(images or list(features), IMAGES, field, "images")
    )
    others, caption = [name for name in features if name != image], ""
    if "caption" in chosen:
        caption = chosen["caption"] or column(others, CAPTIONS, field, "captions", ", or set data.columns.caption")
    if "label" in chosen:
        return image, chosen["label"], caption
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(labels) == 1:
        return image, labels[0], caption
    if caption:
        return image, usual_column(labels or others, LABELS) or "", caption
    try:
        return image, column(labels or others, LABELS, field, "labels"), ""
    except UserError:
        raise UserError(
            f"{field}: no column is known to have the labels: set data.columns.label to one of {', '.join(features)}"
        ) from None


def _captions(dataset: Any, name: str, place: str) -> Captions:
    """Return the captions in a column, each a text or a list of texts. Raises UserError that names the row."""
    values = dataset.select_columns([name]).with_format(None)[:][name]
    return Captions.of(plain_captions(value, f"{place}, row {row}".__str__) for row, value in enumerate(values))


def _encoded_column(dataset: Any, name: str) -> Any:
    """Return a data set of one column of images, which are not decoded."""
    import datasets

    rows = dataset.select_columns([name])
    return (
        rows.cast_column(name, datasets.Image(decode=False)) if type(rows.features[name]).__name__ == "Image" else rows
    )


def _number(
    labels: Mapping[str, list[Any]], names: Sequence[str] | None, root: str
) -> tuple[tuple[str, ...], dict[str, Ints]]:
    """Return the classes, and the numbers of the labels of each split. Raises UserError."""
    for split, of_split in labels.items():
        for row, label in enumerate(of_split):
            if label is None or label == -1 or label == "" or not isinstance(label, (int, str)):
                what = "has no label" if label in (None, -1, "") else f"has a label that is {type(label).__name__}"
                raise UserError(f"data.root: {root}, {split}, row {row}: {what}: remove it, or set data.columns.label")
    if not labels["train"]:
        raise UserError(f"data.root: {root} has no images to train on")
    if names is None and all(isinstance(label, int) for label in labels["train"]):
        most = max(label for of_split in labels.values() for label in of_split)
        if most >= sum(map(len, labels.values())):
            raise UserError(f"data.root: {root}: its labels go up to {most}: set data.columns.label to that of classes")
        names = [str(number) for number in range(most + 1)]
    if names is not None and all(isinstance(label, int) for label in labels["train"]):
        return tuple(names), {split: np.asarray(of_split, np.int64) for split, of_split in labels.items()}
    known = class_order({str(label) for label in labels["train"]})
    number_of = {name: number for number, name in enumerate(known)}
    unknown = [str(label) for of_split in labels.values() for label in of_split if str(label) not in number_of]
    if unknown:
        raise UserError(f"data.root: {root}: class {unknown[0]} is not in train: add images of it there")
    return tuple(known), {
        split: np.asarray([number_of[str(label)] for label in of_split], np.int64) for split, of_split in labels.items()
    }


def _measure(source: Any) -> ImageSizes | None:
    """Measure a keyed sample of the images by their headers; None if none can be read."""
    count = min(_MEASURED, len(source))
    headers: list[Header] = []
    unreadable = []
    for index in permute(np.arange(count, dtype=np.int64), len(source), key(0, Purpose.SURVEY)).tolist():
        header = None
        with contextlib.suppress(ImageError):
            header = header_of(io.BytesIO(source.encoded(index).content))
        if header is None:
            unreadable.append(source.image_name(index))
        else:
            headers.append(header)
    sizes = sizes_of(headers)
    return sizes and replace(sizes, unreadable=tuple(sorted(unreadable)))

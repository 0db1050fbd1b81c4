"""Labelled images of the user's own, in every form: arrays, Datasets, tables, listings, and splits of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, TensorDataset, random_split
from torch.utils.data import Subset as TorchSubset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from vit_dist import UserError
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.custom import from_source, numbered, open_parts
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import ImageSizes, LabelledSplits, Subset

WHOLE = DataConfig(val_fraction=0.0)
LABELS = np.arange(12) % 3


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)


def read(subset: Subset) -> NDArray[np.uint8]:
    """Return the images of a subset of one size, in its order."""
    return np.stack([np.asarray(subset.source.image(index)) for index in subset.indices.tolist()])


def opened(source: Any, **fields: Any) -> LabelledSplits:
    return from_source(source, DataConfig(**{"val_fraction": 0.0, **fields}))


class Own(Dataset[Any]):
    """A Dataset as people write it: (image, label), and nothing else. reads: which items were read, in order."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.answers = images, labels
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads.append(index)
        return self.images[index], self.answers[index]


COLOUR = pixels(6, 6, 3)


@pytest.mark.parametrize(
    "images",
    [COLOUR, COLOUR.transpose(0, 3, 1, 2), torch.from_numpy(COLOUR), torch.from_numpy(COLOUR).permute(0, 3, 1, 2)],
    ids=["array, channels last", "array, channels first", "tensor, channels last", "tensor, channels first"],
)
@pytest.mark.parametrize("labels", [LABELS, LABELS.tolist(), torch.from_numpy(LABELS)], ids=["array", "list", "tensor"])
def test_arrays_and_tensors(images: Any, labels: Any) -> None:
    data = opened((images, labels))
    train = data.splits["train"]
    assert (data.channels, data.image_size, data.classes, data.name) == (3, 6, ("0", "1", "2"), "arrays")
    assert np.array_equal(read(train), COLOUR)
    assert train.labels.tolist() == LABELS.tolist()
    held = decoded(train.source)
    assert held is not None
    assert np.array_equal(held, COLOUR.transpose(0, 3, 1, 2))


def test_grey_arrays_with_and_without_channels_and_names_for_labels() -> None:
    grey, names = pixels(6, 6), np.asarray(["cat", "ant", "bee"])[LABELS]
    for images in (grey, grey[:, None], grey[..., None], torch.from_numpy(grey)):
        data = opened((images, names))
        assert (data.channels, data.mean, data.classes) == (1, (0.5,), ("ant", "bee", "cat"))
        assert np.array_equal(read(data.splits["train"]), grey)
        assert data.splits["train"].labels.tolist() == [2, 0, 1] * 4


def test_arrays_that_are_no_squares_are_read_as_images() -> None:
    wide = pixels(4, 9, 3)
    data = opened([wide, LABELS])
    assert (data.image_size, decoded(data.splits["train"].source)) == (224, None)
    assert np.array_equal(read(data.splits["train"]), wide)
    assert opened((wide, LABELS), image_size=32).image_size == 32


FORMS_OF_ITEMS = {
    "PIL": [Image.fromarray(image) for image in COLOUR],
    "arrays": list(COLOUR),
    "tensors": list(torch.from_numpy(COLOUR).permute(0, 3, 1, 2)),
}


@pytest.mark.parametrize("images", FORMS_OF_ITEMS.values(), ids=FORMS_OF_ITEMS)
def test_a_dataset_of_ones_own(images: Any) -> None:
    data = opened(Own(images, LABELS.tolist()))
    train = data.splits["train"]
    assert (data.channels, data.image_size, data.classes, data.name) == (3, 6, ("0", "1", "2"), "Own")
    assert data.sizes == ImageSizes(12, 6, 6, 6, 0.0)
    assert train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(read(train), COLOUR)


def test_labels_of_a_dataset_are_taken_from_it_without_reading_every_image() -> None:
    many = Own([Image.fromarray(COLOUR[0])] * 500, [number % 2 for number in range(500)])
    assert opened(many).splits["train"].labels.tolist() == many.answers
    assert len(set(many.reads)) == 500  # nothing but its items says the labels
    many.reads.clear()
    many.targets = torch.tensor(many.answers)
    many.classes = ["no", "yes"]
    data = opened(many)
    assert data.splits["train"].labels.tolist() == many.answers
    assert data.classes == ("no", "yes")
    assert len(set(many.reads)) == 16
    many.targets[7:] = 1 - many.targets[7:]  # as a target_transform would: the items are right
    assert opened(many).splits["train"].labels.tolist() == many.answers
    many.targets, many.target_transform = torch.tensor(many.answers), len
    many.answers[3] = 0  # where nobody looks
    assert opened(TorchSubset(many, range(500))).splits["train"].labels[3] == 0


def test_parts_and_sums_of_datasets_keep_labels_and_classes() -> None:
    whole = Own(FORMS_OF_ITEMS["PIL"], LABELS.tolist())
    whole.targets, whole.classes = LABELS.tolist(), ["ant", "bee", "cat"]
    part = TorchSubset(whole, [5, 1, 9])
    data = opened({"train": whole, "val": part})
    assert (data.name, data.classes) == ("Own", ("ant", "bee", "cat"))
    assert data.splits["val"].labels.tolist() == [2, 1, 0]
    assert np.array_equal(read(data.splits["val"]), COLOUR[[5, 1, 9]])
    halves = random_split(whole, [0.5, 0.5], torch.Generator().manual_seed(0))
    assert opened(halves[0]).splits["train"].labels.tolist() == LABELS[halves[0].indices].tolist()
    twice = opened(ConcatDataset([whole, part]))
    assert twice.splits["train"].labels.tolist() == [*LABELS.tolist(), 2, 1, 0]
    assert twice.classes == ("ant", "bee", "cat")
    tensors = TensorDataset(torch.from_numpy(COLOUR).permute(0, 3, 1, 2), torch.from_numpy(LABELS))
    assert np.array_equal(read(opened(tensors).splits["train"]), COLOUR)


def test_torchvisions_folder_and_its_files(image_folder: Path) -> None:
    data = opened(ImageFolder(str(image_folder / "train")))
    train = data.splits["train"]
    assert (data.classes, data.channels, data.image_size) == (("ant", "bee", "cat"), 3, 224)
    assert train.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    files = sorted((image_folder / "train").rglob("*.png"))
    assert list(train.source.paths) == files  # type: ignore[attr-defined]
    expected = FileSource(files, train.labels)
    for index in (0, 27, 59):
        assert train.source.image(index).tobytes() == expected.image(index).tobytes()


def test_cifar10_as_torchvision_has_it() -> None:
    cifar = CIFAR10.__new__(CIFAR10)  # as its constructor leaves it, without the files
    cifar.data, cifar.targets, cifar.classes = pixels(32, 32, 3), LABELS.tolist(), [f"class {i}" for i in range(10)]
    cifar.transform = cifar.target_transform = None
    data = opened(cifar)
    assert (data.image_size, data.channels, len(data.classes)) == (32, 3, 10)
    assert np.array_equal(read(data.splits["train"]), cifar.data)


class HuggingFace:
    """A split as Hugging Face's datasets have it: columns by name, rows by number, names of the classes in features."""

    class ClassLabel:
        names = ("ant", "bee", "cat")

    column_names = ("image", "label")
    features = {"image": object(), "label": ClassLabel()}  # noqa: RUF012

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return LABELS.tolist() if key == "label" else self.images
        return {"image": self.images[key], "label": int(LABELS[key])}


def test_hugging_faces_datasets_with_their_splits() -> None:
    split = HuggingFace(FORMS_OF_ITEMS["PIL"])
    data = opened({"train": split, "validation": split})
    assert list(data.splits) == ["train", "val"]
    assert (data.classes, data.image_size) == (("ant", "bee", "cat"), 6)
    assert data.splits["val"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(read(data.splits["val"]), COLOUR)


class Table:
    """A table as pandas and polars have it: the names in `columns`, a column of values for each."""

    def __init__(self, **content: list[Any]) -> None:
        self.content = content
        self.columns = list(content)

    def __getitem__(self, name: str) -> list[Any]:
        return self.content[name]


def listing(image_folder: Path) -> tuple[list[str], list[str]]:
    files = sorted((image_folder / "valid").rglob("*.png"))
    return list(map(str, files)), [path.parent.name for path in files]


def forms_of_listings(image_folder: Path, csv_folder: Path) -> Iterator[Any]:
    paths, labels = listing(image_folder)
    yield list(zip(paths, labels, strict=True))
    yield [(Path(path), label) for path, label in zip(paths, labels, strict=True)]
    yield Table(Path=paths, label=labels)
    yield Table(weight=[1.0] * len(paths), target=labels, filename=paths)
    yield {"path": paths, "label": labels}
    with (csv_folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class"], *zip(paths, labels, strict=True)])
    yield csv_folder / "photos.csv"
    yield str(csv_folder / "photos.csv")


def test_listings_and_tables(image_folder: Path, tmp_path: Path) -> None:
    for source in forms_of_listings(image_folder, tmp_path):
        data = opened(source)
        train = data.splits["train"]
        assert (data.classes, data.channels) == (("ant", "bee", "cat"), 3)
        assert train.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
        assert isinstance(train.source, FileSource)
        assert list(map(str, train.source.paths)) == listing(image_folder)[0]
        assert data.sizes is not None
        assert (data.sizes.smallest, data.sizes.largest) == (20, 24)
    assert data.name == "photos"


def test_a_listing_may_number_its_classes_and_name_its_splits(image_folder: Path) -> None:
    paths, labels = listing(image_folder)
    numbers = [("ant", "bee", "cat").index(label) for label in labels]
    assert opened(list(zip(paths, numbers, strict=True))).classes == ("0", "1", "2")
    splits = ["train", "valid", "test"] * 7
    data = opened(Table(path=paths, label=labels, split=splits), val_fraction=0.5)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 7, "val": 7, "test": 7}
    assert data.splits["val"].labels.tolist() == [("ant", "bee", "cat").index(label) for label in labels[1::3]]


def test_paths_in_a_csv_file_are_relative_to_it(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder / "valid"
    content = "path,label\nant/00.png,ant\ncat/03.png,cat\n"
    file = folder.parent / "relative.csv"
    file.write_text(content.replace("ant/", "valid/ant/").replace("cat/", "valid/cat/"))
    try:
        train = opened(file).splits["train"]
    finally:
        file.unlink()
    assert [path.name for path in train.source.paths] == ["00.png", "03.png"]  # type: ignore[attr-defined]
    monkeypatch.chdir(folder)
    assert opened([("ant/00.png", "a"), ("cat/03.png", "b")]).classes == ("a", "b")


def test_val_is_a_stratified_part_that_stays_when_files_are_added(image_folder: Path) -> None:
    paths, labels = listing(image_folder)
    pairs = list(zip(paths, labels, strict=True))
    held_out = [held_out_files(opened(some, val_fraction=0.3)) for some in (pairs, pairs[:-1], pairs[::-1])]
    assert held_out[0] == held_out[2]
    assert [sum(name in path for path in held_out[0]) for name in ("/ant/", "/bee/", "/cat/")] == [2, 2, 2]
    assert len(held_out[0] ^ held_out[1]) <= 2
    arrays = opened((COLOUR, LABELS), val_fraction=0.25)
    assert np.bincount(arrays.splits["val"].labels).tolist() == [1, 1, 1]


def held_out_files(data: LabelledSplits) -> set[str]:
    val = data.splits["val"]
    return {str(val.source.paths[index]) for index in val.indices.tolist()}  # type: ignore[attr-defined]


def test_splits_of_several_forms_share_the_classes_by_name(image_folder: Path) -> None:
    paths, labels = listing(image_folder)
    some = [(path, label) for path, label in zip(paths, labels, strict=True) if label != "ant"]
    data = opened({"train": ImageFolder(str(image_folder / "train")), "test": some}, val_fraction=0.2)
    assert list(data.splits) == ["train", "test", "val"]
    assert data.splits["test"].labels.tolist() == [1] * 7 + [2] * 7
    grey = opened({"train": (pixels(6, 6), LABELS), "test": (COLOUR, LABELS)})
    assert grey.channels == 1
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in COLOUR]
    assert np.array_equal(read(grey.splits["test"]), expected)


def test_labels_without_names_are_numbers_of_the_models_classes() -> None:
    part = open_parts((COLOUR, LABELS), 10**6, {})["train"]
    assert numbered(part, ("x", "y", "z"), "RGB").labels.tolist() == LABELS.tolist()
    with pytest.raises(UserError, match=r"^source: has class 2, and there are 2 classes, numbered from 0$"):
        numbered(part, ("x", "y"), "RGB")


class Random(Own):
    """A Dataset with a random transform in it."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(index)
        return v2.RandomHorizontalFlip()(image), label


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ()


FLOATS = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
PROBLEMS: dict[str, tuple[Any, str]] = {
    "a random transform": (
        Random(FORMS_OF_ITEMS["PIL"], LABELS.tolist()),
        "source: Random[0] is another image each time it is read: take random transforms out of the Dataset and set "
        "augment.* instead, which any machine repeats",
    ),
    "normalised": (
        Own([FLOATS(image) for image in FORMS_OF_ITEMS["PIL"]], LABELS.tolist()),
        "source[0]: has float32 values: give the image itself, uint8 from 0 to 255, without ToTensor, scaling or "
        "normalising, which vit_dist does",
    ),
    "float arrays": (
        (COLOUR / 255, LABELS),
        "source[0]: has float64 values: give the image itself, uint8 from 0 to 255, without ToTensor, scaling or "
        "normalising, which vit_dist does",
    ),
    "an array alone": (COLOUR, "source: is an array without labels: give (images, labels)"),
    "an iterable": (
        Endless(),
        "source: Endless cannot be read in any order: give a Dataset with a length and items by number",
    ),
    "a loader": (
        DataLoader(Own(list(COLOUR), LABELS.tolist())),
        "source: DataLoader cannot be read in any order: give a Dataset with a length and items by number",
    ),
    "no label": (
        list_of := TensorDataset(torch.from_numpy(COLOUR)),
        "source: an item of TensorDataset is tuple: it must be (image, label)",
    ),
    "too few labels": ((COLOUR, LABELS[:5]), "source[1]: has 5 labels for 12 images"),
    "real labels": ((COLOUR, LABELS + 0.5), "source[1]: must be class numbers or names, not 0.5, float"),
    "one-hot labels": (
        (COLOUR, np.eye(4)[LABELS]),
        "source[1]: must be class numbers or names, not array([1., 0., 0., 0.]), ndarray",
    ),
    "no labels": ((COLOUR, None), "source[1]: must be a label for each image, not NoneType"),
    "negative": ((COLOUR, LABELS - 1), "source[1]: must be 0 or more, not -1 (image 0)"),
    "two dimensions": (
        (COLOUR[0], LABELS),
        "source[1]: has 12 labels for 6 images",
    ),
    "RGBA": (
        (pixels(6, 6, 4), LABELS),
        "source[0]: must be [n, height, width, channels] or [n, channels, height, width] with 1 or 3 channels, or "
        "[n, height, width], not [12, 6, 6, 4]",
    ),
    "a split's name": ({"train": (COLOUR, LABELS), "holdout": (COLOUR, LABELS)}, "source: holdout is no split"),
    "no train": ({"val": (COLOUR, LABELS)}, "source: has val but no train"),
    "two vals": (
        {"train": (COLOUR, LABELS), "val": (COLOUR, LABELS), "valid": (COLOUR, LABELS)},
        "source: valid is a second val split",
    ),
    "another class in val": (
        {"train": (COLOUR, np.asarray(list("abc"))[LABELS]), "val": (COLOUR, np.asarray(list("abd"))[LABELS])},
        "source['val']: class d is not one of the 3 classes (a, b, c)",
    ),
    "gone": ([("gone.png", "a"), ("too.png", "b")], "source[0]: gone.png is not there, nor are 1 more"),
    "no column": (
        Table(path=["a.png"], price=[1]),
        "source: has no column of labels: name one label, or set data.columns.label; it has path, price",
    ),
    "no pairs": (["a.png", "b.png"], "source[0]: must be a pair of a path and a label"),
    "pairs of numbers": ([(1, 2)], "source[0]: must begin with the path of an image, not with int"),
    "no table": ("gone.csv", "source: gone.csv is not there: give a table with columns path and label (.csv, .parquet"),
    "an empty list": ([], "source: lists no images"),
    "a number": (3, "source: int has no __len__, labels, image: give (images, labels), a torch Dataset, a table or"),
}


@pytest.mark.parametrize(("source", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_wrong_is_one_line(source: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        opened(source)
    assert str(error.value).startswith(problem)
    assert "\n" not in str(error.value)


def test_mistakes_in_files_are_one_line(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: set data.root to it, without a source$"):
        opened(image_folder)
    table = tmp_path / "table.csv"
    image = image_folder / "train" / "ant" / "00.png"
    for content, problem in (
        ("path,label\n", f"source: {table} lists no images"),
        (f"path,label\n{image}\n", f"source: {table}, row 2: must have 2 cells, as its head has, not 1"),
        (f"path,label\n{image},\n", f"source: {table}, row 2, column label: {image} has no label: give it one"),
        (
            f"a,b\n{image},x\n",
            f"source: {table}: has no column of image files: name one path, or set data.columns.path; it has a, b",
        ),
        (f"path,label,split\n{image},x,later\n", f"source: {table}, row 2, column split: later is no split"),
    ):
        table.write_text(content)
        with pytest.raises(UserError) as error:
            opened(table)
        assert str(error.value).startswith(problem)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read as a CSV file: "):
        opened(table)

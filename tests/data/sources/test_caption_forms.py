"""Captions in tables, in each form that source= takes, and in data sets of Hugging Face."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from tests.data.sources.test_tables import json_lines, parquet, separated
from vit_dist import Config
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import sample_name
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.training.components import open_splits

Row = dict[str, Any]
IMAGES = ("cat/00.png", "ant/01.png", "ant/02.png", "cat/03.png")


@pytest.fixture
def folder(tmp_path: Path, image_folder: Path) -> Path:
    for label in ("ant", "cat"):
        (tmp_path / label).symlink_to(image_folder / "valid" / label)
    return tmp_path


def rows(**names: str) -> list[Row]:
    """One row an image and two of the first, with a caption each."""
    texts = ["a cat, grey", "an ant", "the second ant", "one more cat", "a cat; another sentence"]
    files = [*IMAGES, IMAGES[0]]
    return [
        {names.get("path", "path"): file, names.get("caption", "caption"): text}
        for file, text in zip(files, texts, strict=True)
    ]


def opened(root: Path, **fields: Any) -> LabelledSplits:
    return open_data(DataConfig(root=str(root), val_fraction=0.0, **fields), captions=True)


def captions(data: LabelledSplits, split: str = "train") -> dict[str, tuple[str, ...]]:
    """Return the captions of each sample by its name, of a split."""
    part = data.splits[split]
    assert part.captions is not None
    return {sample_name(part.source, index, split): part.captions[index] for index in part.indices.tolist()}


def refusal(root: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expected(folder: Path) -> dict[str, tuple[str, ...]]:
    return {
        str(folder / IMAGES[0]): ("a cat, grey", "a cat; another sentence"),
        str(folder / IMAGES[1]): ("an ant",),
        str(folder / IMAGES[2]): ("the second ant",),
        str(folder / IMAGES[3]): ("one more cat",),
    }


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.csv", separated(",")), ("a.tsv", separated("\t")), ("b.csv", separated(";")), ("a.jsonl", json_lines),
     ("a.parquet", parquet)],
)  # fmt: skip
def test_rows_of_one_file_are_one_image_with_the_captions_of_all(folder: Path, name: str, write: Any) -> None:
    write(folder / name, rows())
    data = opened(folder / name)
    assert captions(data) == expected(folder)
    assert data.classes == ("",)
    assert data.splits["train"].labels.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_cell_may_hold_several_captions(folder: Path, name: str) -> None:
    lists: list[Row] = [{"image": file, "captions": [f"{file} one", f"{file} two"]} for file in IMAGES]
    (json_lines if name == "a.jsonl" else parquet)(folder / name, lists)
    assert captions(opened(folder / name)) == {str(folder / file): (f"{file} one", f"{file} two") for file in IMAGES}


def test_a_column_with_an_unusual_name_is_chosen_and_labels_stay_where_they_are_said(folder: Path) -> None:
    content = [{**row, "label": row["file_id"][:3], "split": "val" if "03" in row["file_id"] else "train"}
               for row in rows(path="file_id", caption="what is seen")]  # fmt: skip
    separated(",")(folder / "a.csv", content)
    data = opened(folder / "a.csv", columns={"caption": "What is seen", "path": "file_id"})
    assert data.classes == ("ant", "cat")
    assert captions(data, "val") == {str(folder / IMAGES[3]): ("one more cat",)}
    assert len(data.splits["train"]) == 3
    config = DataConfig(root=str(folder / "a.csv"), columns={"caption": "what is seen", "path": "file_id"})
    plain = open_data(config)
    assert len(plain.splits["train"]) == 4  # for a classifier each row is a sample, and no caption is read
    assert all(split.captions is None for split in plain.splits.values())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("path,label\ncat/00.png,cat\n",
         ": has no column of captions: name one caption, or set data.columns.caption; it has path, label"),
        ("path,caption\ncat/00.png,a cat\nant/01.png, \n",
         ", row 3, column caption: a caption is empty: write one, or remove the image"),
        ("path,caption,label\ncat/00.png,a,cat\nant/01.png,b,ant\ncat/00.png,c,ant\n",
         ", row 4, column label: says ant of {}/cat/00.png, and {}/a.csv, row 2 says cat: make them alike"),
        ("cat/00.png,a cat\n", ", row 1: must name the columns, as path,caption; it has cat/00.png,a cat"),
        ("path,caption,split\ncat/00.png,a,train\ncat/00.png,b,train\nant/01.png,b,trian\n",
         ", row 4, column split: trian is no split"),
    ],
)  # fmt: skip
def test_a_bad_table_of_captions_is_told_in_one_line(folder: Path, content: str, problem: str) -> None:
    (folder / "a.csv").write_text(content)
    said = refusal(folder / "a.csv")
    assert problem.replace("{}/a.csv", f"data.root: {folder}/a.csv").format(folder) in said
    assert said.startswith(f"data.root: {folder}/a.csv")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (7, "must be a text, or a list of texts, not int"),
        ([], "has no caption: write one, or remove the image"),
        (["a", ""], "a caption is empty: write one, or remove the image"),
        (None, "a caption is empty: write one, or remove the image"),
        ({"en": "a"}, "must be a text, or a list of texts, not dict"),
    ],
)
def test_what_is_no_caption_is_told_in_one_line(folder: Path, value: Any, problem: str) -> None:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"path": file, "caption": text}) + "\n"
                            for file, text in zip(IMAGES, ("x", value, "y", "z"), strict=True)))  # fmt: skip
    assert refusal(path) == f"data.root: {path}, row 2, column caption: {problem}"


def test_a_run_without_captions_is_told_how_to_give_them(image_folder: Path) -> None:
    contrastive = Config.load("digits", {"loss.name": "clip", "loss.label_smoothing": 0})
    with pytest.raises(UserError) as caught:
        open_splits(contrastive, None)
    assert str(caught.value) == (
        "loss.name: clip learns from captions, and this data has none: give a table with a column caption (or set "
        "data.columns.caption), tar files with a .txt beside each image, a Hugging Face data set with such a column, "
        "or data.name digits_captions"
    )
    classifier = Config.load("digits", {"data.name": "digits_captions"})
    assert open_splits(classifier, None).splits["train"].captions is None
    assert open_splits(Config.load("digits", {"data.name": "digits_captions", "loss.name": "clip",
                                              "loss.label_smoothing": 0}), None).splits["val"].captions  # fmt: skip


class Pairs(Dataset[Any]):
    """Images with captions, as torchvision's CocoCaptions has them; or dictionaries."""

    def __init__(self, named: bool = False) -> None:
        self.named = named

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        image, texts = Image.new("RGB", (8, 8), (40 * index, 0, 0)), [f"red {index}", f"no. {index}"]
        return {"image": image, "text": texts[0], "label": index % 2} if self.named else (image, texts)


class Own:
    """An object with captions of its own."""

    labels = np.array([0, 1, 0, 1, 0, 1])
    classes = ("a", "b")

    def __len__(self) -> int:
        return 6

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (8, 8), 40 * index)

    def captions(self, index: int) -> Sequence[str]:
        return [f"grey {index}"]


def from_python(source: Any, wanted: bool = True, **columns: str) -> LabelledSplits:
    fields = {"data.name": "digits_captions", "loss.name": "clip", "loss.label_smoothing": 0} if wanted else {}
    config = Config.load("digits", {**fields, "data.val_fraction": 0.0, "data.columns": columns})
    return open_splits(config, source)


def test_every_form_of_source_may_have_captions(folder: Path) -> None:
    pairs = [(str(folder / file), [f"{file} a", f"{file} b"]) for file in IMAGES]
    assert captions(from_python(pairs)) == {file: tuple(texts) for file, texts in pairs}
    table = {"path": [file for file, _ in pairs], "caption": [texts[0] for _, texts in pairs]}
    assert captions(from_python(table)) == {file: (texts[0],) for file, texts in pairs}
    arrays = np.zeros((3, 8, 8), np.uint8), ["x", ["y", "z"], "w"]
    assert list(captions(from_python(arrays)).values()) == [("x",), ("y", "z"), ("w",)]
    assert from_python(arrays).classes == ("",)
    assert captions(from_python(Pairs()))["train/3"] == ("red 3", "no. 3")
    named = from_python(Pairs(named=True))
    assert captions(named)["train/3"] == ("red 3",)
    assert named.classes == ("0", "1")
    assert captions(from_python(Own()))["train/3"] == ("grey 3",)
    splits = from_python({"train": Own(), "val": arrays})
    assert captions(splits, "val")["val/1"] == ("y", "z")


def test_a_classifier_does_not_look_at_the_captions_of_a_source() -> None:
    data = from_python(Own(), wanted=False)
    assert data.classes == ("a", "b")
    assert data.splits["train"].captions is None


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ((np.zeros((3, 8, 8), np.uint8), ["x", "y"]),
         "source[1]: must be a caption, or a list of captions, for each of the 3 images"),
        ((np.zeros((2, 8, 8), np.uint8), ["x", " "]),
         "source[1][1]: a caption is empty: write one, or remove the image"),
        (np.zeros((2, 8, 8), np.uint8), "source: is an array without captions: give (images, captions)"),
    ],
)  # fmt: skip
def test_a_source_whose_captions_are_wrong_is_told_in_one_line(source: Any, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        from_python(source)
    assert str(caught.value) == problem


def test_a_split_without_captions_is_named() -> None:
    class Silent(Own):
        captions = None  # type: ignore[assignment]

    with pytest.raises(UserError, match=r"clip learns from captions, and val of this data has none: give a table"):
        from_python({"train": Own(), "val": Silent()})


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("column", ["caption", "raw"])
def test_a_data_set_of_hugging_face_may_have_a_column_of_captions(
    tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts: list[Any] = [f"picture {number}" for number in range(6)]
    if column == "raw":
        texts = [[text, "again"] for text in texts]
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(6)], column: texts}
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "saved")
    data = opened(tmp_path / "saved", columns={} if column == "caption" else {"caption": "raw"})
    assert data.classes == ("",)
    assert list(captions(data).values()) == [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    with pytest.raises(UserError, match="no column is known to have the labels"):
        open_data(DataConfig(root=str(tmp_path / "saved")))
    if column == "raw":
        assert refusal(tmp_path / "saved").endswith(
            "has no column of captions: name one caption, or set data.columns.caption; it has raw"
        )
        return
    empty = made.map(lambda row, index: {"caption": "" if index == 4 else row["caption"]}, with_indices=True)
    empty.save_to_disk(tmp_path / "empty")
    assert refusal(tmp_path / "empty") == (
        f"data.root: {tmp_path}/empty, train, row 4: a caption is empty: write one, or remove the image"
    )


def test_from_source_reads_captions_only_where_they_are_asked_for() -> None:
    assert from_source(Own(), DataConfig(val_fraction=0.0)).splits["train"].captions is None

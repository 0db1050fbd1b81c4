"""Data sets of Hugging Face, saved to disk and in Parquet files, read from local files alone."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import command
from tests.data.shards.reading import assert_same, read_stream
from tests.sharing import made_once
from vit_dist import Config, train
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.decode import ImageError
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import read_image
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

FEATURES = {"id": datasets.Value("int32"), "photo": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` makes of Parquet files among the test's own files, and the network out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def pixels(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(number)).save(out, "PNG")
    return out.getvalue()


def dataset(numbers: range, **features: Any) -> Any:
    rows = {
        "id": list(numbers),
        "photo": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        "kind": [number % 2 for number in numbers],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features({**FEATURES, **features}))


def opened(root: Path | str, val_fraction: float = 0.0, **fields: Any) -> LabelledSplits:
    return open_data(DataConfig(root=str(root), val_fraction=val_fraction, **fields))


def _save(folder: Path) -> None:
    every = {"train": dataset(range(40)), "validation": dataset(range(40, 50)), "extra": dataset(range(2))}
    datasets.DatasetDict(every).save_to_disk(folder / "saved", max_shard_size="30KB")
    (folder / "parquet" / "data").mkdir(parents=True)
    dataset(range(25)).to_parquet(folder / "parquet" / "data" / "train-00000-of-00002.parquet", batch_size=7)
    dataset(range(25, 40)).to_parquet(folder / "parquet" / "data" / "train-00001-of-00002.parquet")
    dataset(range(40, 50)).to_parquet(folder / "parquet" / "data" / "validation-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "hugging_face", _save)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_images_classes_and_splits_are_found_by_their_types(form: str, folder: Path) -> None:
    data = opened(folder / form)
    assert data.classes == ("dog", "cat")  # in the order of ClassLabel, not of the alphabet
    assert {split: len(subset) for split, subset in data.splits.items()} == {"train": 40, "val": 10}
    assert (data.channels, data.image_size) == (3, 224)
    assert data.sizes is not None
    assert (data.sizes.sampled, data.sizes.smallest, data.sizes.largest) == (40, 20, 24)
    assert [str(kind) for kind in data.left_out] == (
        ["splits that are none of train, val and test: 1 (extra)"] if form == "saved" else []
    )
    for split, first in (("train", 0), ("val", 40)):
        subset = data.splits[split]
        assert subset.labels.tolist() == [number % 2 for number in range(first, first + len(subset))]
        for index in (0, 3, len(subset) - 1):
            image = read_image(subset.source, index)
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), pixels(first + index))


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_the_stream_does_not_depend_on_processes_and_workers(form: str, folder: Path) -> None:
    fields = {"train.duration": "3 epochs"}
    reference, _ = read_stream(lambda: opened(folder / form, 0.1), fields)
    read, _ = read_stream(lambda: opened(folder / form, 0.1), fields, world=2, workers=2)
    assert_same(read, reference)
    start, _ = read_stream(lambda: opened(folder / form, 0.1), fields, start=4)
    assert_same(start, {name: values[64:] for name, values in reference.items()})
    other, _ = read_stream(lambda: opened(folder / ("saved" if form == "parquet" else "parquet"), 0.1), fields)
    assert_same(other, reference)


def test_training_evaluating_and_resuming(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "saved", tmp_path / "pets")
    fields = {
        "data.root": str(tmp_path / "pets"), "model.width": 16, "model.depth": 1, "model.heads": 2,
        "model.patch_size": 8, "data.image_size": 16, "batch.global_size": 16, "batch.micro_size": 16,
        "train.duration": "4 updates", "schedule.warmup": "1 updates", "run.device": "cpu", "run.threads": 1,
        "log.report": False, "log.trackers": "none", "data.workers": 0, "run.dir": str(tmp_path / "run"),
    }  # fmt: skip
    run = train(Config.load("folder", fields))
    assert run.history[0]["plan"]["samples"] == 40
    result = command(capsys, "evaluate", run.folder)
    assert result.code == 0, result.err
    predicted = command(capsys, "predict", run.folder, "--split", "val", "--format", "csv")
    assert f"{tmp_path / 'pets'}, val, row 3" in predicted.out
    datasets.DatasetDict({"train": dataset(range(1, 41)), "validation": dataset(range(40, 50))}).save_to_disk(
        tmp_path / "others"
    )
    with pytest.raises(UserError, match=r"other images of train"):
        train(Config.load("folder", {**fields, "data.root": str(tmp_path / "others")}))


def save(folder: Path, rows: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    kinds = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(folder)
    return folder


def test_words_numbers_and_plain_columns(tmp_path: Path) -> None:
    images = [{"bytes": png(number), "path": None} for number in range(4)]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    words = save(tmp_path / "words", {"image": images, "label": ["emu", "cat", "emu", "bee"]},
                 {"image": struct, "label": datasets.Value("string")})  # fmt: skip
    data = opened(words)
    assert data.classes == ("bee", "cat", "emu")
    assert data.splits["train"].labels.tolist() == [2, 1, 2, 0]
    assert np.array_equal(np.asarray(read_image(data.splits["train"].source, 2)), pixels(2))
    plain = save(tmp_path / "plain", {"img": [png(number) for number in range(4)], "target": [0, 2, 1, 1]})
    data = opened(plain)
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(np.asarray(read_image(data.splits["train"].source, 3)), pixels(3))


def test_grey_squares_keep_their_side_and_channel(tmp_path: Path) -> None:
    squares = [Image.new("L", (28, 28), number * 20) for number in range(6)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
    data = opened(save(tmp_path / "grey", {"image": squares, "label": [0, 1] * 3}, kinds))
    assert (data.channels, data.image_size, data.mean, data.classes) == (1, 28, (0.5,), ("0", "1"))
    assert read_image(data.splits["train"].source, 4).mode == "L"


def test_images_beside_the_table_are_read_by_their_paths(image_folder: Path, tmp_path: Path) -> None:
    paths = [str(path) for path in sorted((image_folder / "train").rglob("*.png"))]
    rows = {"image": paths, "label": [index % 3 for index in range(len(paths))]}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)}
    source = opened(save(tmp_path / "paths", rows, kinds)).splits["train"].source
    with Image.open(paths[7]) as expected:
        assert np.array_equal(np.asarray(read_image(source, 7)), np.asarray(expected))


def test_rows_that_are_no_images_are_named(tmp_path: Path) -> None:
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = [{"bytes": b"none", "path": None}, {"bytes": None, "path": None}, {"bytes": None, "path": "/nowhere/a.png"}]
    kinds = {"image": struct, "label": datasets.ClassLabel(num_classes=2)}
    root = save(tmp_path / "bad", {"image": rows, "label": [0, 1, 1]}, kinds)
    data = opened(root)
    source = data.splits["train"].source
    for index, reason in enumerate(
        (" cannot be decoded", " has no image: remove the row", " cannot be decoded .No such")
    ):
        with pytest.raises(ImageError, match=f"^{root}, train, row {index}.*:{reason}"):
            read_image(source, index)


INT, WORD = datasets.Value("int64"), datasets.Value("string")
BOTH = {"coarse": datasets.ClassLabel(num_classes=2), "fine": datasets.ClassLabel(names=["a", "b", "c"])}
IMAGE = {"image": datasets.Image()}


def rows_of(**columns: Any) -> dict[str, Any]:
    return {"image": [Image.new("RGB", (8, 8))] * 4, **columns}


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "two": (rows_of(coarse=[0, 1] * 2, fine=[0, 1, 2, 2]), {**IMAGE, **BOTH},
            "no column is known to have the labels: set data.columns.label to one of image, coarse, fine$"),
    "no label": (rows_of(size=[1, 2, 3, 4]), {**IMAGE, "size": INT}, "set data.columns.label to one of"),
    "missing": (rows_of(label=[0, 1, -1, 0]), {**IMAGE, "label": datasets.ClassLabel(num_classes=2)},
                "train, row 2: has no label: remove it"),
    "floats": (rows_of(label=[0.5, 1, 1, 0]), {**IMAGE, "label": datasets.Value("float32")},
               "train, row 0: has a label that is float"),
    "numbers": (rows_of(label=[1, 2, 3, 5000]), {**IMAGE, "label": INT}, "its labels go up to 5000"),
    "no image": ({"label": [0, 1], "text": ["a", "b"]}, {"label": INT, "text": WORD},
                 "has no column of images: name one image; it has label, text$"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_columns_that_do_not_fit_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    rows, kinds, message = MISTAKES[case]
    with pytest.raises(UserError, match=message) as error:
        opened(save(tmp_path / "rows", rows, kinds))
    assert str(error.value).startswith(f"data.root: {tmp_path}/rows")
    assert "\n" not in str(error.value)


def test_the_column_of_labels_may_be_named(tmp_path: Path) -> None:
    root = save(tmp_path / "rows", rows_of(coarse=[0, 1] * 2, fine=[0, 1, 2, 2]), {**IMAGE, **BOTH})
    assert opened(root, columns={"label": "fine"}).classes == ("a", "b", "c")
    assert opened(root, columns={"label": "coarse", "path": "image"}).splits["train"].labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"^data.columns.label: .* has no column fin: it has image, coarse, fine$"):
        opened(root, columns={"label": "fin"})
    with pytest.raises(UserError, match=r"^data.columns.split: .* has splits of its own: leave it out$"):
        opened(root, columns={"split": "fine"})


def test_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    unlabelled = dataset(range(4)).map(lambda row: {"kind": -1})
    datasets.DatasetDict({"train": dataset(range(8)), "test": unlabelled}).save_to_disk(tmp_path / "rows")
    data = opened(tmp_path / "rows")
    assert list(data.splits) == ["train"]
    assert [str(kind) for kind in data.left_out] == ["splits without labels: 1 (test)"]
    datasets.DatasetDict({"test": dataset(range(4))}).save_to_disk(tmp_path / "test")
    with pytest.raises(UserError, match="has the splits test, and none of them is train"):
        opened(tmp_path / "test")


def test_damaged_files_and_names_that_are_none_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "saved", tmp_path / "saved")
    for path in (tmp_path / "saved" / "train").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:50])
    for root in (tmp_path / "saved", "hf://owner/name", "hf://owner/name@v1/plain"):
        with pytest.raises(UserError, match=f"^data.root: {root} cannot be read: ") as error:
            opened(root)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^data.root: hf://name must be hf://owner/name"):
        opened("hf://name")


def test_without_the_package_one_line_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from vit_dist.cli.main import main\n"
        f"sys.exit(main(['plan', '--data.root', {str(folder / 'saved')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    expected = f"vit-dist: data.root: {folder / 'saved'} needs the package datasets: pip install datasets\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_a_folder_of_images_with_a_table_beside_them_stays_one(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "images")
    dataset(range(3)).to_parquet(tmp_path / "images" / "table.parquet")
    assert opened(tmp_path / "images").classes == ("ant", "bee", "cat")

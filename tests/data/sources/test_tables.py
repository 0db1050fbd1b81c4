"""Tables of paths and labels: CSV, TSV, semicolons, JSON lines, Parquet, with usual and unusual columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_dist import Config, UserError, train
from vit_dist.config.fields import DataConfig
from vit_dist.data.fingerprint import fingerprint, same_samples
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import sample_name
from vit_dist.data.sources.splits import LabelledSplits

Row = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path, image_folder: Path) -> Path:
    """A folder with photos/ in it, the images of three classes."""
    (tmp_path / "photos").symlink_to(image_folder / "valid")
    return tmp_path


def rows(path: str = "path", label: str = "label", split: str = "split") -> list[Row]:
    names = [f"photos/{kind}/{number:02}.png" for number in range(6) for kind in ("cat", "ant")]
    splits = ["train"] * 8 + ["valid"] * 4
    return [{path: name, label: name.split("/")[1], split: part} for name, part in zip(names, splits, strict=True)]


def separated(by: str) -> Callable[[Path, list[Row]], None]:
    def write(path: Path, content: list[Row]) -> None:
        lines = [by.join(content[0]), *(by.join(f'"{cell}"' for cell in row.values()) for row in content)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return write


def json_lines(path: Path, content: list[Row]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content))


def parquet(path: Path, content: list[Row]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({name: [row[name] for row in content] for name in content[0]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


def described(data: LabelledSplits) -> dict[str, list[tuple[str, str]]]:
    """Return (file, class) of each sample, by split."""
    return {
        name: [
            (sample_name(split.source, index, name), data.classes[label])
            for index, label in zip(split.indices.tolist(), split.labels.tolist(), strict=True)
        ]
        for name, split in data.splits.items()
    }


KINDS: dict[str, tuple[Callable[[Path, list[Row]], None], str]] = {
    "list.csv": (separated(","), ""),
    "list.tsv": (separated("\t"), ""),
    "list.txt": (separated("\t"), "tabs"),
    "semicolons.csv": (separated(";"), "semicolons"),
    "commas.tsv": (separated(","), "commas"),
    "list.jsonl": (json_lines, ""),
    "list.parquet": (parquet, ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_table_alone_is_the_data(folder: Path, name: str) -> None:
    write, separator = KINDS[name]
    write(folder / name, rows())
    data = open_data(DataConfig(root=str(folder / name)))
    expected = [(str(folder / row["path"]), row["label"]) for row in rows()]
    assert described(data) == {"train": expected[:8], "val": expected[8:]}
    assert (data.classes, data.channels, data.image_size) == (("ant", "cat"), 3, 224)
    assert data.notes == ((f"data.root: {name} is read as separated by {separator}",) if separator else ())


@pytest.mark.parametrize("name", ["list.csv", "semicolons.csv", "list.jsonl", "list.parquet"])
def test_columns_are_chosen_where_names_are_unusual(folder: Path, name: str) -> None:
    KINDS[name][0](
        folder / name, [{"label": 3, **row} for row in rows("Id;No" if name == "list.csv" else "Id", "Kind", "fold")]
    )
    columns = {"path": "id;no" if name == "list.csv" else "id", "label": "Kind", "split": "fold"}
    data = open_data(DataConfig(root=str(folder / name), columns=columns))
    assert [len(data.splits[split]) for split in ("train", "val")] == [8, 4]
    assert data.classes == ("ant", "cat")
    whole = open_data(
        DataConfig(root=str(folder / name), columns={"path": columns["path"], "label": "Kind"}, val_fraction=0.0)
    )
    assert len(whole.splits["train"]) == 12


def test_columns_belong_to_the_run_and_count_only_where_they_are_set() -> None:
    plain = Config.load("folder", {"data.root": "list.csv"})
    chosen = Config.load("folder", {"data.root": "list.csv", "data.columns": {"label": "kind"}})
    assert plain.identity() != chosen.identity()
    assert plain.identity() == Config.load("folder", {"data.root": "list.csv", "data.columns": {}}).identity()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"labels": "kind"}, "data.columns: labels is no column that is read (did you mean label?)"),
        ({"path": 3}, "data.columns.path: must be the name of a column, not 3"),
    ],
)
def test_columns_that_mean_nothing_are_refused(columns: Any, problem: str) -> None:
    with pytest.raises(UserError) as error:
        Config.load("folder", {"data.columns": columns})
    assert str(error.value) == problem


def refusal(table: Path, **fields: Any) -> str:
    """Return why a table is refused, after its name."""
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root=str(table), **fields))
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"data.root: {table}", "T").replace(str(table.parent), "F")


TEXTS = {
    "path,kind\nphotos/ant/00.png,ant\n": (
        "T: has no column of labels: name one label, or set data.columns.label; it has path, kind"
    ),
    "a.jpg,cat\nb.jpg,dog\n": "T, row 1: must name the columns, as path,label; it has a.jpg,cat",
    "": "T lists no images",
    "path,label\n": "T lists no images",
    "path,label\nphotos/ant/00.png,ant\n\nphotos/ant/01.png,ant,3\n": (
        "T, row 4: must have 2 cells, as its head has, not 3"
    ),
    "path,label\nphotos/ant/00.png,ant\n\nphotos/ant/99.png,ant\n": (
        "T, row 4, column path: F/photos/ant/99.png is not there"
    ),
    "path,label\n\n,ant\n": "T, row 3, column path: must be the path of an image: it is empty",
    "label,File\nant,photos/ant/00.png\n,photos/ant/01.png\n": (
        "T, row 3, column label: F/photos/ant/01.png has no label: give it one"
    ),
    "path,label,split\nphotos/ant/00.png,ant,trian\n": (
        "T, row 2, column split: trian is no split (did you mean train?)"
    ),
    "path,label\nphotos/ant/00.png,ant\nphotos/ant/01.png,ant\n": (
        "T has one class, ant (2 images): a classifier needs two or more"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), TEXTS.items())
def test_what_is_wrong_in_a_csv_file_is_named_with_its_row(folder: Path, text: str, problem: str) -> None:
    (folder / "list.csv").write_text(text)
    assert refusal(folder / "list.csv") == problem


LINES = {
    '{"path": "photos/ant/00.png", "label": "ant"}\n{"path": "photos/ant/01.png"}\n': (
        "T, row 2: has no column label, as row 1 has; it has path"
    ),
    '\n{"path": "photos/ant/00.png", "label": null}\n': (
        "T, row 2, column label: F/photos/ant/00.png has no label: give it one"
    ),
    '{"path": "photos/ant/00.png", "label": "ant"}\n{"path": 7, "label": "ant"}\n': (
        "T, row 2, column path: must be the path of an image: not int"
    ),
    "[1, 2]\n": 'T, row 1: must be an object, as {"path": "cat/1.jpg", "label": "cat"}, alone on its line',
    "{'path': 3}\n": (
        "T, row 1: is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ),
    "[" * 200_000: "T, row 1: is no JSON: it is nested too deeply",
    "\n\n": "T lists no images",
}  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), LINES.items(), ids=range(len(LINES)))
def test_what_is_wrong_in_json_lines_is_named_with_its_row(folder: Path, text: str, problem: str) -> None:
    (folder / "list.jsonl").write_text(text)
    assert refusal(folder / "list.jsonl") == problem


def test_a_wrong_choice_of_columns_is_answered_with_those_that_are_there(folder: Path) -> None:
    separated(",")(folder / "list.csv", rows("where", "what"))
    assert refusal(folder / "list.csv", columns={"path": "wher"}) == (
        "data.columns.path: F/list.csv has no column wher: it has where, what, split"
    )
    (folder / "sub").mkdir()
    with pytest.raises(UserError, match=r"^data\.columns: are those of a table, and .*/sub is none: leave them out$"):
        open_data(DataConfig(root=str(folder / "sub"), columns={"path": "where"}))


def test_text_that_is_none_and_parquet_that_is_none(folder: Path) -> None:
    (folder / "list.csv").write_bytes(b"\xff\xfe\x00")
    assert refusal(folder / "list.csv").startswith("T cannot be read as a CSV file: 'utf-8' codec can't decode")
    pytest.importorskip("pyarrow")
    (folder / "list.parquet").write_bytes(b"PAR1 and nothing else")
    assert refusal(folder / "list.parquet").startswith("T cannot be read as Parquet: ")


def test_parquet_with_the_images_in_it_is_given_by_its_folder(folder: Path) -> None:
    parquet(folder / "list.parquet", [{"image": {"bytes": b"x", "path": "a.png"}, "label": 3}])
    assert refusal(folder / "list.parquet") == "T, column image: holds images, not paths: give the folder F"


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "list.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(folder / "list.parquet") == "T is read by pyarrow, which is not installed: pip install pyarrow"


def test_paths_may_be_absolute_of_a_home_or_roundabout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "photos"))
    monkeypatch.chdir(folder)
    names = [f"{folder}/photos/ant/00.png", "~/cat/00.png", "./photos//cat/01.png", "photos/ant/../cat/01.png"]
    separated(",")(folder / "list.csv", [{"path": name, "label": str(n)} for n, name in enumerate(names)])
    expected = ["photos/ant/00.png", "photos/cat/00.png", "photos/cat/01.png", "photos/ant/../cat/01.png"]
    for root, before in ((folder / "list.csv", f"{folder}/"), (Path("list.csv"), "")):
        data = open_data(DataConfig(root=str(root), val_fraction=0.0))
        names = [name for name, _ in described(data)["train"]]
        assert names[2:] == [before + name for name in expected[2:]]
        assert names[:2] == [f"{folder}/{name}" for name in expected[:2]]


@pytest.mark.parametrize("write", [separated(","), json_lines], ids=["csv", "jsonl"])
def test_a_column_of_weights_is_read_where_it_is_named(write: Callable[[Path, list[Row]], None], folder: Path) -> None:
    weights = [0.0, 1, 2.5, 1, 4, 1, 1, 3, 1, 1, 1, 1]
    table = folder / "table.csv" if write is not json_lines else folder / "table.jsonl"
    write(table, [{**row, "trust": str(weight)} for row, weight in zip(rows(), weights, strict=True)])
    data = open_data(DataConfig(root=str(table), columns={"weight": "trust"}))
    train = data.splits["train"].weights
    assert train is not None
    assert train.tolist() == weights[:8]
    assert "images have weights in the training loss, from 0 to 4, on average 1.46" in data.notes
    part = data.splits["train"].take(slice(2, 5))
    assert part.weights is not None
    assert part.weights.tolist() == weights[2:5]
    assert open_data(DataConfig(root=str(table))).splits["train"].weights is None
    others = open_data(DataConfig(root=str(table), columns={"weight": "trust"}, val_fraction=0.0))
    assert fingerprint(data)["train"] == fingerprint(others)["train"]
    unweighted = fingerprint(open_data(DataConfig(root=str(table))))["train"]
    assert not same_samples(unweighted, fingerprint(data)["train"])


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        ("-1", "must be a number, 0 or more, not -1"),
        ("inf", "must be a number, 0 or more, not inf"),
        ("heavy", "must be a number, 0 or more, not heavy"),
        ("", "must be a number, 0 or more, not an empty cell"),
    ],
)
def test_a_weight_that_is_none_is_named(weight: str, problem: str, folder: Path) -> None:
    table = folder / "table.csv"
    content = [{**row, "trust": "1"} for row in rows()]
    content[2]["trust"] = weight
    separated(",")(table, content)
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root=str(table), columns={"weight": "trust"}))
    assert str(error.value) == f"data.root: {table}, row 4, column trust: {problem}"
    separated(",")(table, [{**row, "trust": "0"} for row in rows()])
    with pytest.raises(UserError, match=r"^data\.columns\.weight: all weights in .* are 0: nothing would be learned$"):
        open_data(DataConfig(root=str(table), columns={"weight": "trust"}))


def test_training_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    values = {
        **{"data.image_size": 16, "model.patch_size": 8, "model.width": 16, "model.depth": 1, "model.heads": 2},
        **{"batch.global_size": 8, "batch.micro_size": 4, "train.duration": "3 updates", "evaluate.every": "3 updates"},
        **{"schedule.warmup": "1 updates", "log.every": "1 updates", "log.trackers": "none", "log.report": False},
        **{"run.device": "cpu", "run.threads": 1, "data.workers": 0, "data.columns": {"weight": "trust"}},
    }

    def losses(name: str, weight_of: Callable[[Row], float]) -> list[float]:
        table = folder / f"{name}.csv"
        separated(",")(table, [{**row, "trust": str(weight_of(row))} for row in rows()])
        run = train(Config.load("folder", {**values, "data.root": str(table), "run.dir": str(tmp_path / name)}))
        return [line["loss"] for line in run.history if line["kind"] == "train"]

    ones = losses("ones", lambda row: 1)
    assert losses("threes", lambda row: 3) == pytest.approx(ones, rel=1e-5)  # a mean has no scale
    assert losses("cats", lambda row: float(row["label"] == "cat")) != pytest.approx(ones, rel=1e-3)

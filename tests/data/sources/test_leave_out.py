"""Images left out by a list of names: the others stay where they are, and a run knows that they are gone."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.sources.trees import image, plant
from tests.runs import PICTURES, QUIET
from vit_dist import Config, UserError, train
from vit_dist.config.fields import DataConfig
from vit_dist.data.fingerprint import fingerprint, same_samples
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.sources.image_files import file_names
from vit_dist.data.sources.leave_out import SampleNames, name_line, read_names
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import sample_name
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.sources.survey import survey
from vit_dist.files import read_json
from vit_dist.training.components import open_splits


def names(data: LabelledSplits, root: Path) -> dict[str, list[str]]:
    """Return the names of the images of each split, in its order."""
    listed = SampleNames(data.splits, str(root))
    return {split: list(listed.of(subset.source, subset.indices)) for split, subset in data.splits.items()}


def opened(root: Path, leave_out: str = "") -> LabelledSplits:
    return open_data(DataConfig(root=str(root), leave_out=leave_out))


def written(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    return str(path)


def test_the_others_stay_in_their_splits(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"cat": 40, "dog": 30})
    before = names(opened(root), root)
    assert len(before["val"]) == 7
    gone = {*before["val"][:2], before["train"][3], before["train"][50]}
    data = opened(root, written(tmp_path / "list.txt", "# bad ones", "", *sorted(gone)))
    assert names(data, root) == {
        split: [name for name in listed if name not in gone] for split, listed in before.items()
    }
    assert [str(kind) for kind in data.left_out] == [f"images named in {tmp_path / 'list.txt'}: 4 ({min(gone)})"]
    assert survey(data).total("val") == 5
    train = data.splits["train"]
    assert [Path(path).parent.name for path in file_names(train.source, train.indices)] == [
        data.classes[label] for label in train.labels
    ]


def test_a_name_does_not_depend_on_where_the_data_is_or_how_root_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    expected = ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png", "dog/002.png"]
    monkeypatch.chdir(tmp_path)
    for way in (root, Path("pets"), Path("./pets/"), tmp_path / "pets"):
        assert names(opened(way), way)["train"] == [f"train/{name}" for name in expected]
    moved = root.rename(tmp_path / "elsewhere")
    data = opened(moved, written(tmp_path / "list.txt", "./train/dog/001.png", "val/cat/000.png\r"))
    assert [len(data.splits[split]) for split in ("train", "val")] == [5, 1]


@pytest.mark.parametrize(
    "name",
    ["#1/a", '"a"/b', " a/b", "a/b ", "./a", "a\nb/c", "é/ß.png", "17", "a\u202eb", "\udce9/a", "a\r"],
)
def test_every_name_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    assert read_names(Path(written(tmp_path / "list.txt", "# comment", name_line(name)))) == {name}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_files_with_odd_names_are_left_out(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"#1": 3, "b": 3})
    odd = Path(os.fsdecode(os.fsencode(root / "b") + b"/caf\xe9\n.png"))
    image(odd)
    lines = [name_line("b/caf\udce9\n.png"), name_line("#1/001.png")]
    config = DataConfig(root=str(root), val_fraction=0.0, leave_out=written(tmp_path / "list.txt", *lines))
    left = ["#1/000.png", "#1/002.png", "b/000.png", "b/001.png", "b/002.png"]
    assert names(open_data(config), root)["train"] == left
    assert len(open_data(replace(config, leave_out="")).splits["train"]) == len(left) + 2


def test_images_without_files_are_named_by_their_number(tmp_path: Path) -> None:
    images = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4)
    labels = np.arange(20) % 2

    def opened(source: Any, *lines: str, **fields: Any) -> LabelledSplits:
        listed = {"data.leave_out": written(tmp_path / "list.txt", *lines)} if lines else {}
        return open_splits(Config.load("folder", {**listed, **fields}), source)

    whole = opened((images, labels))
    gone = [int(whole.splits["val"].indices[0]), int(whole.splits["train"].indices[5])]
    data = opened((images, labels), *map(str, gone))
    for split in ("train", "val"):
        kept = [index for index in whole.splits[split].indices.tolist() if index not in gone]
        assert data.splits[split].indices.tolist() == kept
    both = {"train": (images, labels), "test": (images[:6], labels[:6])}
    parts = opened(both, "train/3", "test/5", **{"data.val_fraction": 0.0}).splits
    assert [3 in parts["train"].indices, 5 in parts["train"].indices, len(parts["train"])] == [False, True, 19]
    assert parts["test"].indices.tolist() == [0, 1, 2, 3, 4]


def test_images_of_a_table_are_named_from_its_folder(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"cat": 10, "dog": 10})
    rows = [f"{name}/{number:03}.png,{name}" for name in ("cat", "dog") for number in range(10)]
    table = Path(written(root / "list.csv", "path,label", *rows))
    config = DataConfig(root=str(table), val_fraction=0.0, leave_out=written(tmp_path / "out.txt", "dog/004.png"))
    data = open_data(config)
    assert names(data, table)["train"] == [row.split(",")[0] for row in rows if "dog/004" not in row]


def test_a_list_that_helps_nobody_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    with pytest.raises(UserError, match=r"^data.leave_out: .*none.txt cannot be read: No such file or directory: name"):
        opened(root, str(tmp_path / "none.txt"))
    wrong = written(tmp_path / "wrong.txt", "cat/000.png", "cat/001.png")
    with pytest.raises(UserError, match=r"wrong.txt names 2 images \(cat/000.png …\), and none is in the data: "):
        opened(root, wrong)
    all_of_val = written(tmp_path / "all.txt", "val/cat/000.png", "val/dog/000.png")
    with pytest.raises(UserError, match=r"^data.leave_out: .*all.txt names all 2 images of val: keep some$"):
        opened(root, all_of_val)
    with pytest.raises(UserError, match=r"^data.leave_out: .*half.txt, line 2: is no JSON string"):
        opened(root, written(tmp_path / "half.txt", "train/cat/000.png", '"train/cat'))
    some = opened(root, written(tmp_path / "some.txt", "train/cat/000.png", "train/gone.png"))
    assert (
        some.notes[-1]
        == f"data.leave_out: 1 of the 2 names in {tmp_path / 'some.txt'} are not in the data (train/gone.png)"
    )
    assert opened(root, written(tmp_path / "empty.txt", "# nothing")).left_out == ()


def test_a_run_without_an_image_is_another_run(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"cat": 10, "dog": 10})
    data = opened(root)
    name = names(data, root)["train"][2]
    without = opened(root, written(tmp_path / "list.txt", name))
    before, now = fingerprint(data), fingerprint(without)
    assert now["train"]["samples"] == before["train"]["samples"] - 1
    assert now["train"]["sha256"] != before["train"]["sha256"]
    assert now["val"] == before["val"]
    plain, listed = (Config.load("folder", {"data.root": "x", **fields}) for fields in ({}, {"data.leave_out": "l"}))
    assert plain.identity() == listed.identity()
    assert plain.identity(before) != listed.identity(now)


def test_what_is_left_out_of_a_source_without_files_is_in_its_fingerprint(tmp_path: Path) -> None:
    class Plain:
        labels = np.arange(40) % 2

        def __len__(self) -> int:
            return 40

        def image(self, index: int) -> Image.Image:
            return Image.new("L", (4, 4), 0)

    def of(*lines: str) -> dict[str, Any]:
        listed = {"data.leave_out": written(tmp_path / "list.txt", *lines)}
        return fingerprint(open_splits(Config.load("folder", {**listed, "data.val_fraction": 0.0}), Plain()))["train"]

    assert of("3", "5") == of("# again", "5", "./3")
    assert not same_samples(of("3"), of("1"))
    assert not same_samples(of("3"), of("# nothing"))
    assert "without" not in of("# nothing")


def test_images_that_are_left_out_of_shards_are_not_called_unreadable(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"a.b": 12, "c": 12})
    for name in ("a.b/x.y.png", "c/no.png"):
        (root / name).write_bytes(b"no image")
    out = tmp_path / "shards"
    build(plan_shards(open_data(DataConfig(root=str(root), val_fraction=0.0)), 20_480), out, 1)
    assert opened(out).sizes.unreadable == ("a.b/x_y.png", "c/no.png")  # type: ignore[union-attr]
    source = opened(out).splits["train"].source
    [number] = [index for index in range(26) if "x_y" in sample_name(source, index, "")]
    data = opened(out, written(tmp_path / "list.txt", str(number)))
    assert data.sizes is not None
    assert data.sizes.unreadable == ("c/no.png",)
    assert next(note for note in survey(data).notes if "be read" in note).startswith("1 of 25 images looked at cannot ")


def test_training_leaves_a_bad_file_out(tmp_path: Path, image_folder: Path) -> None:
    root = plant(tmp_path / "pets", {})
    for split in ("train", "valid"):
        for path in sorted((image_folder / split).rglob("*.png")):
            copy = root / path.relative_to(image_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (root / "train" / "bee" / "03.png").write_bytes(b"no image")
    fields = {**PICTURES, **QUIET, "train.duration": "1 epoch", "data.root": str(root), "data.on_bad_sample": "fail"}
    fields |= {"evaluate.every": "1 epoch", "schedule.warmup": "1 updates"}
    with pytest.raises(UserError, match=r"bee/03.png: cannot be decoded"):
        train(Config.load("folder", {**fields, "run.dir": str(tmp_path / "a")}))
    fields["data.leave_out"] = written(tmp_path / "list.txt", "train/bee/03.png")
    run = train(Config.load("folder", {**fields, "run.dir": str(tmp_path / "b")}))
    assert len(run.history) > 0
    facts = read_json(tmp_path / "b" / "data.json")
    assert facts["counts"]["train"] == {"ant": 20, "bee": 19, "cat": 20}
    assert facts["left_out"][0]["example"] == "train/bee/03.png"

    again = {**fields, "run.dir": str(tmp_path / "b"), "data.leave_out": written(tmp_path / "moved.txt", "# same")}
    with pytest.raises(UserError, match=r"data: not what .* 1 image added \(train/bee/03.png\): bring the old "):
        train(Config.load("folder", again))
    written(tmp_path / "moved.txt", "# same", "./train/bee/03.png")
    assert train(Config.load("folder", again)).history[-1]["kind"] == run.history[-1]["kind"]

"""`vit-dist evaluate`: the figures of runs, folders of images, files of weights and timm models."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.cli.commands import (
    DIGITS_MODEL,
    TIMM_MODEL,
    command,
    metrics_line,
    numbered_model,
    predict_by_hand,
    resize_and_crop,
)
from tests.data.sources.trees import plant
from tests.processes import run_world
from tests.runs import PICTURES, QUIET, digits_as_files, train_digits_run, train_pictures_run
from vit_dist import Config, train
from vit_dist.cli import main
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.inference.evaluation import precision_of
from vit_dist.inference.load import load_model, load_run_model
from vit_dist.inference.splits import Split, open_split
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.predictions import read_predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return train_pictures_run(tmp_path_factory, image_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_files(tmp_path_factory)


def evaluate_json(capsys: pytest.CaptureFixture[str], folder: Path, *words: object) -> dict[str, Any]:
    """Return the JSON of an evaluation that succeeds."""
    result = command(capsys, "evaluate", *words, "--json", folder / "figures.json")
    assert (result.code, result.err) == (0, "")
    return read_json(folder / "figures.json")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the error output of a command that is rejected."""
    result = command(capsys, "evaluate", *words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    return result.err


def assert_same_figures(figures: dict[str, Any], line: Line) -> None:
    assert figures["loss"] == pytest.approx(line["loss"], abs=1e-6)
    assert (figures["top1"], figures["top5"], figures["seen"]) == (line["top1"], line["top5"], line["seen"])


# Runs


def test_test_figures_equal_those_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate_json(capsys, tmp_path, run)
    summary = read_json(run / "summary.json")
    assert_same_figures(figures, {**summary["test"], "seen": 359})
    about = {
        name: figures[name] for name in ("model", "weights", "update", "data", "device", "world_size", "precision")
    }
    assert about == {
        "model": str(run), "weights": "ema", "update": summary["best"]["update"], "data": "test", "device": "cpu",
        "world_size": 1, "precision": "fp32",
    }  # fmt: skip
    assert figures["images_per_second"] == pytest.approx(359 / figures["seconds"])


def test_class_figures_add_up_to_the_total(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate_json(capsys, tmp_path, run)
    assert [row["class"] for row in figures["classes"]] == [str(number) for number in range(10)]
    assert sum(row["seen"] for row in figures["classes"]) == 359
    right = sum(row["seen"] * row["top1"] / 100 for row in figures["classes"])
    assert 100 * right / 359 == pytest.approx(figures["top1"])
    kept = read_predictions(run / "predictions.safetensors")
    assert kept is not None
    seen, hits = kept.predictions.per_class(10)
    assert [row["seen"] for row in figures["classes"]] == seen.tolist()
    assert [row["top1"] for row in figures["classes"]] == pytest.approx((100 * hits / seen).tolist())


def test_the_printed_table_has_the_worst_class_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    result = command(capsys, "evaluate", run, "--json", path)
    figures, lines = read_json(path), result.out.splitlines()
    low, high = figures["top1_interval"]
    lowest, highest = figures["macro_f1_interval"]
    assert lines[:5] == [
        f"  model     {run}, EMA weights of update 60",
        "  data      test: 359 images",
        f"  result    top1 {figures['top1']:.2f} % (95 % interval {low:.1f} to {high:.1f}), "
        f"top5 {figures['top5']:.2f} %, loss {figures['loss']:.4f}",
        f"  classes   balanced accuracy {figures['balanced_accuracy']:.2f} %, macro F1 {figures['macro']['f1']:.2f} % "
        f"(95 % interval {lowest:.1f} to {highest:.1f})",
        "  baseline  11.70 %: always the most frequent class, 7",
    ]
    assert lines[5].endswith(" images/s, reading included; 1 process on cpu, fp32")
    assert lines[6] == ""
    head = ["class,", "worst", "first", "images", "recall", "precision", "F1", "most", "often", "taken", "for"]
    assert lines[7].split() == head
    worst = sorted(figures["classes"], key=lambda row: row["f1"])
    assert [line.split()[:8] for line in lines[8:18]] == [
        [row["class"], str(row["seen"]), *(cell for name in ("recall", "precision", "f1")
                                           for cell in (f"{row[name]:.2f}", "%"))] for row in worst
    ]  # fmt: skip
    assert worst[0]["f1"] < worst[-1]["f1"]
    never = [row["class"] for row in figures["classes"] if not row["predicted"]]
    assert lines[18:] == ([f"  never predicted: {', '.join(never)}"] if never else [])


def test_classes_and_confusion_are_written_as_csv(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--csv", tmp_path / "tables")
    rows = read_csv(tmp_path / "tables" / "classes.csv")
    assert rows[0] == ["class", "images", "predicted", "correct", "precision", "recall", "f1"]
    for row, values in zip(rows[1:], figures["classes"], strict=True):
        shown = ["" if values[name] is None else f"{values[name]:.4f}" for name in ("precision", "recall", "f1")]
        assert [*row[:3], *row[4:]] == [values["class"], str(values["seen"]), str(values["predicted"]), *shown]
    kept = read_predictions(run / "predictions.safetensors")
    assert kept is not None
    rows = read_csv(tmp_path / "tables" / "confusion.csv")
    assert rows[0][1:] == [row[0] for row in rows[1:]] == [str(number) for number in range(10)]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == kept.predictions.confusion(10).tolist()
    assert [int(row[3]) for row in read_csv(tmp_path / "tables" / "classes.csv")[1:]] == np.diag(
        kept.predictions.confusion(10)
    ).tolist()
    again = command(capsys, "evaluate", run, "--csv", tmp_path / "tables")  # replaced
    assert again.out.endswith(f"\n  written: {tmp_path / 'tables' / 'classes.csv'}, "
                              f"{tmp_path / 'tables' / 'confusion.csv'}\n")  # fmt: skip
    (tmp_path / "file").touch()
    assert refused(capsys, run, "--csv", tmp_path / "file") == (
        f"vit-dist: --csv: {tmp_path / 'file'} is a file: name a folder, for classes.csv and confusion.csv\n"
    )
    assert refused(capsys, run, "--csv", tmp_path / "no" / "tables") == (
        f"vit-dist: --csv: {tmp_path / 'no' / 'tables'} cannot be written: there is no folder {tmp_path / 'no'}\n"
    )


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_every_name_of_the_validation_split_works(
    split: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--split", split)
    assert figures["data"] == "val"
    assert_same_figures(figures, metrics_line(run, split="val", update=60, weights="ema"))


@pytest.mark.parametrize("size", [7, 512])
def test_the_training_split_is_evaluated_exactly(
    size: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--split", "train", "--evaluate.batch_size", size)
    data = open_data(Config.load("digits", {}).data)
    train_split = data.splits["train"]
    assert isinstance(train_split.source, MemorySource)
    labels = train_split.source.labels[train_split.indices]
    logits, _ = predict_by_hand(
        load_run_model(run, "model").model, train_split.source.pixels[train_split.indices], data.mean, data.std
    )
    assert figures["seen"] == len(train_split) == 1797 - 359 - 144
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item(), abs=1e-5)
    assert figures["top1"] == pytest.approx(100 * np.mean(logits.argmax(1).numpy() == labels))


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_raw_or_ema_weights_are_evaluated_on_request(
    weights: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--weights", weights)
    assert figures["weights"] == weights
    assert_same_figures(figures, metrics_line(run, split="test", weights=weights))
    output = command(capsys, "evaluate", run, "--weights", weights).out
    assert ("EMA weights" in output) is (weights == "ema")


@pytest.mark.parametrize(("inside", "weights"), [("", "ema"), ("model.safetensors", "raw"), ("ema.safetensors", "ema")])
@pytest.mark.parametrize("update", [30, 60])
def test_a_checkpoint_or_one_of_its_files_is_evaluated(
    inside: str, weights: str, update: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / f"update_{update:08}" / inside
    figures = evaluate_json(capsys, tmp_path, path, "--split", "val")
    assert (figures["weights"], figures["update"]) == (weights, update)
    assert_same_figures(figures, metrics_line(run, split="val", update=update, weights=weights))


def test_a_run_on_files_is_evaluated_with_its_best_weights(
    pictures_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = read_json(pictures_run / "summary.json")["best"]["update"]
    figures = evaluate_json(capsys, tmp_path, pictures_run)
    assert (figures["data"], figures["update"], figures["top5"]) == ("val", best, None)
    assert_same_figures(figures, metrics_line(pictures_run, split="val", update=best))
    last = evaluate_json(capsys, tmp_path, pictures_run / "checkpoints" / "last", "--data.workers", 2)
    assert_same_figures(last, metrics_line(pictures_run, split="val", update=15))
    assert last["loss"] != figures["loss"]
    assert "top5" not in command(capsys, "evaluate", pictures_run).out


def test_bf16_on_the_cpu_is_near_fp32(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--train.precision", "bf16")
    exact = read_json(run / "summary.json")["test"]
    assert figures["precision"] == "bf16"
    assert figures["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert figures["loss"] != pytest.approx(exact["loss"], abs=1e-6)
    assert evaluate_json(capsys, tmp_path, run)["precision"] == "fp32"


def run_commands(run: str, files: str) -> dict[str, Any]:
    """Return the exit codes and outputs of several commands on this rank."""
    results: dict[str, Any] = {"codes": [], "out": [], "err": []}
    for words in (
        ["evaluate", run, "--json", "split.json", "--evaluate.batch_size", "50"],
        ["evaluate", run, "--folder", files, "--json", "folder.json", "--data.workers", "0"],
        ["evaluate", run, "--split", "tset"],
        ["evaluate", run, "--json", "nowhere/figures.json"],
        ["predict", run],
        ["evaluate", run, "--split", "test", "--folder", files],
    ):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            results["codes"].append(main(words))
        results["out"].append(out.getvalue())
        results["err"].append(err.getvalue())
    return results


def test_two_processes_give_the_figures_of_one(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = run_world(2, run_commands, tmp_path / "world", str(run), str(files))
    assert first["codes"] == second["codes"] == [0, 0, 2, 2, 2, 2]
    assert second["out"] == second["err"] == [""] * 6  # only rank 0 prints
    assert "; 2 processes on cpu, fp32" in first["out"][0]
    assert first["err"] == [
        "",
        "",
        "vit-dist: --split: there is no split tset (did you mean test?)\n",
        "vit-dist: --json: nowhere/figures.json cannot be written: there is no folder nowhere\n",
        "vit-dist: predict is one process's work, and WORLD_SIZE is 2: start it without a launcher, as vit-dist "
        "predict …\n",
        "vit-dist: --split: is of the model's data and --folder is other data: give one of them\n",
    ]
    alone = evaluate_json(capsys, tmp_path, run)
    for name in ("split", "folder"):
        figures = read_json(tmp_path / f"{name}.json")
        assert figures["world_size"] == 2
        assert figures["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert [figures[key] for key in ("top1", "top5", "seen", "classes")] == [
            alone[key] for key in ("top1", "top5", "seen", "classes")
        ]


# Folders of images


def test_png_files_of_the_test_images_give_the_test_figures(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, run, "--folder", files)
    assert figures["data"] == str(files)
    assert_same_figures(figures, metrics_line(run, split="test", weights="ema"))


def test_a_folder_may_have_only_some_of_the_classes(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_classes = evaluate_json(capsys, tmp_path, run, "--folder", files)["classes"]
    for name in ("3", "7"):
        shutil.copytree(files / name, tmp_path / "some" / name / "deeper")
    (tmp_path / "some" / "7" / "notes.txt").write_text("no image")
    figures = evaluate_json(capsys, tmp_path, run, "--folder", tmp_path / "some")
    assert figures["seen"] == all_classes[3]["seen"] + all_classes[7]["seen"]
    right = sum(all_classes[number]["seen"] * all_classes[number]["top1"] for number in (3, 7))
    assert figures["top1"] == pytest.approx(right / figures["seen"])
    for number, row in enumerate(figures["classes"]):
        expected = all_classes[number] if number in (3, 7) else {"seen": 0, "top1": None, "recall": None}
        assert {name: row[name] for name in ("seen", "top1", "recall")} == {
            name: expected[name] for name in ("seen", "top1", "recall")
        }
    lines = command(capsys, "evaluate", run, "--folder", tmp_path / "some").out.splitlines()
    left_out = "files that are no images by their ending (.txt): 1 (7/notes.txt)"
    assert [line.strip() for line in lines if "note:" in line] == [
        f"note: left out of {tmp_path / 'some'}: {left_out}",
        "note: only 2 of the 10 classes have images here (none of 0, 1, 2 …)",
    ]
    assert sorted(line.split()[0] for line in lines[-2:]) == ["3", "7"]
    assert len(lines) == 12
    assert "macro F1" not in "\n".join(lines)
    shutil.rmtree(tmp_path / "some" / "3")
    text = command(capsys, "evaluate", run, "--folder", tmp_path / "some").out
    assert "note: only 1 of the 10 classes has images here (none of 0, 1, 2 …)" in text
    assert "baseline" not in text


def test_the_validation_folder_gives_the_validation_figures(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = read_json(pictures_run / "summary.json")["best"]["update"]
    figures = evaluate_json(capsys, tmp_path, pictures_run, "--folder", image_folder / "valid")
    assert_same_figures(figures, metrics_line(pictures_run, split="val", update=best))


def test_images_that_the_model_was_trained_on_are_counted(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def note(folder: Path) -> list[str]:
        lines = command(capsys, "evaluate", pictures_run, "--folder", folder).out.splitlines()
        return [line.strip() for line in lines if "trained this model" in line]

    photos = tmp_path / "photos"
    shutil.copytree(image_folder / "train", photos)
    images = sorted(photos.rglob("*.png"))
    total = len(images)
    images[0].write_bytes(images[0].read_bytes() + b" ")
    images[1].rename(images[1].with_stem("new"))
    assert note(photos) == [
        f"note: {total - 2} of these {total} images trained this model (by name, size and class): the figures say "
        "little about new ones"
    ]
    assert not note(image_folder / "val")


def test_unusable_folders_and_splits_are_rejected(
    run: Path, pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "3").mkdir(parents=True)
    plant(tmp_path / "odd", {"thirteen": 1, "without images": 0})
    assert refused(capsys, run, "--folder", tmp_path / "odd") == (
        f"vit-dist: --folder: {tmp_path / 'odd'} has thirteen, which is no class of the model (0, 1, 2, 3, 4 …)\n"
    )
    plant(tmp_path / "odd", {"twelve": 1})
    assert refused(capsys, run, "--folder", tmp_path / "odd") == (
        f"vit-dist: --folder: {tmp_path / 'odd'} has thirteen and 1 more, which are no classes of the model "
        "(0, 1, 2, 3, 4 …)\n"
    )
    assert refused(capsys, pictures_run, "--folder", image_folder) == (
        f"vit-dist: --folder: {image_folder} has splits in it: give {image_folder / 'valid'}\n"
    )
    assert refused(capsys, run, "--folder", tmp_path / "gone") == (
        f"vit-dist: --folder: no folder {tmp_path / 'gone'}\n"
    )
    error = refused(capsys, run, "--folder", tmp_path / "empty")
    assert error.startswith(f"vit-dist: --folder: no images in {tmp_path / 'empty'} (looked for .avif, .bmp, ")
    assert error.count("\n") == 1
    assert refused(capsys, pictures_run, "--split", "test") == (
        "vit-dist: --split: there is no split test; known: train, val\n"
    )


def test_an_image_that_cannot_be_read_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_text("no image")
    error = refused(capsys, run, "--folder", tmp_path)
    assert error.startswith(f"vit-dist: {tmp_path / '3' / 'a.png'}: cannot be decoded (")
    assert error.count("\n") == 1


def test_an_unwritable_json_path_is_rejected_before_the_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        pytest.fail("the evaluation began")

    monkeypatch.setattr("vit_dist.cli.evaluate.Runtime", fail)
    path = tmp_path / "gone" / "figures.json"
    assert refused(capsys, run, "--json", path) == (
        f"vit-dist: --json: {path} cannot be written: there is no folder {path.parent}\n"
    )
    assert refused(capsys, run, "--json", tmp_path) == f"vit-dist: --json: {tmp_path} is a folder: name a file\n"


# Classes without names


def test_numbered_classes_match_as_many_sorted_folders(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = numbered_model(tmp_path / "named", 3, label_names=["ant", "bee", "cat"])
    model = numbered_model(tmp_path / "numbers", 3)
    for words in (["--folder", image_folder / "valid"], ["--data.root", image_folder, "--split", "val"]):
        expected, figures = (
            evaluate_json(capsys, tmp_path, row, *words, "--run.device", "cpu") for row in (named, model)
        )
        assert figures["classes"] == expected["classes"]
        assert [row["class"] for row in figures["classes"]] == ["ant", "bee", "cat"]
        assert (figures["seen"], figures["top1"], figures["loss"]) == (21, expected["top1"], expected["loss"])
    shutil.copytree(image_folder / "valid" / "bee", tmp_path / "some" / "1")
    some = evaluate_json(capsys, tmp_path, model, "--folder", tmp_path / "some")
    assert [(row["class"], row["seen"], row["top1"]) for row in some["classes"]] == [
        ("0", 0, None),
        ("1", expected["classes"][1]["seen"], expected["classes"][1]["top1"]),
        ("2", 0, None),
    ]


def test_a_split_has_a_name_samples_and_the_names_of_its_classes(image_folder: Path, tmp_path: Path) -> None:
    names = {"label_names": ["ant", "bee", "cat"], "label_descriptions": {"ant": "formica", "cat": "felis"}}
    described = load_model(
        str(numbered_model(tmp_path / "named", 3, **names)), overrides={"data.root": str(image_folder)}
    )
    plain = load_model(str(numbered_model(tmp_path / "numbers", 3)), overrides={"data.root": str(image_folder)})
    valid = image_folder / "valid"
    for trained, classes in ((described, ["formica", "bee", "felis"]), (plain, ["ant", "bee", "cat"])):
        for split, name in (
            (open_split(trained, "valid", None), "val"),
            (open_split(trained, "", valid), str(valid)),
        ):
            assert isinstance(split, Split)
            assert (split.name, split.classes, len(split.subset)) == (name, classes, 21)
            assert isinstance(split.subset.source, FileSource)
            assert split.subset.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
        assert open_split(trained, "", None).name == "val"


@pytest.mark.parametrize("words", ["--folder", "--data.root"])
def test_folders_named_by_numbers_are_the_classes_of_these_numbers(words: str, tmp_path: Path) -> None:
    for number in range(11):
        for name in ("a", "b"):
            path = tmp_path / "data" / "train" / str(number) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)
    root = tmp_path / "data"
    trained = load_model(str(numbered_model(tmp_path / "numbers", 11)), overrides={"data.root": str(root)})
    split = open_split(trained, "", root / "train") if words == "--folder" else open_split(trained, "train", None)
    assert split.classes == [str(number) for number in range(11)]
    source = split.subset.source
    assert isinstance(source, FileSource)
    paths = [source.paths[index] for index in split.subset.indices]
    assert [int(path.parent.name) for path in paths] == split.subset.labels.tolist()


def test_folders_of_splits_are_not_taken_for_numbered_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        path = tmp_path / "data" / name / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    assert refused(capsys, numbered_model(tmp_path / "numbers", 2), "--folder", tmp_path / "data") == (
        f"vit-dist: --folder: {tmp_path / 'data'} has splits in it: give {tmp_path / 'data' / 'val'}\n"
    )


def test_data_of_other_classes_or_channels_is_rejected(
    run: Path, pictures_run: Path, files: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tail = "give it the data that it was trained on, or --folder with folders named like its classes\n"
    for number, name in enumerate("abcdefghij"):
        shutil.copytree(files / str(number), tmp_path / "letters" / name)
        if number < 2:
            shutil.copytree(files / str(number), tmp_path / "two" / name)
    assert refused(capsys, pictures_run, "--data.root", tmp_path / "two") == (
        "vit-dist: data: has 2 classes (a, b) in 3 channels, the model knows 3 classes (ant, bee, cat) in 3 channels: "
        + tail
    )
    assert refused(capsys, numbered_model(tmp_path / "numbers", 4), "--data.root", image_folder) == (
        "vit-dist: data: has 3 classes (ant, bee, cat) in 3 channels, the model knows 4 classes (0, 1, 2 …) "
        f"in 3 channels: {tail}"
    )
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    assert refused(capsys, path, *DIGITS_MODEL, "--data.root", files) == (
        "vit-dist: data: has 10 classes (0, 1, 2 …) in 3 channels, the model knows 10 classes (0, 1, 2 …) "
        f"in 1 channel: {tail}"
    )
    # The classes of a run have names, even if these are numbers.
    assert refused(capsys, run, "--folder", tmp_path / "letters") == (
        f"vit-dist: --folder: {tmp_path / 'letters'} has a and 9 more, which are no classes of the model "
        "(0, 1, 2, 3, 4 …)\n"
    )


# Precision


@pytest.mark.parametrize(
    ("requested", "trained_in", "expected"),
    [
        ("auto", "fp32", "fp32"),
        ("auto", "bf16", "bf16"),
        ("auto", "fp16", "fp32"),
        ("fp16", "fp16", "fp32"),
        ("bf16", "bf16", "bf16"),
        ("bf16", "fp16", "bf16"),
        ("fp32", "bf16", "fp32"),
        ("fp32", "fp16", "fp32"),
        ("bf16", "fp32", "bf16"),
    ],
)
def test_precision_on_a_cpu_follows_the_flag_then_the_training(
    requested: str, trained_in: str, expected: str, run: Path
) -> None:
    trained = load_model(str(run), overrides={"train.precision": requested, "run.device": "cpu"})
    assert precision_of(dataclasses.replace(trained, precision=trained_in)) == expected


@pytest.mark.parametrize("trained_in", ["fp32", "bf16"])
def test_fp16_on_a_cpu_is_rejected(trained_in: str, run: Path) -> None:
    trained = load_model(str(run), overrides={"train.precision": "fp16", "run.device": "cpu"})
    with pytest.raises(UserError) as caught:
        precision_of(dataclasses.replace(trained, precision=trained_in))
    assert str(caught.value) == "train.precision: fp16 needs a CUDA GPU: set bf16 or fp32"


# Weights without a run


def test_a_file_of_weights_is_evaluated_in_the_model_of_the_fields(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    figures = evaluate_json(capsys, tmp_path, path, *DIGITS_MODEL, "--data.crop", 1, "--folder", files)
    assert (figures["weights"], figures["update"], figures["data"]) == ("raw", None, str(files))
    assert_same_figures(figures, metrics_line(run, split="test", weights="raw"))
    output = command(capsys, "evaluate", path, *DIGITS_MODEL, "--data.crop", 1, "--folder", files).out
    assert output.startswith(f"  model     {path}\n")


def test_a_file_of_weights_is_evaluated_on_a_named_data_set(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    figures = evaluate_json(capsys, tmp_path, path, *DIGITS_MODEL, "--data.name", "digits")
    assert figures["data"] == "test"
    assert_same_figures(figures, metrics_line(run, split="test", weights="raw"))


def test_a_file_of_timm_weights_is_evaluated_with_timms_preprocessing(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    images = [(label, path) for label, name in enumerate(("ant", "bee", "cat"))
              for path in sorted((image_folder / "valid" / name).iterdir())]  # fmt: skip
    for label, image in images:
        copy = tmp_path / "classes" / str(label) / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, copy)
    # timm's own preprocessing of this model: a crop of 0.9, mean and std 0.5.
    pixels = np.stack([resize_and_crop(image, "RGB", 32, 0.9) for _, image in images])
    logits, _ = predict_by_hand(model, pixels, [0.5] * 3, [0.5] * 3)
    labels = torch.tensor([label for label, _ in images])
    figures = evaluate_json(capsys, tmp_path, path, *TIMM_MODEL, "--folder", tmp_path / "classes", "--data.workers", 0)
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert figures["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
    assert (figures["seen"], figures["top5"], figures["weights"], figures["update"]) == (21, None, "raw", None)
    preprocessing = ["--data.mean", "[0.4, 0.5, 0.6]", "--data.std", "[0.2, 0.3, 0.4]", "--data.crop", "0.8"]
    pixels = np.stack([resize_and_crop(image, "RGB", 32, 0.8) for _, image in images])
    logits, _ = predict_by_hand(model, pixels, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    figures = evaluate_json(
        capsys, tmp_path, path, *TIMM_MODEL, *preprocessing, "--folder", tmp_path / "classes", "--data.workers", 0
    )
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_only_the_worst_30_classes_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=40, **args).state_dict(), path)
    for number in range(35):
        (tmp_path / "classes" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 32), (7 * number, 90, 30)).save(tmp_path / "classes" / str(number) / "a.png")
    words = [path, *TIMM_MODEL, "--folder", tmp_path / "classes", "--data.workers", 0, "--model.args", json.dumps(args)]
    figures = evaluate_json(capsys, tmp_path, *words)
    assert (figures["seen"], len(figures["classes"])) == (35, 40)
    assert figures["top5"] is not None
    absent, *lines = command(capsys, "evaluate", *words).out.splitlines()
    assert absent == "  note: only 35 of the 40 classes have images here (none of 35, 36, 37 …)"
    assert lines[38] == "  … the other 5 of 35 classes are no worse: --json and --csv have all"
    never = [row["class"] for row in figures["classes"] if row["seen"] and not row["predicted"]]
    assert len(never) > 5
    assert lines[39:] == [f"  never predicted: {', '.join(never[:5])} and {len(never) - 5} more"]


# Missing or changed data


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Return a folder with image files without a split in `data`, and a run on them in `run`."""
    home = tmp_path_factory.mktemp("held_out")
    shutil.copytree(image_folder / "train", home / "data")
    settings = {**PICTURES, **QUIET, "train.duration": "2 updates", "schedule.warmup": "1 updates",
                "evaluate.every": "2 updates", "data.val_fraction": 0.2}  # fmt: skip
    train(Config.load("folder", {**settings, "data.root": str(home / "data"), "run.dir": str(home / "run")}))
    return home


def test_missing_data_is_an_error_that_names_the_flag(
    held_out_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(held_out_run / "data", home)
    run, root = held_out_run / "run", held_out_run / "data"
    root.rename(held_out_run / "elsewhere")
    try:
        line = f"vit-dist: data.root: no folder or table {root} here: set --data.root to where the data is now\n"
        for words in ([], ["--split", "train"]):
            assert refused(capsys, run, *words) == line
            result = command(capsys, "predict", run, *words)
            assert (result.code, result.out, result.err) == (2, "", line)
        result = command(capsys, "evaluate", run, "--data.root", home)
        assert (result.code, result.err) == (0, "")
        assert "note:" not in result.out
        # Folders and files are evaluated without the run's data.
        assert command(capsys, "evaluate", run, "--folder", home).code == 0
        assert command(capsys, "predict", run, home / "ant" / "00.png").code == 0
    finally:
        (held_out_run / "elsewhere").rename(root)


def test_another_number_of_training_images_prints_a_note(
    held_out_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, more = held_out_run / "run", tmp_path / "more"
    shutil.copytree(held_out_run / "data", more)
    for number in range(5):
        shutil.copy(more / "ant" / "00.png", more / "ant" / f"new{number}.png")
    note = (
        "note: the run had 48 training images, and here are 52: a split that was held out of them may be another now\n"
    )
    for words in ([], ["--split", "val"], ["--split", "train"]):
        result = command(capsys, "evaluate", run, "--data.root", more, *words)
        assert (result.code, result.err) == (0, "")
        assert f"  {note}" in result.out
        assert "note:" not in command(capsys, "evaluate", run, *words).out
        result = command(capsys, "predict", run, "--data.root", more, "--png", tmp_path / "a.png", *words)
        assert result.code == 0
        assert result.err.startswith(note)
        assert "note:" not in result.out
        assert "note:" not in command(capsys, "predict", run, "--png", tmp_path / "a.png", *words).err
    assert open_split(load_model(str(run)), "val", None).notes == ()
    # A folder is other data, so its number of images does not matter.
    notes = [line for line in command(capsys, "evaluate", run, "--folder", more).out.splitlines() if "note:" in line]
    assert len(notes) == 1
    assert notes[0].startswith("  note: 48 of these 65 images trained this model ")


def test_a_split_of_other_images_than_the_run_had_prints_a_note(
    held_out_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many images, one of val renamed: another takes its place there, which was trained on."""
    run, renamed = held_out_run / "run", tmp_path / "renamed"
    shutil.copytree(held_out_run / "data", renamed)
    val = open_data(DataConfig(root=str(renamed), val_fraction=0.2)).splits["val"]
    assert isinstance(val.source, FileSource)
    val.source.paths[val.indices[0]].rename(renamed / "ant" / "zz.png")
    note = "note: the images of val are not those that the run had: some of them may have been trained on\n"
    result = command(capsys, "evaluate", run, "--data.root", renamed, "--split", "val")
    assert (result.code, result.err) == (0, "")
    assert note in result.out
    assert "note:" not in command(capsys, "evaluate", run, "--split", "val").out


def test_a_model_without_data_needs_a_folder_or_a_data_set(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = numbered_model(tmp_path / "numbers", 3)
    line = (
        "vit-dist: data.root: this model does not say its data: name images (predict) or --folder DIR (evaluate), "
        "or set data.root or data.name\n"
    )
    for words in ([], ["--split", "test"], ["--data.name", "folder"]):
        assert refused(capsys, model, *words) == line
        assert command(capsys, "predict", model, *words).err == line
    assert refused(capsys, model, "--folder", image_folder / "valid", "--data.root", image_folder) == (
        "vit-dist: data.root: --folder is other data: give one of them\n"
    )


def test_a_folder_is_evaluated_equally_with_a_data_root(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = evaluate_json(capsys, tmp_path, pictures_run, "--folder", image_folder / "valid")
    again = evaluate_json(
        capsys, tmp_path, pictures_run, "--folder", image_folder / "valid", "--data.root", image_folder
    )
    assert (figures["loss"], figures["seen"]) == (again["loss"], again["seen"])

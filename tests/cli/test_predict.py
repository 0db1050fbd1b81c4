"""`vit-dist predict`: predictions for files and splits in every format, unreadable images, and the grid of pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.commands import DIGITS_MODEL, command, metrics_line, numbered_model, predict_by_hand, resize_and_crop
from tests.conftest import REPOSITORY
from tests.data.sources.damaged import whole
from tests.runs import digits_as_files, train_digits_run, train_pictures_run
from vit_dist.cli import main
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.inference.load import load_run_model
from vit_dist.inference.predict import find_images
from vit_dist.run_folder.predictions import read_predictions

GREEN, RED = (26, 127, 55), (207, 34, 46)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return train_pictures_run(tmp_path_factory, image_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_files(tmp_path_factory)


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict_json(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    """Return the predictions of a command; its exit code is 1 if some images have none, else 0."""
    result = command(capsys, "predict", *words, "--format", "jsonl")
    predictions = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == int(any("error" in prediction for prediction in predictions)), result.err
    return predictions


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the error output of a command that is rejected before it predicts."""
    result = command(capsys, "predict", *words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    return result.err


def assert_likeliest(
    predictions: list[dict[str, Any]], expected: torch.Tensor, classes: tuple[str, ...], top: int
) -> None:
    """Check that predictions are the `top` likeliest classes of the `expected` probabilities [n, classes]."""
    assert len(predictions) == len(expected)
    for prediction, row in zip(predictions, expected, strict=True):
        order = row.argsort(descending=True)[:top].tolist()
        assert [entry["class"] for entry in prediction["top"]] == [classes[number] for number in order]
        assert [entry["probability"] for entry in prediction["top"]] == pytest.approx(row[order].tolist(), abs=3e-6)


def probabilities_by_hand(run: Path, paths: list[Path], mode: str, side: int, crop: float) -> torch.Tensor:
    trained = load_run_model(run, "model")
    pixels = np.stack([resize_and_crop(path, mode, side, crop) for path in paths])
    return predict_by_hand(trained.model, pixels, trained.preprocessing.mean, trained.preprocessing.std)[1]


def unreadable_images(folder: Path) -> list[Path]:
    """Write a text, half a JPEG and an empty file that are named like images; return their paths."""
    text, half, empty = folder / "text.png", folder / "half.jpg", folder / "empty.png"
    text.write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    empty.write_bytes(b"")
    return [text, half, empty]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_avif_costs_its_own_answer_only(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    path, content = tmp_path / "a.avif", whole("avif")
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    good = sorted((files / "5").iterdir())[:2]
    words = [run, good[0], path, good[1], "--evaluate.batch_size", 2, "--data.workers", workers]
    predictions = predict_json(capsys, *words)
    assert [prediction.get("error", "")[:19] for prediction in predictions] == ["", "cannot be decoded (", ""]
    assert [predictions[0], predictions[2]] == predict_json(capsys, run, *good)
    assert command(capsys, "predict", *words).err.startswith("1 could not be read; 3 images in ")


# Which images


def test_files_folders_and_patterns_are_predicted_in_order(
    pictures_run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = image_folder / "valid"
    words = [valid / "cat" / "03.png", valid / "bee", f"{valid}/ant/0[135].png", valid / "ant" / "00.png"]
    expected = [
        valid / "cat" / "03.png",
        *(valid / "bee" / f"{number:02}.png" for number in range(7)),
        *(valid / "ant" / f"{number:02}.png" for number in (1, 3, 5)),
        valid / "ant" / "00.png",
    ]
    predictions = predict_json(capsys, pictures_run, *words)
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in expected]
    assert all(prediction.keys() == {"image", "top"} for prediction in predictions)
    probabilities = probabilities_by_hand(pictures_run, expected, "RGB", 16, 0.875)
    assert_likeliest(predictions, probabilities, ("ant", "bee", "cat"), 3)
    assert {prediction["top"][0]["class"] for prediction in predictions} == {"ant", "bee", "cat"}
    for more in (["--evaluate.batch_size", 5], ["--evaluate.batch_size", 5, "--data.workers", 2]):
        again = predict_json(capsys, pictures_run, *words, *more)
        assert [prediction["image"] for prediction in again] == [str(path) for path in expected]
        assert_likeliest(again, probabilities, ("ant", "bee", "cat"), 3)


def test_images_are_found_in_folders_by_patterns_and_in_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/er/d.png", ".hidden.png", ".cache/e.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "folder.png").mkdir()
    folder = Path("in")
    assert find_images(["in"]) == [folder / name for name in ("a.JPG", "b.png", "deep/c.webp", "deep/er/d.png")]
    assert find_images(["in/*.png"]) == [folder / "b.png"]
    assert find_images(["in/**/*.png"]) == [folder / "b.png", folder / "deep/er/d.png"]
    assert find_images(["in/b.png", "in/notes.txt", "in/b.png"]) == [
        folder / "b.png", folder / "notes.txt", folder / "b.png",
    ]  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_images(["~/in/b.png"]) == [tmp_path / "in" / "b.png"]
    assert find_images([]) == []


def test_an_existing_name_with_brackets_is_not_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    assert find_images(["a[1].png"]) == [Path("a[1].png")]


def test_every_argument_without_an_image_is_an_error_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError):
        find_images(["a.png", "gone.png"])
    assert refused(capsys, run, "no*.png", "a.png", "empty", "gone.png").splitlines() == [
        "vit-dist: no*.png: no image is there, nor does any match it",
        "vit-dist: empty: no image is there",
        "vit-dist: gone.png: no image is there, nor does any match it",
    ]
    (tmp_path / "my old photos").mkdir()
    for words in (["my", "old", "photos"], ["a.png", "my", "old", "photos", "gone.png"]):
        assert refused(capsys, run, *words).splitlines() == [
            "vit-dist: my old photos: a path with a space stands in quotes: 'my old photos'"
        ]
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(capsys, run, "pipe.png", "https://x.y/z.png").splitlines() == [
        "vit-dist: pipe.png: is no regular file",
        "vit-dist: https://x.y/z.png: is an address on the web, from which nothing is fetched: save the image, and "
        "name the file",
    ]


# Predictions


def test_png_files_of_the_test_images_get_the_predictions_of_the_split(
    run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_tops = {
        int(prediction["image"].removeprefix("test/")): prediction["top"]
        for prediction in predict_json(capsys, run, "--split", "test")
    }
    file_tops = {
        int(Path(prediction["image"]).stem): prediction["top"] for prediction in predict_json(capsys, run, files)
    }
    assert split_tops.keys() == file_tops.keys()
    assert len(file_tops) == 359
    for index, top in file_tops.items():
        assert [entry["class"] for entry in top] == [entry["class"] for entry in split_tops[index]]
        assert [entry["probability"] for entry in top] == pytest.approx(
            [entry["probability"] for entry in split_tops[index]], abs=3e-6
        )


def test_images_of_other_sizes_and_colours_are_predicted(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = next(iter(sorted((files / "4").iterdir())))
    Image.open(grey).convert("RGB").save(tmp_path / "colour.png")
    noise = np.random.default_rng(1).integers(0, 255, (31, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    paths = [grey, tmp_path / "colour.png", tmp_path / "large.png"]
    predictions = predict_json(capsys, run, *paths, "--top", 10)
    assert predictions[0]["top"] == predictions[1]["top"]
    # The run trained on whole images in memory, so files are not cropped either.
    assert_likeliest(predictions, probabilities_by_hand(run, paths, "L", 8, 1.0), tuple("0123456789"), 10)


def test_a_file_of_weights_predicts_as_its_run(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "checkpoints" / "best" / "ema.safetensors", tmp_path / "weights.safetensors")
    predictions = predict_json(capsys, "weights.safetensors", files / "2", *DIGITS_MODEL, "--data.crop", 1)
    assert predictions == predict_json(capsys, run, files / "2")
    assert predictions != predict_json(capsys, run, files / "2", "--weights", "raw")


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (10, 10), (99, 10)])
def test_top_is_the_number_of_classes_per_image(
    top: int, count: int, run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predict_json(capsys, run, files / "0", "--top", top)
    assert {len(prediction["top"]) for prediction in predictions} == {count}
    for prediction in predictions:
        probabilities = [entry["probability"] for entry in prediction["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert count < 10 or sum(probabilities) == pytest.approx(1, abs=1e-5)
    head = command(capsys, "predict", run, files / "0", "--top", top, "--format", "csv").out.splitlines()[0]
    pairs = [name for number in range(1, count + 1) for name in (f"class_{number}", f"probability_{number}")]
    assert head.split(",") == ["image", *pairs, "error"]
    split_predictions = predict_json(capsys, run, "--split", "val", "--top", top)
    assert {len(prediction["top"]) for prediction in split_predictions} == {count}


# Unreadable images


@pytest.mark.parametrize("size", [1, 2, 64])
def test_unreadable_images_are_reported_in_their_rows_and_the_others_predicted(
    size: int, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((files / "5").iterdir())[:3]
    unreadable = unreadable_images(tmp_path)
    paths = [unreadable[0], good[0], unreadable[1], good[1], good[2], unreadable[2]]
    words = [run, *paths, "--evaluate.batch_size", size, "--data.workers", 0]
    predictions = predict_json(capsys, *words)
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in paths]
    assert [prediction for prediction in predictions if "error" not in prediction] == predict_json(capsys, run, *good)
    for prediction in (predictions[0], predictions[2], predictions[5]):
        assert prediction.keys() == {"image", "error"}
        assert prediction["error"].startswith("cannot be decoded (")
        assert prediction["error"].endswith("): mend or remove the file")
    assert "truncated" in predictions[2]["error"]
    result = command(capsys, "predict", *words, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.out, newline="")))
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [row["error"] for row in rows] == [prediction.get("error", "") for prediction in predictions]
    assert [row["class_1"] for row in rows] == [
        prediction["top"][0]["class"] if "top" in prediction else "" for prediction in predictions
    ]
    result = command(capsys, "predict", *words)
    table = result.out.splitlines()[1:]
    assert len(table) == 6
    assert ["cannot be decoded (" in row for row in table] == [True, False, True, False, False, True]
    assert result.code == 1
    assert result.err.startswith("3 could not be read; 6 images in ")


def test_unreadable_images_are_left_out_of_the_picture(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((files / "5").iterdir())[0]
    result = command(capsys, "predict", run, *unreadable_images(tmp_path), good, "--png", "grid.png")
    assert result.code == 1
    assert "grid.png: the first 1 as a picture" in result.err
    assert Image.open("grid.png").size[0] < 400


def test_nothing_is_written_if_no_image_is_readable(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable = unreadable_images(tmp_path)
    result = command(capsys, "predict", run, *unreadable)
    assert (result.code, result.err) == (2, "vit-dist: predict: none of the images could be read\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert command(capsys, "predict", run, *unreadable, "--out", "new.csv", "--png", "grid.png").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "old.csv").write_text("as it was")
    assert command(capsys, "predict", run, *unreadable, "--out", "old.csv").code == 2
    assert (tmp_path / "old.csv").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "old.csv"])


# Output


def test_a_table_of_files_shows_the_likeliest_classes(
    run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "6", "six")
    result = command(capsys, "predict", run, "six", "--top", 2)
    predictions = predict_json(capsys, run, "six", "--top", 2)
    lines = result.out.splitlines()
    assert lines[0] == "image         1.            2."
    assert len(lines) == len(predictions) + 1
    for line, prediction in zip(lines[1:], predictions, strict=True):
        first, second = (f"{entry['class']:<5} {entry['probability']:6.1%}" for entry in prediction["top"])
        assert line == f"{prediction['image']}  {first}  {second}"


def test_csv_keeps_names_with_commas_and_quotes(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = 'a, "b" ünd c.png'
    shutil.copy(next(iter((files / "1").iterdir())), tmp_path / name)
    result = command(capsys, "predict", run, name, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(result.out, newline=""))
    (prediction,) = predict_json(capsys, run, name)
    assert row["image"] == prediction["image"] == name
    assert row["error"] == ""
    for number, entry in enumerate(prediction["top"], 1):
        assert row[f"class_{number}"] == entry["class"]
        assert float(row[f"probability_{number}"]) == entry["probability"]


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.jsonl", "jsonl"), ("a.csv", "csv"), ("a.CSV", "csv"), ("a.txt", "table"), ("a", "table")],
)
def test_out_has_the_format_of_its_ending(
    name: str, format: str, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = command(capsys, "predict", run, files / "8", "--format", format).out
    (tmp_path / name).write_text("what was there before")
    result = command(capsys, "predict", run, files / "8", "--out", name)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"{name}: written; 36 images in ")
    assert result.err.endswith(" images/s\n")
    assert result.err.count("\n") == 1
    assert (tmp_path / name).read_bytes().decode() == output
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_format_flag_overrides_the_ending(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = command(capsys, "predict", run, files / "8", "--format", "jsonl").out
    assert command(capsys, "predict", run, files / "8", "--format", "jsonl", "--out", "a.csv").code == 0
    assert (tmp_path / "a.csv").read_text() == output


def test_unwritable_out_and_png_paths_are_rejected_before_the_prediction(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        pytest.fail("the prediction began")

    monkeypatch.setattr("vit_dist.cli.predict.Runtime", fail)
    (tmp_path / "folder").mkdir()
    for words in ([files / "8"], ["--split", "test"], []):
        for flag, file in (("--out", "a.csv"), ("--png", "a.png")):
            for name, reason in (
                (f"gone/{file}", f"gone/{file} cannot be written: there is no folder gone"),
                ("folder", "folder is a folder: name a file"),
            ):
                assert refused(capsys, run, *words, flag, name) == f"vit-dist: {flag}: {reason}\n"
        for name in ("a.jpg", "a", "a.png.pdf"):
            assert refused(capsys, run, *words, "--png", name) == (
                f"vit-dist: --png: the picture is a PNG: name it so, not {name}\n"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    # The path of the picture that is drawn by default is checked too.
    (tmp_path / "predictions.png").mkdir()
    assert refused(capsys, run) == "vit-dist: --png: predictions.png is a folder: name a file\n"


def test_the_ending_of_a_picture_may_be_in_capitals(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "predict", run, files / "8", "--png", "a.PNG").code == 0
    assert Image.open(tmp_path / "a.PNG").format == "PNG"


def test_a_split_and_images_together_are_rejected(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, run, files / "8", "--split", "test", "--out", "a.csv") == (
        "vit-dist: --split: is of the model's data and images are named too: give one of them\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_may_begin_with_a_dash(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(next(iter(sorted((files / "1").iterdir()))), tmp_path / "-x.png")
    result = command(capsys, "predict", run, "--format", "jsonl", "--", "-x.png")
    assert result.code == 0
    (prediction,) = (json.loads(line) for line in result.out.splitlines())
    assert prediction["image"] == "-x.png"
    assert refused(capsys, run, "-x.png").startswith("vit-dist: -x.png: no such flag; ")


def test_a_single_image_is_counted_in_the_singular(run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "predict", run, next(iter(sorted((files / "1").iterdir()))))
    assert result.err.startswith("1 image in ")
    assert result.err.endswith(" s\n")


def test_the_rate_is_printed_from_16_images(run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((files / "1").iterdir())
    for count, has_rate in ((2, False), (15, False), (16, True)):
        (line,) = command(capsys, "predict", run, *paths[:count]).err.splitlines()
        assert line.startswith(f"{count} images in ")
        assert ("images/s" in line) is has_rate


def test_the_file_written_is_named_before_the_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "predict", run, "--split", "test", "--out", "a.csv")
    assert result.err.startswith("a.csv: written; ")
    assert " right, " in result.err
    assert "written" not in command(capsys, "predict", run, "--split", "test").err


def test_an_unknown_ending_needs_the_format_flag(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(iter(sorted((files / "1").iterdir())))
    assert command(capsys, "predict", run, image, "--out", "x.json").code == 2
    assert list(tmp_path.iterdir()) == []
    assert command(capsys, "predict", run, image, "--out", "x.json", "--format", "jsonl").code == 0
    assert json.loads((tmp_path / "x.json").read_text())["image"] == str(image)


def test_files_of_16_bits_get_the_predictions_of_those_of_8(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eight = next(iter(sorted((files / "1").iterdir())))
    Image.fromarray(np.asarray(Image.open(eight)).astype(np.uint16) * 257).save(tmp_path / "x.png")
    Image.fromarray(np.asarray(Image.open(eight)).astype(np.float32)).save(tmp_path / "y.tif")
    first, second = predict_json(capsys, run, eight, "x.png")
    assert first["top"] == second["top"]
    result = command(capsys, "predict", run, "x.png", "y.tif", "--format", "jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows[0]["top"] == first["top"]
    assert "has values of 32 bits" in rows[1]["error"]


def test_stdout_has_the_predictions_alone_and_stderr_the_rest(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    result = command(capsys, "predict", run, "--split", "test", "--format", "jsonl")
    assert [json.loads(line)["image"][:5] for line in result.out.splitlines()] == ["test/"] * 359
    assert len(result.err.splitlines()) == 1
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    again = command(capsys, "predict", run, "--split", "test", "--format", "jsonl")
    assert again.out == result.out
    assert "%" in terminal.getvalue()  # the progress line
    assert " right, " in terminal.getvalue().splitlines()[-1]


# Splits


def test_a_split_gives_every_sample_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "predict", run, "--split", "test", "--format", "jsonl", "--top", 5)
    predictions = [json.loads(line) for line in result.out.splitlines()]
    test = open_data(load_run_model(run, "model").config.data).splits["test"]
    assert isinstance(test.source, MemorySource)
    assert [prediction["image"] for prediction in predictions] == [f"test/{index}" for index in test.indices]
    assert [prediction["label"] for prediction in predictions] == [
        str(test.source.labels[index]) for index in test.indices
    ]
    assert [prediction["right"] for prediction in predictions] == [
        prediction["top"][0]["class"] == prediction["label"] for prediction in predictions
    ]
    right = sum(prediction["right"] for prediction in predictions)
    assert 100 * right / 359 == pytest.approx(read_json(run / "summary.json")["test"]["top1"])
    assert result.err.startswith(f"{right} of 359 right, {right / 359:.2%}; 359 images from test in ")
    kept = read_predictions(run / "predictions.safetensors")
    assert kept is not None
    for prediction, top, probabilities in zip(
        predictions, kept.predictions.top, kept.predictions.probability, strict=True
    ):
        assert [entry["class"] for entry in prediction["top"]] == [str(number) for number in top]
        assert [entry["probability"] for entry in prediction["top"]] == pytest.approx(probabilities.tolist(), abs=3e-6)
    assert not Path("predictions.png").exists()
    raw = predict_json(capsys, run, "--split", "test", "--weights", "raw")
    assert 100 * sum(prediction["right"] for prediction in raw) / 359 == pytest.approx(
        metrics_line(run, split="test", weights="raw")["top1"]
    )


def test_table_and_csv_of_a_split_show_labels_and_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = predict_json(capsys, run, "--split", "val")
    table = command(capsys, "predict", run, "--split", "val").out.splitlines()
    assert table[0].split() == ["image", "label", "1.", "2.", "3."]
    assert [row.split()[:2] for row in table[1:]] == [
        [prediction["image"], prediction["label"]] for prediction in predictions
    ]
    assert [row.endswith("  wrong") for row in table[1:]] == [not prediction["right"] for prediction in predictions]
    output = command(capsys, "predict", run, "--split", "val", "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(output, newline="")))
    assert [(row["image"], row["label"], row["right"]) for row in rows] == [
        (prediction["image"], prediction["label"], str(prediction["right"]).lower()) for prediction in predictions
    ]
    assert 0 < sum(prediction["right"] for prediction in predictions) < 144


def test_a_split_of_files_names_its_files(
    pictures_run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predict_json(capsys, pictures_run, "--split", "validation")
    expected = [image_folder / "valid" / name / f"{i:02}.png" for name in ("ant", "bee", "cat") for i in range(7)]
    assert [prediction["image"] for prediction in predictions] == [str(path) for path in expected]
    assert [prediction["label"] for prediction in predictions] == ["ant"] * 7 + ["bee"] * 7 + ["cat"] * 7
    assert_likeliest(
        predictions, probabilities_by_hand(pictures_run, expected, "RGB", 16, 0.875), ("ant", "bee", "cat"), 3
    )
    assert refused(capsys, pictures_run, "--split", "test") == (
        "vit-dist: --split: there is no split test; known: train, val\n"
    )


def test_two_classes_of_the_same_name_are_kept_apart(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet has two classes called crane: the bird and the machine."""
    names = {"ant": "crane", "bee": "bee", "cat": "crane"}
    model = numbered_model(tmp_path / "model", 3, label_names=list(names), label_descriptions=names)
    words = [model, "--split", "val", "--data.root", image_folder, "--data.workers", 0, "--run.device", "cpu"]
    result = command(capsys, "predict", *words, "--format", "jsonl")
    predictions = [json.loads(line) for line in result.out.splitlines()]
    assert [prediction["label"] for prediction in predictions] == ["crane"] * 7 + ["bee"] * 7 + ["crane"] * 7
    called_right = [prediction["top"][0]["class"] == prediction["label"] for prediction in predictions]
    rights = [prediction["right"] for prediction in predictions]
    assert any(called and not right for called, right in zip(called_right, rights, strict=True))
    assert command(capsys, "evaluate", *words, "--json", "figures.json").code == 0
    figures = read_json(tmp_path / "figures.json")
    assert 100 * sum(rights) / 21 == pytest.approx(figures["top1"])
    assert [entry["class"] for entry in figures["classes"]] == ["crane", "bee", "crane"]
    assert [entry["seen"] for entry in figures["classes"]] == [7, 7, 7]
    assert result.err.startswith(f"{sum(rights)} of 21 right, ")
    table = command(capsys, "predict", *words).out.splitlines()[1:]
    assert [row.endswith("  wrong") for row in table] == [not right for right in rights]
    output = command(capsys, "predict", *words, "--format", "csv", "--png", "grid.png").out
    rows = csv.DictReader(io.StringIO(output, newline=""))
    assert [row["right"] for row in rows] == [str(right).lower() for right in rights]
    frames = [tile for tile in tiles_of(tmp_path / "grid.png", 5) if frame_of(tile, GREEN)]
    assert len(frames) == sum(rights)


def test_a_model_without_class_names_uses_those_of_the_split(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = numbered_model(tmp_path / "model", 3)
    words = ["--data.root", image_folder, "--data.workers", 0, "--run.device", "cpu"]
    predictions = predict_json(capsys, model, "--split", "val", *words)
    assert [prediction["label"] for prediction in predictions] == ["ant"] * 7 + ["bee"] * 7 + ["cat"] * 7
    assert {entry["class"] for prediction in predictions for entry in prediction["top"]} == {"ant", "bee", "cat"}
    # Files alone have no class names.
    file_predictions = predict_json(capsys, model, image_folder / "valid", *words[2:])
    numbers = {"ant": "0", "bee": "1", "cat": "2"}
    assert [[entry["class"] for entry in prediction["top"]] for prediction in file_predictions] == [
        [numbers[entry["class"]] for entry in prediction["top"]] for prediction in predictions
    ]


# Pictures


def frame_of(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Return (top, bottom, left, right) of a frame of a colour, or None: its lines fill over 0.4 of a row or column."""
    matches = (picture[:, :, :3] == colour).all(2)
    rows = np.flatnonzero(matches.sum(1) > 0.4 * matches.shape[1])
    columns = np.flatnonzero(matches.sum(0) > 0.4 * matches.shape[0])
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def tiles_of(path: Path, side: int) -> list[np.ndarray[Any, Any]]:
    """Return the tiles of a picture of side × side tiles, row by row."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    return [part for row in np.array_split(picture, side) for part in np.array_split(row, side, axis=1)]


def test_by_default_16_test_images_are_drawn_with_green_or_red_frames(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predict_json(capsys, run)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.png"]
    data = open_data(load_run_model(run, "model").config.data)
    source = data.splits["test"].source
    assert isinstance(source, MemorySource)
    indices = [int(prediction["image"].removeprefix("test/")) for prediction in predictions]
    assert len(set(indices)) == 16
    assert set(indices) <= set(data.splits["test"].indices.tolist())
    assert [prediction["label"] for prediction in predictions] == [str(source.labels[index]) for index in indices]
    rights = []
    for index, prediction, tile in zip(indices, predictions, tiles_of(tmp_path / "predictions.png", 4), strict=True):
        green, red = frame_of(tile, GREEN), frame_of(tile, RED)
        assert (green is None) is not (red is None)
        rights.append(red is None)
        assert rights[-1] is prediction["right"]
        frame = green or red
        assert frame is not None
        top, bottom, left, right = frame
        middle = (np.arange(8) + 0.5) / 8
        shown = tile[np.ix_(np.rint(top + (bottom - top) * middle).astype(int),
                            np.rint(left + (right - left) * middle).astype(int))]  # fmt: skip
        assert np.abs(shown[:, :, 0].astype(int) - source.pixels[index, 0]).max() <= 2
    assert 0 < sum(rights) < 16


def test_the_seed_chooses_the_16_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = predict_json(capsys, run)
    assert predict_json(capsys, run) == first
    assert predict_json(capsys, run, "--run.seed", 0) == first
    other = predict_json(capsys, run, "--run.seed", 1)
    assert len(other) == 16
    assert {prediction["image"] for prediction in other} != {prediction["image"] for prediction in first}


def test_a_run_without_a_test_split_draws_16_validation_images(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predict_json(capsys, pictures_run, "--png", "mine.png")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    assert len({prediction["image"] for prediction in predictions}) == 16
    assert {Path(prediction["image"]).parents[1] for prediction in predictions} == {image_folder / "valid"}


def test_the_picture_of_files_has_64_images_and_no_frames(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = command(capsys, "predict", run, files / "0", files / "1", "--png", "grid.png", "--top", 1)
    assert result.err.splitlines()[0] == "grid.png: the first 64 as a picture"
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    for colour in (GREEN, RED):
        assert not (picture == colour).all(2).any()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


# Pipes


def test_a_closed_pipe_is_not_an_error(run: Path, tmp_path: Path) -> None:
    """The pipe is closed amid the predictions, and before a few that fit into a buffer are written."""
    commands = [["--split", "test"], ["--top", "1"]]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "vit_dist", "predict", str(run), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        for words in commands
    ]
    for number, process in enumerate(started):
        assert process.stdout is not None
        assert process.stderr is not None
        if number == 0:
            assert process.stdout.readline().startswith("image ")
        process.stdout.close()
    for process in started:
        assert process.stderr is not None
        output = process.stderr.read()
        process.wait(60)
        assert "Traceback" not in output
        assert "BrokenPipe" not in output
        assert process.returncode in (0, 1)


def test_images_without_a_run_are_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("new ones/a.png", "runs/pets-a/metrics.jsonl"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"")
    for name in ("new ones", "new ones/a.png"):
        assert main(["predict", name]) == 2
        command = f"give the run first: vit-dist predict runs/pets-a '{name}'"
        assert capsys.readouterr().err == f"vit-dist: {name}: holds images: {command}\n"
    assert main(["predict", "runs"]) == 2
    assert "name one of the runs in it, as runs/pets-a" in capsys.readouterr().err

"""`vit-dist predict`: what a model says of files and of splits, in every form; what cannot be read; the pictures."""

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

from tests.cli.test_evaluate import (
    ALONE,
    a_digits_run,
    a_pictures_run,
    command,
    cut,
    digits_as_files,
    line_of,
    numbered,
    shares,
)
from tests.conftest import REPOSITORY
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
    return a_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return a_pictures_run(tmp_path_factory, image_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_files(tmp_path_factory)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answered(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    """The answers of a command that goes well."""
    done = command(capsys, "predict", *words, "--format", "jsonl")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The lines of a command that is refused before it answers."""
    done = command(capsys, "predict", *words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    return done.err


def assert_like(answers: list[dict[str, Any]], expected: torch.Tensor, classes: tuple[str, ...], top: int) -> None:
    """Whether answers are the likeliest of `expected` probabilities [n, classes]."""
    assert len(answers) == len(expected)
    for answer, row in zip(answers, expected, strict=True):
        order = row.argsort(descending=True)[:top].tolist()
        assert [one["class"] for one in answer["top"]] == [classes[number] for number in order]
        assert [one["probability"] for one in answer["top"]] == pytest.approx(row[order].tolist(), abs=3e-6)


def by_hand(run: Path, paths: list[Path], mode: str, side: int, crop: float) -> torch.Tensor:
    trained = load_run_model(run, "model")
    pixels = np.stack([cut(path, mode, side, crop) for path in paths])
    return shares(trained.model, pixels, trained.preprocessing.mean, trained.preprocessing.std)[1]


def bad_images(folder: Path) -> list[Path]:
    """A text, half a JPEG and an empty file that are named like images."""
    text, half, empty = folder / "text.png", folder / "half.jpg", folder / "empty.png"
    text.write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    empty.write_bytes(b"")
    return [text, half, empty]


# Which images


def test_files_folders_and_patterns_in_the_order_given(
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
    answers = answered(capsys, pictures_run, *words)
    assert [answer["image"] for answer in answers] == [str(path) for path in expected]
    assert all(answer.keys() == {"image", "top"} for answer in answers)
    probabilities = by_hand(pictures_run, expected, "RGB", 16, 0.875)
    assert_like(answers, probabilities, ("ant", "bee", "cat"), 3)
    assert {answer["top"][0]["class"] for answer in answers} == {"ant", "bee", "cat"}
    for more in (["--evaluate.batch_size", 5], ["--evaluate.batch_size", 5, "--data.workers", 2]):
        again = answered(capsys, pictures_run, *words, *more)
        assert [answer["image"] for answer in again] == [str(path) for path in expected]
        assert_like(again, probabilities, ("ant", "bee", "cat"), 3)


def test_finding_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_name_with_brackets_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    assert find_images(["a[1].png"]) == [Path("a[1].png")]


def test_nothing_found_is_a_line_each(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError):
        find_images(["a.png", "gone.png"])
    assert refused(capsys, run, "no*.png", "a.png", "empty", "gone.png").splitlines() == [
        "vit-dist: no*.png: no image is there, nor does any match it",
        "vit-dist: empty: no image is there",
        "vit-dist: gone.png: no image is there, nor does any match it",
    ]


# What is said of them


def test_a_png_of_a_test_image_is_answered_as_the_split_is(
    run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_split = {
        int(answer["image"].removeprefix("test/")): answer["top"] for answer in answered(capsys, run, "--split", "test")
    }
    of_files = {int(Path(answer["image"]).stem): answer["top"] for answer in answered(capsys, run, files)}
    assert of_split.keys() == of_files.keys()
    assert len(of_files) == 359
    for index, top in of_files.items():
        assert [one["class"] for one in top] == [one["class"] for one in of_split[index]]
        assert [one["probability"] for one in top] == pytest.approx(
            [one["probability"] for one in of_split[index]], abs=3e-6
        )


def test_images_of_other_sizes_and_colours(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = next(iter(sorted((files / "4").iterdir())))
    Image.open(grey).convert("RGB").save(tmp_path / "colour.png")
    noise = np.random.default_rng(1).integers(0, 255, (31, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    paths = [grey, tmp_path / "colour.png", tmp_path / "large.png"]
    answers = answered(capsys, run, *paths, "--top", 10)
    assert answers[0]["top"] == answers[1]["top"]
    # In memory the whole image was trained on, so nothing is cut off a file's short side either.
    assert_like(answers, by_hand(run, paths, "L", 8, 1.0), tuple("0123456789"), 10)


def test_weights_alone_answer_as_their_run(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "checkpoints" / "best" / "ema.safetensors", tmp_path / "weights.safetensors")
    found = answered(capsys, "weights.safetensors", files / "2", *ALONE, "--data.crop", 1)
    assert found == answered(capsys, run, files / "2")
    assert found != answered(capsys, run, files / "2", "--weights", "raw")


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (10, 10), (99, 10)])
def test_top(top: int, count: int, run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answered(capsys, run, files / "0", "--top", top)
    assert {len(answer["top"]) for answer in answers} == {count}
    for answer in answers:
        named = [one["probability"] for one in answer["top"]]
        assert named == sorted(named, reverse=True)
        assert count < 10 or sum(named) == pytest.approx(1, abs=1e-5)
    head = command(capsys, "predict", run, files / "0", "--top", top, "--format", "csv").out.splitlines()[0]
    pairs = [name for number in range(1, count + 1) for name in (f"class_{number}", f"probability_{number}")]
    assert head.split(",") == ["image", *pairs, "error"]
    few = answered(capsys, run, "--split", "val", "--top", top)
    assert {len(answer["top"]) for answer in few} == {count}


# What cannot be read


@pytest.mark.parametrize("size", [1, 2, 64])
def test_bad_images_are_reported_in_their_rows_and_the_others_answered(
    size: int, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((files / "5").iterdir())[:3]
    bad = bad_images(tmp_path)
    paths = [bad[0], good[0], bad[1], good[1], good[2], bad[2]]
    words = [run, *paths, "--evaluate.batch_size", size, "--data.workers", 0]
    answers = answered(capsys, *words)
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    assert [answer for answer in answers if "error" not in answer] == answered(capsys, run, *good)
    for answer in (answers[0], answers[2], answers[5]):
        assert answer.keys() == {"image", "error"}
        assert answer["error"].startswith("cannot be decoded (")
        assert answer["error"].endswith("): mend or remove the file")
    assert "truncated" in answers[2]["error"]
    done = command(capsys, "predict", *words, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [row["error"] for row in rows] == [answer.get("error", "") for answer in answers]
    assert [row["class_1"] for row in rows] == [
        answer["top"][0]["class"] if "top" in answer else "" for answer in answers
    ]
    done = command(capsys, "predict", *words)
    table = done.out.splitlines()[1:]
    assert len(table) == 6
    assert ["cannot be decoded (" in row for row in table] == [True, False, True, False, False, True]
    assert done.code == 0
    assert done.err.startswith("3 could not be read; 6 images in ")


def test_bad_images_are_left_out_of_the_picture(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((files / "5").iterdir())[0]
    done = command(capsys, "predict", run, *bad_images(tmp_path), good, "--png", "grid.png")
    assert done.code == 0
    assert "grid.png: the first 1 as a picture" in done.err
    assert Image.open("grid.png").size[0] < 400


def test_where_all_are_bad_nothing_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = bad_images(tmp_path)
    done = command(capsys, "predict", run, *bad)
    assert (done.code, done.err) == (2, "vit-dist: predict: none of the images could be read\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert command(capsys, "predict", run, *bad, "--out", "new.csv", "--png", "grid.png").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (tmp_path / "old.csv").write_text("as it was")
    assert command(capsys, "predict", run, *bad, "--out", "old.csv").code == 2
    assert (tmp_path / "old.csv").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "old.csv"])


# How it is written


def test_a_table_of_files(run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(files / "6", "six")
    done = command(capsys, "predict", run, "six", "--top", 2)
    answers = answered(capsys, run, "six", "--top", 2)
    lines = done.out.splitlines()
    assert lines[0] == "image         1.            2."
    assert len(lines) == len(answers) + 1
    for line, answer in zip(lines[1:], answers, strict=True):
        first, second = (f"{one['class']:<5} {one['probability']:6.1%}" for one in answer["top"])
        assert line == f"{answer['image']}  {first}  {second}"


def test_names_with_commas_and_quotes_in_csv(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = 'a, "b" ünd c.png'
    shutil.copy(next(iter((files / "1").iterdir())), tmp_path / name)
    done = command(capsys, "predict", run, name, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(done.out, newline=""))
    (answer,) = answered(capsys, run, name)
    assert row["image"] == answer["image"] == name
    assert row["error"] == ""
    for number, one in enumerate(answer["top"], 1):
        assert row[f"class_{number}"] == one["class"]
        assert float(row[f"probability_{number}"]) == one["probability"]


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.jsonl", "jsonl"), ("a.csv", "csv"), ("a.CSV", "csv"), ("a.txt", "table"), ("a", "table")],
)
def test_out_has_the_form_of_its_ending(
    name: str, form: str, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(capsys, "predict", run, files / "8", "--format", form).out
    (tmp_path / name).write_text("what was there before")
    done = command(capsys, "predict", run, files / "8", "--out", name)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(f"{name}: written; 36 images in ")
    assert done.err.endswith(" images/s\n")
    assert done.err.count("\n") == 1
    assert (tmp_path / name).read_bytes().decode() == said
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_format_comes_before_the_ending(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(capsys, "predict", run, files / "8", "--format", "jsonl").out
    assert command(capsys, "predict", run, files / "8", "--format", "jsonl", "--out", "a.csv").code == 0
    assert (tmp_path / "a.csv").read_text() == said


def test_out_and_png_that_cannot_be_written_are_refused_before_the_work(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*given: object) -> None:
        pytest.fail("it began to work")

    monkeypatch.setattr("vit_dist.cli.predict.Runtime", works)
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
    # The picture that is drawn without a word has a place too.
    (tmp_path / "predictions.png").mkdir()
    assert refused(capsys, run) == "vit-dist: --png: predictions.png is a folder: name a file\n"


def test_the_ending_of_a_picture_may_be_in_capitals(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "predict", run, files / "8", "--png", "a.PNG").code == 0
    assert Image.open(tmp_path / "a.PNG").format == "PNG"


def test_a_split_and_images_are_one_too_many(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, run, files / "8", "--split", "test", "--out", "a.csv") == (
        "vit-dist: --split: is of the model's data and images are named too: give one of them\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_name_begins_with_a_dash(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(next(iter(sorted((files / "1").iterdir()))), tmp_path / "-x.png")
    done = command(capsys, "predict", run, "--format", "jsonl", "--", "-x.png")
    assert done.code == 0
    (answer,) = (json.loads(line) for line in done.out.splitlines())
    assert answer["image"] == "-x.png"
    assert refused(capsys, run, "-x.png").startswith("vit-dist: -x.png: no such flag; ")


def test_one_image_is_said_as_one(run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "predict", run, next(iter(sorted((files / "1").iterdir()))))
    assert done.err.startswith("1 image in ")
    assert done.err.endswith(" s\n")


def test_a_rate_is_told_of_16_images_and_more(run: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((files / "1").iterdir())
    for count, told in ((2, False), (15, False), (16, True)):
        (line,) = command(capsys, "predict", run, *paths[:count]).err.splitlines()
        assert line.startswith(f"{count} images in ")
        assert ("images/s" in line) is told


def test_what_was_written_is_said_before_the_tally(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "predict", run, "--split", "test", "--out", "a.csv")
    assert done.err.startswith("a.csv: written; ")
    assert " right, " in done.err
    assert "written" not in command(capsys, "predict", run, "--split", "test").err


def test_another_ending_is_fine_beside_a_format(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = next(iter(sorted((files / "1").iterdir())))
    assert command(capsys, "predict", run, one, "--out", "x.json").code == 2
    assert list(tmp_path.iterdir()) == []
    assert command(capsys, "predict", run, one, "--out", "x.json", "--format", "jsonl").code == 0
    assert json.loads((tmp_path / "x.json").read_text())["image"] == str(one)


def test_files_of_16_bits_are_answered_as_those_of_8(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eight = next(iter(sorted((files / "1").iterdir())))
    Image.fromarray(np.asarray(Image.open(eight)).astype(np.uint16) * 257).save(tmp_path / "x.png")
    Image.fromarray(np.asarray(Image.open(eight)).astype(np.float32)).save(tmp_path / "y.tif")
    first, second = answered(capsys, run, eight, "x.png")
    assert first["top"] == second["top"]
    done = command(capsys, "predict", run, "x.png", "y.tif", "--format", "jsonl")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert rows[0]["top"] == first["top"]
    assert "has values of 32 bits" in rows[1]["error"]


def test_the_output_is_answers_alone_and_the_talk_is_on_the_other_stream(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    done = command(capsys, "predict", run, "--split", "test", "--format", "jsonl")
    assert [json.loads(line)["image"][:5] for line in done.out.splitlines()] == ["test/"] * 359
    assert len(done.err.splitlines()) == 1
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    again = command(capsys, "predict", run, "--split", "test", "--format", "jsonl")
    assert again.out == done.out
    assert "%" in terminal.getvalue()  # a line that counts them
    assert " right, " in terminal.getvalue().splitlines()[-1]


# Splits


def test_a_split_gives_every_sample_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = command(capsys, "predict", run, "--split", "test", "--format", "jsonl", "--top", 5)
    answers = [json.loads(line) for line in done.out.splitlines()]
    test = open_data(load_run_model(run, "model").config.data).splits["test"]
    assert isinstance(test.source, MemorySource)
    assert [answer["image"] for answer in answers] == [f"test/{index}" for index in test.indices]
    assert [answer["label"] for answer in answers] == [str(test.source.labels[index]) for index in test.indices]
    assert [answer["right"] for answer in answers] == [
        answer["top"][0]["class"] == answer["label"] for answer in answers
    ]
    right = sum(answer["right"] for answer in answers)
    assert 100 * right / 359 == pytest.approx(read_json(run / "summary.json")["test"]["top1"])
    assert done.err.startswith(f"{right} of 359 right, {right / 359:.2%}; 359 images in ")
    kept = read_predictions(run / "predictions.safetensors")
    assert kept is not None
    for answer, top, named in zip(answers, kept.predictions.top, kept.predictions.probability, strict=True):
        assert [one["class"] for one in answer["top"]] == [str(number) for number in top]
        assert [one["probability"] for one in answer["top"]] == pytest.approx(named.tolist(), abs=3e-6)
    assert not Path("predictions.png").exists()
    raw = answered(capsys, run, "--split", "test", "--weights", "raw")
    assert 100 * sum(answer["right"] for answer in raw) / 359 == pytest.approx(
        line_of(run, split="test", weights="raw")["top1"]
    )


def test_labels_and_mistakes_in_table_and_csv(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = answered(capsys, run, "--split", "val")
    table = command(capsys, "predict", run, "--split", "val").out.splitlines()
    assert table[0].split() == ["image", "label", "1.", "2.", "3."]
    assert [row.split()[:2] for row in table[1:]] == [[answer["image"], answer["label"]] for answer in answers]
    assert [row.endswith("  wrong") for row in table[1:]] == [not answer["right"] for answer in answers]
    said = command(capsys, "predict", run, "--split", "val", "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(said, newline="")))
    assert [(row["image"], row["label"], row["right"]) for row in rows] == [
        (answer["image"], answer["label"], str(answer["right"]).lower()) for answer in answers
    ]
    assert 0 < sum(answer["right"] for answer in answers) < 144


def test_a_split_of_files_names_its_files(
    pictures_run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answered(capsys, pictures_run, "--split", "validation")
    expected = [image_folder / "valid" / name / f"{i:02}.png" for name in ("ant", "bee", "cat") for i in range(7)]
    assert [answer["image"] for answer in answers] == [str(path) for path in expected]
    assert [answer["label"] for answer in answers] == ["ant"] * 7 + ["bee"] * 7 + ["cat"] * 7
    assert_like(answers, by_hand(pictures_run, expected, "RGB", 16, 0.875), ("ant", "bee", "cat"), 3)
    assert refused(capsys, pictures_run, "--split", "test") == (
        "vit-dist: --split: there is no split test; known: train, val\n"
    )


def test_classes_of_one_name_are_two(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet has two that are called crane: the bird and the machine."""
    names = {"ant": "crane", "bee": "bee", "cat": "crane"}
    model = numbered(tmp_path / "model", 3, label_names=list(names), label_descriptions=names)
    words = [model, "--split", "val", "--data.root", image_folder, "--data.workers", 0, "--run.device", "cpu"]
    done = command(capsys, "predict", *words, "--format", "jsonl")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["label"] for answer in answers] == ["crane"] * 7 + ["bee"] * 7 + ["crane"] * 7
    called_right = [answer["top"][0]["class"] == answer["label"] for answer in answers]
    rights = [answer["right"] for answer in answers]
    assert any(called and not right for called, right in zip(called_right, rights, strict=True))
    assert command(capsys, "evaluate", *words, "--json", "found.json").code == 0
    found = read_json(tmp_path / "found.json")
    assert 100 * sum(rights) / 21 == pytest.approx(found["top1"])
    assert [one["class"] for one in found["classes"]] == ["crane", "bee", "crane"]
    assert [one["seen"] for one in found["classes"]] == [7, 7, 7]
    assert done.err.startswith(f"{sum(rights)} of 21 right, ")
    table = command(capsys, "predict", *words).out.splitlines()[1:]
    assert [row.endswith("  wrong") for row in table] == [not right for right in rights]
    said = command(capsys, "predict", *words, "--format", "csv", "--png", "grid.png").out
    rows = csv.DictReader(io.StringIO(said, newline=""))
    assert [row["right"] for row in rows] == [str(right).lower() for right in rights]
    frames = [cell for cell in cells(tmp_path / "grid.png", 5) if framed(cell, GREEN)]
    assert len(frames) == sum(rights)


def test_a_split_of_a_model_without_names_has_those_of_the_data(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = numbered(tmp_path / "model", 3)
    words = ["--data.root", image_folder, "--data.workers", 0, "--run.device", "cpu"]
    answers = answered(capsys, model, "--split", "val", *words)
    assert [answer["label"] for answer in answers] == ["ant"] * 7 + ["bee"] * 7 + ["cat"] * 7
    assert {one["class"] for answer in answers for one in answer["top"]} == {"ant", "bee", "cat"}
    # Of files alone nobody says what the numbers are.
    of_files = answered(capsys, model, image_folder / "valid", *words[2:])
    numbers = {"ant": "0", "bee": "1", "cat": "2"}
    assert [[one["class"] for one in answer["top"]] for answer in of_files] == [
        [numbers[one["class"]] for one in answer["top"]] for answer in answers
    ]


# Pictures


def framed(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of a frame of a colour: rows and columns that have most of a line of it."""
    of = (picture[:, :, :3] == colour).all(2)
    rows = np.flatnonzero(of.sum(1) > 0.4 * of.shape[1])
    columns = np.flatnonzero(of.sum(0) > 0.4 * of.shape[0])
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def cells(path: Path, side: int) -> list[np.ndarray[Any, Any]]:
    """The parts of a picture of side × side tiles, row by row."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    return [part for row in np.array_split(picture, side) for part in np.array_split(row, side, axis=1)]


def test_without_a_word_16_of_test_are_drawn_green_where_right_and_red_where_wrong(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answered(capsys, run)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.png"]
    data = open_data(load_run_model(run, "model").config.data)
    source = data.splits["test"].source
    assert isinstance(source, MemorySource)
    indices = [int(answer["image"].removeprefix("test/")) for answer in answers]
    assert len(set(indices)) == 16
    assert set(indices) <= set(data.splits["test"].indices.tolist())
    assert [answer["label"] for answer in answers] == [str(source.labels[index]) for index in indices]
    rights = []
    for index, answer, cell in zip(indices, answers, cells(tmp_path / "predictions.png", 4), strict=True):
        green, red = framed(cell, GREEN), framed(cell, RED)
        assert (green is None) is not (red is None)
        rights.append(red is None)
        assert rights[-1] is answer["right"]
        found = green or red
        assert found is not None
        top, bottom, left, right = found
        middle = (np.arange(8) + 0.5) / 8
        shown = cell[np.ix_(np.rint(top + (bottom - top) * middle).astype(int),
                            np.rint(left + (right - left) * middle).astype(int))]  # fmt: skip
        assert np.abs(shown[:, :, 0].astype(int) - source.pixels[index, 0]).max() <= 2
    assert 0 < sum(rights) < 16


def test_the_16_are_the_seeds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = answered(capsys, run)
    assert answered(capsys, run) == first
    assert answered(capsys, run, "--run.seed", 0) == first
    other = answered(capsys, run, "--run.seed", 1)
    assert len(other) == 16
    assert {answer["image"] for answer in other} != {answer["image"] for answer in first}


def test_of_a_run_without_test_16_of_val_and_where_the_picture_goes(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answered(capsys, pictures_run, "--png", "mine.png")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    assert len({answer["image"] for answer in answers}) == 16
    assert {Path(answer["image"]).parents[1] for answer in answers} == {image_folder / "valid"}


def test_of_files_nobody_knows_what_is_right_and_64_are_drawn(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = command(capsys, "predict", run, files / "0", files / "1", "--png", "grid.png", "--top", 1)
    assert done.err.splitlines()[0] == "grid.png: the first 64 as a picture"
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    for colour in (GREEN, RED):
        assert not (picture == colour).all(2).any()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


# Pipes


def test_a_reader_that_leaves_is_no_mistake_of_ours(run: Path, tmp_path: Path) -> None:
    """Both where it leaves amid the answers, and before the few that fit into a buffer are written."""
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
        said = process.stderr.read()
        process.wait(60)
        assert "Traceback" not in said
        assert "BrokenPipe" not in said
        assert process.returncode in (0, 1)

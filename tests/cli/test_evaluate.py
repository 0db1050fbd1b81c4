"""`vit-dist evaluate`: the figures of the run itself, and of folders, files of weights and timm's own models."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.inference.test_load import write_timm_folder
from tests.processes import run_world
from tests.sharing import made_once
from vit_dist import Config, train
from vit_dist.cli import main
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.inference.evaluation import precision_of
from vit_dist.inference.load import load_model, load_run_model
from vit_dist.inference.splits import Split, open_split
from vit_dist.models.forward import eval_mode
from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.predictions import read_predictions

DIGITS: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 2,
    "batch.global_size": 48,
    "batch.micro_size": 48,
    "optimizer.lr": 1e-3,
    "schedule.warmup": "5 updates",
    "train.duration": "60 updates",
    "train.ema": 0.9,
    "evaluate.every": "30 updates",
    "checkpoint.every": "30 updates",
}
PICTURES: dict[str, Any] = {
    "data.image_size": 16,
    "data.workers": 0,
    "model.width": 24,
    "model.depth": 2,
    "model.heads": 2,
    "model.patch_size": 8,
    "batch.global_size": 14,
    "batch.micro_size": 14,
    "schedule.warmup": "2 updates",
    "train.duration": "15 updates",
    "evaluate.every": "5 updates",
}
QUIET: dict[str, Any] = {"run.device": "cpu", "run.threads": 1, "log.report": False, "log.trackers": "none"}
# What the weights of the digits' run need beside them, where they come alone.
ALONE = ["--model.name", "vit_tiny", "--model.patch_size", "4", "--model.width", "32", "--model.depth", "2"]
ALONE += ["--model.heads", "4", "--model.mlp_ratio", "2", "--model.pool", "mean", "--data.image_size", "8"]
ALONE += ["--data.mean", "[0.3053]", "--data.std", "[0.3760]", "--run.threads", "1", "--run.device", "cpu"]
SMALL = ["--model.name", "timm/vit_tiny_patch16_224", "--data.image_size", "32", "--run.threads", "1"]
SMALL += ["--run.device", "cpu"]


class Done(NamedTuple):
    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    """What a command came to, and what it said."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return Done(code, said.out, said.err)


def a_digits_run(factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits, made once for all modules: EMA weights, checkpoints at 30 and 60."""
    return made_once(
        factory, "digits", lambda folder: train(Config.load("digits", {**DIGITS, **QUIET, "run.dir": str(folder)}))
    )


def a_pictures_run(factory: pytest.TempPathFactory, images: Path) -> Path:
    """The folder of a run on files: train and val, and the best weights are not the last."""

    def make(folder: Path) -> None:
        train(Config.load("folder", {**PICTURES, **QUIET, "data.root": str(images), "run.dir": str(folder)}))
        assert read_json(folder / "summary.json")["best"]["update"] < 15

    return made_once(factory, "run on pictures", make)


def digits_as_files(factory: pytest.TempPathFactory) -> Path:
    """The test images of the digits as grey PNGs, in folders of their classes, named by their index."""

    def make(root: Path) -> None:
        test = open_data(Config.load("digits", {}).data).splits["test"]
        assert isinstance(test.source, MemorySource)
        for index in test.indices.tolist():
            path = root / str(test.source.labels[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(test.source.pixels[index, 0]).save(path)

    return made_once(factory, "digits as files", make)


def cut(path: Path, mode: str, side: int, crop: float) -> np.ndarray[Any, Any]:
    """A file as it is evaluated, by Pillow alone: the short side to side / crop, bicubic; the centre of it."""
    image = Image.open(path).convert(mode)
    short = round(side / crop)
    width, height = image.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def shares(
    model: torch.nn.Module, pixels: np.ndarray[Any, Any], mean: Any, std: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, probabilities) of pixels [n, c, side, side], normalised by hand."""
    images = torch.from_numpy(pixels.astype(np.float64) / 255)
    images = (images - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    with eval_mode(model):
        logits = model(images.float())
        return logits, logits.softmax(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return a_pictures_run(tmp_path_factory, image_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_as_files(tmp_path_factory)


def evaluated(capsys: pytest.CaptureFixture[str], folder: Path, *words: object) -> dict[str, Any]:
    """The JSON of a command that goes well."""
    done = command(capsys, "evaluate", *words, "--json", folder / "found.json")
    assert (done.code, done.err) == (0, "")
    return read_json(folder / "found.json")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The lines of a command that is refused."""
    done = command(capsys, "evaluate", *words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    return done.err


def line_of(run: Path, **wanted: object) -> Line:
    """The one line of a run's metrics that says so."""
    lines = [
        line
        for line in read_metrics(run / "metrics.jsonl")
        if all(line.get(name) == value for name, value in {"kind": "eval", **wanted}.items())
    ]
    assert len(lines) == 1, wanted
    return lines[0]


def assert_same(found: dict[str, Any], line: Line) -> None:
    assert found["loss"] == pytest.approx(line["loss"], abs=1e-6)
    assert (found["top1"], found["top5"], found["seen"]) == (line["top1"], line["top5"], line["seen"])


# A run


def test_the_test_figures_are_the_runs_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run)
    summary = read_json(run / "summary.json")
    assert_same(found, {**summary["test"], "seen": 359})
    about = {name: found[name] for name in ("model", "weights", "update", "data", "device", "world_size", "precision")}
    assert about == {
        "model": str(run), "weights": "ema", "update": summary["best"]["update"], "data": "test", "device": "cpu",
        "world_size": 1, "precision": "fp32",
    }  # fmt: skip
    assert found["images_per_second"] == pytest.approx(359 / found["seconds"])


def test_the_figures_of_classes_add_up(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run)
    assert [one["class"] for one in found["classes"]] == [str(number) for number in range(10)]
    assert sum(one["seen"] for one in found["classes"]) == 359
    right = sum(one["seen"] * one["top1"] / 100 for one in found["classes"])
    assert 100 * right / 359 == pytest.approx(found["top1"])
    kept = read_predictions(run / "predictions.safetensors")
    assert kept is not None
    seen, hits = kept.predictions.per_class(10)
    assert [one["seen"] for one in found["classes"]] == seen.tolist()
    assert [one["top1"] for one in found["classes"]] == pytest.approx((100 * hits / seen).tolist())


def test_what_it_says_with_the_worst_class_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    done = command(capsys, "evaluate", run, "--json", path)
    found, lines = read_json(path), done.out.splitlines()
    assert lines[:3] == [
        f"  model   {run}, EMA weights of update 60",
        "  data    test: 359 images",
        f"  result  top1 {found['top1']:.2f} %, top5 {found['top5']:.2f} %, loss {found['loss']:.4f}",
    ]
    assert lines[3].endswith(" images/s, reading included; 1 process on cpu, fp32")
    assert lines[4:6] == ["", "  class, worst first  images     top1"]
    worst = sorted(found["classes"], key=lambda one: one["top1"])
    assert [line.split() for line in lines[6:]] == [
        [one["class"], str(one["seen"]), f"{one['top1']:.2f}", "%"] for one in worst
    ]
    assert worst[0]["top1"] < worst[-1]["top1"]


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_val_by_its_names(split: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run, "--split", split)
    assert found["data"] == "val"
    assert_same(found, line_of(run, split="val", update=60, weights="ema"))


@pytest.mark.parametrize("size", [7, 512])
def test_train_is_counted_exactly(size: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run, "--split", "train", "--evaluate.batch_size", size)
    data = open_data(Config.load("digits", {}).data)
    train_split = data.splits["train"]
    assert isinstance(train_split.source, MemorySource)
    labels = train_split.source.labels[train_split.indices]
    logits, _ = shares(
        load_run_model(run, "model").model, train_split.source.pixels[train_split.indices], data.mean, data.std
    )
    assert found["seen"] == len(train_split) == 1797 - 359 - 144
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item(), abs=1e-5)
    assert found["top1"] == pytest.approx(100 * np.mean(logits.argmax(1).numpy() == labels))


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_weights(weights: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run, "--weights", weights)
    assert found["weights"] == weights
    assert_same(found, line_of(run, split="test", weights=weights))
    said = command(capsys, "evaluate", run, "--weights", weights).out
    assert ("EMA weights" in said) is (weights == "ema")


@pytest.mark.parametrize(("inside", "weights"), [("", "ema"), ("model.safetensors", "raw"), ("ema.safetensors", "ema")])
@pytest.mark.parametrize("update", [30, 60])
def test_a_checkpoint_and_its_files(
    inside: str, weights: str, update: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / f"update_{update:08}" / inside
    found = evaluated(capsys, tmp_path, path, "--split", "val")
    assert (found["weights"], found["update"]) == (weights, update)
    assert_same(found, line_of(run, split="val", update=update, weights=weights))


def test_the_best_weights_of_a_run_on_files(
    pictures_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = read_json(pictures_run / "summary.json")["best"]["update"]
    found = evaluated(capsys, tmp_path, pictures_run)
    assert (found["data"], found["update"], found["top5"]) == ("val", best, None)
    assert_same(found, line_of(pictures_run, split="val", update=best))
    last = evaluated(capsys, tmp_path, pictures_run / "checkpoints" / "last", "--data.workers", 2)
    assert_same(last, line_of(pictures_run, split="val", update=15))
    assert last["loss"] != found["loss"]
    assert "top5" not in command(capsys, "evaluate", pictures_run).out


def test_bf16_on_the_cpu(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, tmp_path, run, "--train.precision", "bf16")
    exact = read_json(run / "summary.json")["test"]
    assert found["precision"] == "bf16"
    assert found["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert found["loss"] != pytest.approx(exact["loss"], abs=1e-6)
    assert evaluated(capsys, tmp_path, run)["precision"] == "fp32"


def in_a_world(run: str, files: str) -> dict[str, Any]:
    """What evaluate and predict come to in each process."""
    results: dict[str, Any] = {"codes": [], "out": [], "err": []}
    for words in (
        ["evaluate", run, "--json", "split.json", "--evaluate.batch_size", "50"],
        ["evaluate", run, "--folder", files, "--json", "folder.json", "--data.workers", "0"],
        ["evaluate", run, "--split", "tset"],
        ["evaluate", run, "--json", "nowhere/found.json"],
        ["predict", run],
        ["evaluate", run, "--split", "test", "--folder", files],
    ):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            results["codes"].append(main(words))
        results["out"].append(out.getvalue())
        results["err"].append(err.getvalue())
    return results


def test_two_processes_give_the_numbers_of_one(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = run_world(2, in_a_world, tmp_path / "world", str(run), str(files))
    assert first["codes"] == second["codes"] == [0, 0, 2, 2, 2, 2]
    assert second["out"] == second["err"] == [""] * 6  # rank 0 alone speaks
    assert "; 2 processes on cpu, fp32" in first["out"][0]
    assert first["err"] == [
        "",
        "",
        "vit-dist: --split: there is no split tset (did you mean test?)\n",
        "vit-dist: --json: nowhere/found.json cannot be written: there is no folder nowhere\n",
        "vit-dist: predict: runs in one process; vit-dist evaluate uses several\n",
        "vit-dist: --split: is of the model's data and --folder is other data: give one of them\n",
    ]
    alone = evaluated(capsys, tmp_path, run)
    for name in ("split", "folder"):
        found = read_json(tmp_path / f"{name}.json")
        assert found["world_size"] == 2
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert [found[one] for one in ("top1", "top5", "seen", "classes")] == [
            alone[one] for one in ("top1", "top5", "seen", "classes")
        ]


# A folder


def test_a_grey_model_on_png_files_of_its_own_test_images(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, tmp_path, run, "--folder", files)
    assert found["data"] == str(files)
    assert_same(found, line_of(run, split="test", weights="ema"))


def test_a_folder_of_some_of_the_classes(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = evaluated(capsys, tmp_path, run, "--folder", files)["classes"]
    for name in ("3", "7"):
        shutil.copytree(files / name, tmp_path / "some" / name / "deeper")
    (tmp_path / "some" / "7" / "notes.txt").write_text("no image")
    found = evaluated(capsys, tmp_path, run, "--folder", tmp_path / "some")
    assert found["seen"] == every[3]["seen"] + every[7]["seen"]
    right = sum(every[number]["seen"] * every[number]["top1"] for number in (3, 7))
    assert found["top1"] == pytest.approx(right / found["seen"])
    for number, one in enumerate(found["classes"]):
        assert one == (every[number] if number in (3, 7) else {"class": str(number), "seen": 0, "top1": None})
    said = command(capsys, "evaluate", run, "--folder", tmp_path / "some").out.splitlines()
    assert sorted(line.split()[0] for line in said[6:]) == ["3", "7"]


def test_a_folder_of_a_run_on_files_is_its_split(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = read_json(pictures_run / "summary.json")["best"]["update"]
    found = evaluated(capsys, tmp_path, pictures_run, "--folder", image_folder / "valid")
    assert_same(found, line_of(pictures_run, split="val", update=best))


def test_folders_and_splits_that_are_refused(
    run: Path, pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd" / "3").mkdir(parents=True)
    (tmp_path / "odd" / "thirteen").mkdir()
    assert refused(capsys, run, "--folder", tmp_path / "odd") == (
        f"vit-dist: --folder: {tmp_path / 'odd'} has thirteen, which is no class of the model (0, 1, 2, 3, 4 …)\n"
    )
    (tmp_path / "odd" / "twelve").mkdir()
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
    found = refused(capsys, run, "--folder", tmp_path / "empty")
    assert found.startswith(f"vit-dist: --folder: no images in {tmp_path / 'empty'} (looked for .avif, .bmp, ")
    assert found.count("\n") == 1
    assert refused(capsys, pictures_run, "--split", "test") == (
        "vit-dist: --split: there is no split test; known: train, val\n"
    )


def test_an_image_that_cannot_be_read_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_text("no image")
    found = refused(capsys, run, "--folder", tmp_path)
    assert found.startswith(f"vit-dist: {tmp_path / '3' / 'a.png'}: cannot be decoded (")
    assert found.count("\n") == 1


def test_json_that_cannot_be_written_is_refused_before_the_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*given: object) -> None:
        pytest.fail("it began to work")

    monkeypatch.setattr("vit_dist.cli.evaluate.Runtime", works)
    path = tmp_path / "gone" / "found.json"
    assert refused(capsys, run, "--json", path) == (
        f"vit-dist: --json: {path} cannot be written: there is no folder {path.parent}\n"
    )
    assert refused(capsys, run, "--json", tmp_path) == f"vit-dist: --json: {tmp_path} is a folder: name a file\n"


# Classes without names, and with the same one


def numbered(folder: Path, classes: int, **more: Any) -> Path:
    """A timm model's folder whose classes are mere numbers, or as `more` says; its answers differ between images."""
    torch.manual_seed(0)
    model = write_timm_folder(folder, classes, **more)
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight, std=2)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_classes_that_are_mere_numbers_are_as_many_sorted_folders(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = numbered(tmp_path / "named", 3, label_names=["ant", "bee", "cat"])
    model = numbered(tmp_path / "numbers", 3)
    for words in (["--folder", image_folder / "valid"], ["--data.root", image_folder, "--split", "val"]):
        expected, found = (evaluated(capsys, tmp_path, one, *words, "--run.device", "cpu") for one in (named, model))
        assert found["classes"] == expected["classes"]
        assert [one["class"] for one in found["classes"]] == ["ant", "bee", "cat"]
        assert (found["seen"], found["top1"], found["loss"]) == (21, expected["top1"], expected["loss"])
    shutil.copytree(image_folder / "valid" / "bee", tmp_path / "some" / "1")
    some = evaluated(capsys, tmp_path, model, "--folder", tmp_path / "some")
    assert some["classes"] == [
        {"class": "0", "seen": 0, "top1": None},
        {**expected["classes"][1], "class": "1"},
        {"class": "2", "seen": 0, "top1": None},
    ]


def test_a_split_has_a_name_samples_and_the_names_of_its_classes(image_folder: Path, tmp_path: Path) -> None:
    names = {"label_names": ["ant", "bee", "cat"], "label_descriptions": {"ant": "formica", "cat": "felis"}}
    described = load_model(str(numbered(tmp_path / "named", 3, **names)), overrides={"data.root": str(image_folder)})
    plain = load_model(str(numbered(tmp_path / "numbers", 3)), overrides={"data.root": str(image_folder)})
    valid = image_folder / "valid"
    for trained, classes in ((described, ["formica", "bee", "felis"]), (plain, ["ant", "bee", "cat"])):
        for found, called in (
            (open_split(trained, "valid", None), "val"),
            (open_split(trained, "", valid), str(valid)),
        ):
            assert isinstance(found, Split)
            assert (found.name, found.classes, len(found.subset)) == (called, classes, 21)
            assert isinstance(found.subset.source, FileSource)
            assert found.subset.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
        assert open_split(trained, "", None).name == "val"


@pytest.mark.parametrize("words", ["--folder", "--data.root"])
def test_folders_that_are_the_numbers_themselves_are_those_classes(words: str, tmp_path: Path) -> None:
    for number in range(11):
        path = tmp_path / "data" / "train" / str(number) / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    root = tmp_path / "data"
    trained = load_model(str(numbered(tmp_path / "numbers", 11)), overrides={"data.root": str(root)})
    found = open_split(trained, "", root / "train") if words == "--folder" else open_split(trained, "train", None)
    assert found.classes == [str(number) for number in range(11)]
    source = found.subset.source
    assert isinstance(source, FileSource)
    paths = [source.paths[index] for index in found.subset.indices]
    assert [int(path.parent.name) for path in paths] == found.subset.labels.tolist()


def test_splits_are_no_classes_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        path = tmp_path / "data" / name / "a.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(path)
    assert refused(capsys, numbered(tmp_path / "numbers", 2), "--folder", tmp_path / "data") == (
        f"vit-dist: --folder: {tmp_path / 'data'} has splits in it: give {tmp_path / 'data' / 'val'}\n"
    )


def test_data_of_other_classes_or_channels(
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
    assert refused(capsys, numbered(tmp_path / "numbers", 4), "--data.root", image_folder) == (
        "vit-dist: data: has 3 classes (ant, bee, cat) in 3 channels, the model knows 4 classes (0, 1, 2 …) "
        f"in 3 channels: {tail}"
    )
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    assert refused(capsys, path, *ALONE, "--data.root", files) == (
        "vit-dist: data: has 10 classes (0, 1, 2 …) in 3 channels, the model knows 10 classes (0, 1, 2 …) "
        f"in 1 channel: {tail}"
    )
    # The numbers of a run are the names of its classes.
    assert refused(capsys, run, "--folder", tmp_path / "letters") == (
        f"vit-dist: --folder: {tmp_path / 'letters'} has a and 9 more, which are no classes of the model "
        "(0, 1, 2, 3, 4 …)\n"
    )


# Precision


@pytest.mark.parametrize(
    ("asked", "of_the_training", "expected"),
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
def test_the_precision_on_a_cpu(asked: str, of_the_training: str, expected: str, run: Path) -> None:
    trained = load_model(str(run), overrides={"train.precision": asked, "run.device": "cpu"})
    assert precision_of(dataclasses.replace(trained, precision=of_the_training)) == expected


@pytest.mark.parametrize("of_the_training", ["fp32", "bf16"])
def test_a_precision_that_a_cpu_has_not(of_the_training: str, run: Path) -> None:
    trained = load_model(str(run), overrides={"train.precision": "fp16", "run.device": "cpu"})
    with pytest.raises(UserError) as caught:
        precision_of(dataclasses.replace(trained, precision=of_the_training))
    assert str(caught.value) == "train.precision: fp16 needs a CUDA GPU: set bf16 or fp32"


# Weights alone


def test_weights_of_our_own_model_alone(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    found = evaluated(capsys, tmp_path, path, *ALONE, "--data.crop", 1, "--folder", files)
    assert (found["weights"], found["update"], found["data"]) == ("raw", None, str(files))
    assert_same(found, line_of(run, split="test", weights="raw"))
    said = command(capsys, "evaluate", path, *ALONE, "--data.crop", 1, "--folder", files).out
    assert said.startswith(f"  model   {path}\n")


def test_weights_alone_on_a_named_data_set(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", path)
    found = evaluated(capsys, tmp_path, path, *ALONE, "--data.name", "digits")
    assert found["data"] == "test"
    assert_same(found, line_of(run, split="test", weights="raw"))


def test_a_timm_model_with_a_file_of_weights(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    torch.nn.init.normal_(theirs.head.weight, std=0.3)
    path = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    images = [(label, path) for label, name in enumerate(("ant", "bee", "cat"))
              for path in sorted((image_folder / "valid" / name).iterdir())]  # fmt: skip
    for label, image in images:
        to = tmp_path / "classes" / str(label) / image.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, to)
    # As timm says of this model: 0.9 of the side, mean and std 0.5.
    pixels = np.stack([cut(image, "RGB", 32, 0.9) for _, image in images])
    logits, _ = shares(theirs, pixels, [0.5] * 3, [0.5] * 3)
    labels = torch.tensor([label for label, _ in images])
    found = evaluated(capsys, tmp_path, path, *SMALL, "--folder", tmp_path / "classes", "--data.workers", 0)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
    assert (found["seen"], found["top5"], found["weights"], found["update"]) == (21, None, "raw", None)
    given = ["--data.mean", "[0.4, 0.5, 0.6]", "--data.std", "[0.2, 0.3, 0.4]", "--data.crop", "0.8"]
    pixels = np.stack([cut(image, "RGB", 32, 0.8) for _, image in images])
    logits, _ = shares(theirs, pixels, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    found = evaluated(capsys, tmp_path, path, *SMALL, *given, "--folder", tmp_path / "classes", "--data.workers", 0)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_of_many_classes_the_worst_30_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=40, **args).state_dict(), path)
    for number in range(35):
        (tmp_path / "classes" / str(number)).mkdir(parents=True)
        Image.new("RGB", (40, 32), (7 * number, 90, 30)).save(tmp_path / "classes" / str(number) / "a.png")
    words = [path, *SMALL, "--folder", tmp_path / "classes", "--data.workers", 0, "--model.args", json.dumps(args)]
    found = evaluated(capsys, tmp_path, *words)
    assert (found["seen"], len(found["classes"])) == (35, 40)
    assert found["top5"] is not None
    lines = command(capsys, "evaluate", *words).out.splitlines()
    assert lines[-1] == "  … the other 5 of 35 classes are no worse: --json has all"
    assert len(lines[6:-1]) == 30


# Data that is gone, or not what it was


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A run on copied files that have no split of their own, in the folder `run` beside those in `data`."""
    home = tmp_path_factory.mktemp("held_out")
    shutil.copytree(image_folder / "train", home / "data")
    settings = {**PICTURES, **QUIET, "train.duration": "2 updates", "schedule.warmup": "1 updates",
                "evaluate.every": "2 updates", "data.val_fraction": 0.2}  # fmt: skip
    train(Config.load("folder", {**settings, "data.root": str(home / "data"), "run.dir": str(home / "run")}))
    return home


def test_data_that_is_gone_is_said_with_the_flag_that_names_it(
    held_out_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    shutil.copytree(held_out_run / "data", home)
    run, root = held_out_run / "run", held_out_run / "data"
    root.rename(held_out_run / "elsewhere")
    try:
        line = f"vit-dist: data.root: no folder {root} here: set --data.root to where the data is now\n"
        for words in ([], ["--split", "train"]):
            assert refused(capsys, run, *words) == line
            done = command(capsys, "predict", run, *words)
            assert (done.code, done.out, done.err) == (2, "", line)
        done = command(capsys, "evaluate", run, "--data.root", home)
        assert (done.code, done.err) == (0, "")
        assert "note:" not in done.out
        # Folders and files need none of it.
        assert command(capsys, "evaluate", run, "--folder", home).code == 0
        assert command(capsys, "predict", run, home / "ant" / "00.png").code == 0
    finally:
        (held_out_run / "elsewhere").rename(root)


def test_another_number_of_training_images_is_noted(
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
        done = command(capsys, "evaluate", run, "--data.root", more, *words)
        assert (done.code, done.err) == (0, "")
        assert f"  {note}" in done.out
        assert "note:" not in command(capsys, "evaluate", run, *words).out
        done = command(capsys, "predict", run, "--data.root", more, "--png", tmp_path / "a.png", *words)
        assert done.code == 0
        assert done.err.startswith(note)
        assert "note:" not in done.out
        assert "note:" not in command(capsys, "predict", run, "--png", tmp_path / "a.png", *words).err
    assert open_split(load_model(str(run)), "val", None).notes == ()
    # Other data has nothing to do with it.
    assert "note:" not in command(capsys, "evaluate", run, "--folder", more).out


def test_a_model_that_does_not_say_its_data(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = numbered(tmp_path / "numbers", 3)
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


def test_a_run_keeps_its_root_beside_a_folder(
    pictures_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, tmp_path, pictures_run, "--folder", image_folder / "valid")
    again = evaluated(capsys, tmp_path, pictures_run, "--folder", image_folder / "valid", "--data.root", image_folder)
    assert (found["loss"], found["seen"]) == (again["loss"], again["seen"])

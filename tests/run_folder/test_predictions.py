"""Files for the report: inputs.safetensors from a run's start, predictions.safetensors from its end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import custom_losses
from tests.processes import run_world
from tests.training.test_run import digits
from vit_dist import Config, Run, train
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.stream import Stream
from vit_dist.data.stream import pictures as pictures_at
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.figures import figures_of
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    InputExamples,
    SavedPredictions,
    read_inputs,
    read_predictions,
    write_predictions,
)
from vit_dist.run_folder.status import status
from vit_dist.run_folder.summary import is_sound
from vit_dist.runtime.runtime import Runtime

# A learning rate so high that the best weights are not the last, and that raw and EMA weights predict differently.
FAST = {
    "optimizer__lr": 5e-2,
    "schedule__name": "constant",
    "log__every": "10 updates",
    "log__trackers": "none",
    "evaluate__every": "5 updates",
}


def folder_of_pictures(root: Path, folder: Path, **more: Any) -> Config:
    changes = {
        "data.root": str(root),
        "data.image_size": 16,
        "data.workers": 0,
        "model.width": 24,
        "model.depth": 1,
        "model.heads": 2,
        "model.patch_size": 8,
        "batch.global_size": 14,
        "batch.micro_size": 8,
        "optimizer.lr": 2e-2,
        "schedule.name": "constant",
        "schedule.warmup": "0%",
        "train.duration": "30 updates",
        "evaluate.every": "3 updates",
        "run.dir": str(folder),
        "run.device": "cpu",
        "run.threads": 1,
        "log.report": False,
        "log.trackers": "none",
    }
    return Config.load("folder", changes | {name.replace("__", "."): value for name, value in more.items()})


def predictions_of(folder: Path) -> SavedPredictions:
    saved = read_predictions(folder / PREDICTIONS)
    assert saved is not None
    return saved


def inputs_of(folder: Path) -> InputExamples:
    inputs = read_inputs(folder / INPUTS)
    assert inputs is not None
    return inputs


def evaluations(run: Run, split: str, weights: str) -> dict[int, Line]:
    """Return the evaluations of a split by one kind of weights, by update."""
    lines = [line for line in run.history if line["kind"] == "eval"]
    return {line["update"]: line for line in lines if (line["split"], line["weights"]) == (split, weights)}


def assert_predicted_by_model(run: Run, saved: SavedPredictions, split: str) -> None:
    """Assert that a file holds the predictions of the run's model for a split, and pictures of its worst mistakes."""
    config = Config.load(run.folder / "config.yaml")
    data = open_data(config.data)
    subset, predictions = data.splits[split], saved.predictions
    pixels = pictures_at(subset, np.arange(len(subset)), run.preprocessing)
    probabilities = run.predict(pixels).probabilities
    best = np.argsort(-probabilities, 1, kind="stable")[:, :5]
    assert predictions.index.tolist() == subset.indices.tolist()
    assert predictions.label.tolist() == subset.source.labels[subset.indices].tolist()
    assert predictions.top.tolist() == best.tolist()
    np.testing.assert_allclose(predictions.probability, np.take_along_axis(probabilities, best, 1), atol=1e-6)
    wrong = np.flatnonzero(predictions.top[:, 0] != predictions.label)
    shown = sorted(wrong, key=lambda row: -predictions.probability[row, 0])[:24]
    assert saved.picture_rows.tolist() == shown
    np.testing.assert_array_equal(saved.pictures, pixels[shown])
    assert (saved.metadata["split"], saved.metadata["classes"]) == (split, list(data.classes))


def test_inputs_are_written_once_and_predictions_at_each_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is stopped, resumed to its end at update 15, and then made longer."""
    folder = tmp_path / "run"
    fields = {**FAST, "optimizer__lr": 1e-2, "loss__name": "tests.custom_losses:signalling", "augment__shift": 1}
    custom_losses.forwards = 0
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", "21")
    assert train(digits(folder, train__duration="15 updates", **fields)).stopped
    monkeypatch.setenv("SIGNAL_AT", "0")
    assert not (folder / PREDICTIONS).exists()
    inputs, before = inputs_of(folder), (folder / INPUTS).stat()

    config = digits(folder, train__duration="15 updates", **fields)
    data, runtime = open_data(config.data), Runtime(config.run, "fp32")
    split = data.splits["train"]
    stream = Stream(
        split,
        Plan.from_config(config, len(split), 1),
        Preprocessing(8, data.mean, data.std),
        config.augment,
        runtime,
        workers=0,
    )
    [first, *_] = stream.window(0)
    runtime.end()
    seen = (first.images * torch.tensor(data.std)[0] + torch.tensor(data.mean)[0]) * 255
    assert inputs.pixels.shape == (16, 1, 8, 8)
    assert np.abs(inputs.pixels - seen.numpy()).max() <= 0.5 + 1e-3
    assert inputs.classes[:, 0].tolist() == first.targets.tolist()
    assert inputs.metadata == {"position": 0, "classes": [str(number) for number in range(10)]}

    run = train(config)
    assert not run.stopped
    saved = predictions_of(folder)
    assert run.best is not None
    assert saved.metadata["update"] == run.best.update <= 15
    assert saved.predictions.top1() == run.summary["test"]["top1"]
    assert run.summary["figures"] == {"split": "test", **figures_of(saved.predictions, 10).brief()}
    assert is_sound(run.summary)
    assert not is_sound({**run.summary, "figures": {**run.summary["figures"], "top1_interval": [1.0]}})
    assert_predicted_by_model(run, saved, "test")

    longer = train(digits(folder, train__duration="30 updates", **fields))
    assert longer.best is not None
    assert longer.best.update > 15
    replaced = predictions_of(folder)
    assert replaced.metadata == {**saved.metadata, "update": longer.best.update}
    assert replaced.predictions.top1() == longer.summary["test"]["top1"] != saved.predictions.top1()
    assert_predicted_by_model(longer, replaced, "test")

    after = (folder / INPUTS).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".pre", ".inp"))]


@pytest.mark.parametrize(("metric", "updates", "weights"), [("top1", 15, "ema"), ("raw_loss", 25, "raw")])
def test_predictions_are_by_the_selected_weights(tmp_path: Path, metric: str, updates: int, weights: str) -> None:
    config = digits(
        tmp_path / "run", **FAST, train__duration=f"{updates} updates", train__ema=0.9, evaluate__metric=metric
    )
    run = train(config)
    saved = predictions_of(run.folder)
    assert run.best is not None
    best = run.best.update
    assert saved.metadata | {"classes": []} == {"split": "test", "weights": weights, "update": best, "classes": []}
    lines = {name: evaluations(run, "test", name)[updates] for name in ("raw", "ema")}
    assert saved.predictions.top1() == lines[weights]["top1"] == run.summary["test"]["top1"]
    assert lines["raw"]["top1"] != lines["ema"]["top1"]
    assert_predicted_by_model(run, saved, "test")
    # These are the weights that were best on val, of that update.
    val = open_data(config.data).splits["val"]
    assert isinstance(val.source, MemorySource)
    predicted = run.predict(val.source.pixels[val.indices]).numbers
    top1 = 100 * (predicted == val.source.labels[val.indices]).mean()
    assert top1 == pytest.approx(evaluations(run, "val", weights)[best]["top1"])
    if best != updates:  # depends on the version of torch
        assert top1 != pytest.approx(evaluations(run, "val", weights)[updates]["top1"])


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_without_a_test_split_predictions_are_of_val_by_the_best_weights(
    image_folder: Path, tmp_path: Path, ema: float
) -> None:
    run = train(folder_of_pictures(image_folder, tmp_path / "run", train__ema=ema))
    weights = "ema" if ema else "raw"
    saved = predictions_of(run.folder)
    assert run.best is not None
    assert saved.metadata == {
        "split": "val",
        "weights": weights,
        "update": run.best.update,
        "classes": ["ant", "bee", "cat"],
        "paths": saved.paths,
    }
    assert [Path(path).parent.name for path in saved.paths] == [truth for _, truth in saved.captions()]
    assert all(Path(path).is_file() for path in saved.paths)
    of_val = evaluations(run, "val", weights)
    assert len(of_val) == 10
    best = of_val[run.best.update]
    assert saved.predictions.top1() == best["top1"]
    assert run.best.update < 30
    assert best["loss"] != of_val[30]["loss"]
    assert saved.predictions.top.shape == (21, 3)
    np.testing.assert_allclose(saved.predictions.probability.sum(1), 1, rtol=1e-5)
    truth = saved.predictions.top == saved.predictions.label[:, None]
    assert -np.log(saved.predictions.probability[truth]).mean() == pytest.approx(best["loss"], rel=1e-5)
    assert_predicted_by_model(run, saved, "val")


def test_without_test_and_val_there_are_no_predictions(image_folder: Path, tmp_path: Path) -> None:
    config = folder_of_pictures(
        image_folder / "train", tmp_path / "run", data__val_fraction=0, train__duration="3 updates"
    )
    run = train(config)
    assert run.best is None
    assert not (run.folder / PREDICTIONS).exists()
    inputs = inputs_of(run.folder)
    assert inputs.pixels.shape == (8, 3, 16, 16)
    assert set(inputs.captions()) <= {"ant", "bee", "cat"}


def test_without_val_predictions_are_of_test_by_the_last_weights(tmp_path: Path) -> None:
    run = train(digits(tmp_path / "run", **FAST, train__duration="12 updates", data__val_fraction=0, train__ema=0.5))
    saved = predictions_of(run.folder)
    assert run.best is None
    assert (saved.metadata["split"], saved.metadata["weights"], saved.metadata["update"]) == ("test", "ema", 12)
    assert saved.predictions.top1() == evaluations(run, "test", "ema")[12]["top1"]
    assert_predicted_by_model(run, saved, "test")


def test_files_that_cannot_be_written_are_reported_and_do_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def blocked(path: Path, content: Any) -> None:
        hidden = path.with_name(f".writing_{path.name}")
        hidden.mkdir()
        try:
            write_predictions(path, content)
        finally:
            hidden.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr("vit_dist.training.artifacts.write_inputs", full)
        patch.setattr("vit_dist.training.artifacts.write_predictions", blocked)
        run = train(digits(folder, **FAST, train__duration="6 updates", log__level="warning"))
    assert not run.stopped
    assert capsys.readouterr().out.splitlines() == [
        f"{folder / INPUTS}: cannot be written: No space left on device: the run goes on and tries it again",
        f"{folder / PREDICTIONS}: cannot be written: Is a directory: the run goes on and tries it again",
    ]
    assert status(folder)["state"] == "finished"
    assert not (folder / INPUTS).exists()
    assert not (folder / PREDICTIONS).exists()
    assert run.summary["test"] is not None
    # Once they can be written, a longer run writes them; its inputs are those of the update it resumed from.
    longer = train(digits(folder, **FAST, train__duration="12 updates", log__level="warning"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  note: train.duration: 6 updates before, 12 updates now"
    assert [line for line in lines if "cannot be written" in line] == []
    assert inputs_of(folder).metadata["position"] == 6
    assert predictions_of(folder).predictions.top1() == longer.summary["test"]["top1"]


def test_other_errors_while_writing_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, content: Any) -> None:
        raise ValueError("broken")

    monkeypatch.setattr("vit_dist.training.artifacts.write_inputs", broken)
    with pytest.raises(ValueError, match=r"^broken$"):
        train(digits(tmp_path / "run", **FAST, train__duration="6 updates"))
    assert status(tmp_path / "run")["state"] == "failed"


def printed_by(folder: str) -> list[str]:
    """Train on the digits; return what this process wrote to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        train(digits(Path(folder), **{**FAST, "optimizer__lr": 5e-3}, train__duration="30 updates"))
    return [out.getvalue(), err.getvalue()]


def test_two_processes_write_the_same_files_as_one_and_rank_1_prints_nothing(tmp_path: Path) -> None:
    first, second = run_world(2, printed_by, tmp_path / "logs", str(tmp_path / "two"))
    assert second == ["", ""]
    lines = first[0].splitlines()
    assert lines[0] == "two: new run"
    assert len([line for line in lines if line.startswith("finished")]) == 1
    assert "2 × cpu" in first[0]
    printed_by(str(tmp_path / "one"))
    one, two = (inputs_of(tmp_path / name) for name in ("one", "two"))
    assert np.array_equal(one.pixels, two.pixels)
    assert (one.captions(), one.metadata) == (two.captions(), two.metadata)
    alone, both = (predictions_of(tmp_path / name) for name in ("one", "two"))
    assert alone.metadata == both.metadata
    for name in ("index", "label", "top"):
        assert np.array_equal(getattr(alone.predictions, name), getattr(both.predictions, name)), name
    np.testing.assert_allclose(both.predictions.probability, alone.predictions.probability, atol=1e-5)
    assert alone.picture_rows.tolist() == both.picture_rows.tolist()
    assert np.array_equal(alone.pictures, both.pictures)

"""`on_update` and `on_evaluation`: called with the lines of metrics, and unable to change the result."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs import DIGITS, QUIET
from vit_dist import Config, UserError, train
from vit_dist.files import read_json
from vit_dist.run_folder.metrics import read_metrics

FEW: dict[str, Any] = {
    **DIGITS,
    **QUIET,
    "model.dropout": 0.1,
    "train.duration": "9 updates",
    "log.every": "2 updates",
    "evaluate.every": "4 updates",
    "checkpoint.every": "50 %",
}


def config(folder: Path) -> Config:
    return Config.load("digits", {**FEW, "run.dir": str(folder)})


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_callbacks_get_each_line_and_change_nothing(tmp_path: Path) -> None:
    updates: list[Mapping[str, Any]] = []
    evaluations: list[Mapping[str, Any]] = []

    def on_update(line: Mapping[str, Any]) -> bool:
        updates.append(line)
        with pytest.raises(TypeError):
            line["loss"] = 0.0  # type: ignore[index]
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return False

    def on_evaluation(line: Mapping[str, Any]) -> None:
        evaluations.append(line)
        torch.rand(3)

    run = train(config(tmp_path / "with"), on_update=on_update, on_evaluation=on_evaluation)
    lines = read_metrics(run.folder / "metrics.jsonl")
    assert [dict(line) for line in updates] == [line for line in lines if line["kind"] == "train"]
    assert [dict(line) for line in evaluations] == [line for line in lines if line["kind"] == "eval"]
    assert [line["update"] for line in updates] == [2, 4, 6, 8, 9]
    assert [(line["split"], line["weights"], line["update"]) for line in evaluations] == [
        (split, kind, update)
        for split, update in (("val", 4), ("val", 8), ("val", 9), ("test", 9))
        for kind in ("raw", "ema")
    ]
    alone = train(config(tmp_path / "alone"))
    assert weights(run.folder) == weights(alone.folder)
    assert run.best == alone.best
    # A run that has finished calls nothing.
    count = len(updates) + len(evaluations)
    train(config(tmp_path / "with"), on_update=on_update, on_evaluation=on_evaluation)
    assert len(updates) + len(evaluations) == count


def test_what_a_callback_raises_ends_the_run_and_names_it(tmp_path: Path) -> None:
    def divide(line: Mapping[str, Any]) -> float:
        return 1 / (line["update"] - 4)

    with pytest.raises(UserError) as error:
        train(config(tmp_path / "run"), on_update=divide)
    assert str(error.value) == "on_update: divide raised ZeroDivisionError: division by zero"
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["update"]) == ("failed", 4)
    assert status["reason"] == str(error.value)
    # The same call without it goes on, and ends as if nothing had happened.
    run = train(config(tmp_path / "run"))
    assert weights(run.folder) == weights(train(config(tmp_path / "alone")).folder)


def test_a_run_inside_a_run_is_refused_and_the_outer_one_named(tmp_path: Path) -> None:
    def another(line: Mapping[str, Any]) -> None:
        train(config(tmp_path / "inner"))

    with pytest.raises(UserError) as error:
        train(config(tmp_path / "outer"), on_update=another)
    assert str(error.value) == (
        "on_update: another raised UserError: another run or evaluation of this process has not ended: do one after "
        "the other"
    )
    assert read_json(tmp_path / "outer" / "status.json")["state"] == "failed"
    assert train(config(tmp_path / "outer")).summary["updates"] == 9


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (3, "model: must be a torch.nn.Module, not int"),
        (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)),
            "model: gives outputs of shape [1, 5] for one image, and must give [1, 10], a value for each class",
        ),
        (
            torch.nn.Linear(9, 10),
            "model: cannot take images [1, 1, 8, 8]: RuntimeError: mat1 and mat2 shapes cannot be",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_training(model: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(config(tmp_path / "run"), model=model)
    assert str(error.value).startswith(problem)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_called_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(config(tmp_path / "run"), on_evaluation=3)  # type: ignore[arg-type]
    assert str(error.value) == "on_evaluation: must be a function of one line of metrics, not int"
    assert not (tmp_path / "run").exists()

"""Stopped and killed runs end bit-identical: averages, schedules, optimizers, patience."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from tests import custom_losses
from tests.processes import run_world
from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.checkpointing.state import TrainState
from vit_dist.cli import main
from vit_dist.data.sources.open import open_data
from vit_dist.files import read_json
from vit_dist.models.build import build_model
from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.status import status
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.claim import claim_folder
from vit_dist.training.components import open_splits
from vit_dist.training.result import Run

DIGITS = {
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "batch.global_size": 24,
    "batch.micro_size": 24,
    "loss.name": "tests.custom_losses:signalling",
    "loss.label_smoothing": 0.0,
    "optimizer.lr": 3e-3,
    "schedule.warmup": "4 updates",
    "train.duration": "40 updates",
    "evaluate.every": "10 updates",
    "log.every": "1 updates",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}
TEACHER = "<a run>"
# A steady rate, then one so high that it destroys what was learnt: the best weights are not the last.
WRECKED = {
    "train.ema": 0.98,
    "optimizer.name": "sgd",
    "optimizer.weight_decay": 1e-4,
    "schedule.name": "ConstantLR",
    "evaluate.every": "4 updates",
}
# Case → the update that the run is stopped after, and the fields of its config.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "ema": (
        23,
        {
            **WRECKED,
            "batch.micro_size": 16,
            "optimizer.lr": 0.5,
            "schedule.args": {"total_iters": "26 updates", "factor": 0.1},
        },
    ),
    "ema, raw_loss": (
        22,
        {
            **WRECKED,
            "optimizer.lr": 0.7,
            "schedule.args": {"total_iters": "12 updates", "factor": 0.07},
            "evaluate.metric": "raw_loss",
        },
    ),
    "plateau": (
        22,
        {
            "evaluate.every": "5 updates",
            "schedule.name": "ReduceLROnPlateau",
            "schedule.args": {"metric": "loss", "patience": 0, "threshold": 0.5, "factor": 0.7},
        },
    ),
    "plateau, patience 1": (
        22,
        {
            "evaluate.every": "5 updates",
            "schedule.name": "ReduceLROnPlateau",
            "schedule.args": {"metric": "loss", "patience": 1, "threshold": 0.5, "factor": 0.5},
        },
    ),
    "one cycle": (13, {"schedule.name": "OneCycleLR", "schedule.args": {"pct_start": 0.4}}),
    "one cycle, sgd": (
        27,
        {"schedule.name": "OneCycleLR", "optimizer.name": "sgd", "optimizer.lr": 0.1, "optimizer.weight_decay": 1e-4},
    ),
    "skipped updates": (
        18,
        {
            "batch.micro_size": 16,
            "loss.name": "tests.custom_losses:sometimes_nan",
            "train.ema": 0.98,
            "schedule.name": "OneCycleLR",
            "schedule.args": {"pct_start": 0.4},
        },
    ),
    "restarts": (
        21,
        {
            "schedule.name": "CosineAnnealingWarmRestarts",
            "schedule.args": {"T_0": "0.25 epochs", "eta_min": 1e-5},
        },
    ),
    "sequential": (
        25,
        {
            "schedule.name": "SequentialLR",
            "schedule.args": {
                "schedulers": [{"name": "LinearLR", "start_factor": 0.2}, {"name": "CosineAnnealingLR"}],
                "milestones": ["10 updates"],
            },
        },
    ),
    "layer decay": (33, {"optimizer.layer_decay": 0.7, "schedule.name": "wsd", "schedule.cooldown": "12 updates"}),
    "muon": (17, {"optimizer.name": "muon"}),
    "lamb": (19, {"optimizer.name": "timm/lamb"}),
    "adan": (19, {"optimizer.name": "timm/adan"}),
    "lion": (19, {"optimizer.name": "timm/lion", "optimizer.lr": 3e-4}),
    "overrides": (
        16,
        {"optimizer.overrides": {"^head": {"lr": 9e-3}, r"^blocks\.0\.": {"lr": 0.0, "weight_decay": 0.0}}},
    ),
    "distillation": (
        21,
        {
            "loss.teacher": TEACHER,
            "loss.distillation": "soft",
            "loss.temperature": 2.0,
            "loss.distillation_weight": 0.7,
        },
    ),
    "patience": (
        30,
        {
            "optimizer.lr": 2e-3,
            "schedule.warmup": "16 updates",
            "train.duration": "60 updates",
            "evaluate.every": "4 updates",
            "evaluate.patience": 2,
            "evaluate.min_delta": 0.055,
        },
    ),
    "patience, wrecked": (
        22,
        {
            **WRECKED,
            "optimizer.lr": 0.7,
            "schedule.args": {"total_iters": "12 updates", "factor": 0.07},
            "evaluate.metric": "raw_loss",
            "evaluate.patience": 2,
        },
    ),
    "everything": (
        22,
        {
            "batch.micro_size": 12,
            "train.ema": 0.98,
            "train.duration": "60 updates",
            "optimizer.lr": 8e-3,
            "optimizer.layer_decay": 0.7,
            "schedule.name": "ReduceLROnPlateau",
            "schedule.args": {"metric": "loss", "patience": 0, "threshold": 0.1, "factor": 0.5},
            "schedule.warmup": "6 updates",
            "evaluate.every": "4 updates",
            "evaluate.patience": 2,
            "evaluate.min_delta": 0.08,
        },
    ),
}


class RunsByCase:
    """Runs by case, each trained once without a stop and once with a stop in the middle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: dict[str, Run] = {}
        self.stops: dict[str, Line] = {}

    def config(self, name: str, folder: Path, **more: Any) -> Config:
        own = dict(CASES[name][1])
        if own.get("loss.teacher") == TEACHER:
            own["loss.teacher"] = str(self.teacher())
        changes = {key.replace("__", "."): value for key, value in more.items()}
        return Config.load("digits", {**DIGITS, **own, "run.dir": str(folder), **changes})

    def teacher(self) -> Path:
        """Return the folder of a run that has learnt a little."""
        folder = self.root / "teacher"
        if "teacher" not in self.runs:
            values = {**DIGITS, "optimizer.lr": 1e-2, "model.width": 32, "run.dir": str(folder)}
            self.runs["teacher"] = train(Config.load("digits", values))
        return folder

    def whole(self, name: str) -> Run:
        """Return the run that was not stopped."""
        if name not in self.runs:
            self.runs[name] = train(self.config(name, self.root / name / "whole"))
        return self.runs[name]

    def resumed(self, name: str) -> Run:
        """Return the run that was stopped by a real signal and resumed with the same config."""
        key = f"{name}, resumed"
        if key not in self.runs:
            config = self.config(name, self.root / name / "resumed")
            stopped = stop_after(CASES[name][0], config)
            assert stopped.stopped
            assert status(config.folder)["state"] == "stopped"
            self.stops[name] = state_of(config.folder)
            self.runs[key] = train(config)
        return self.runs[key]

    def stop(self, name: str) -> Line:
        """Return state.json of the checkpoint that the stop saved."""
        self.resumed(name)
        return self.stops[name]


@pytest.fixture(scope="module")
def runs_by_case(tmp_path_factory: pytest.TempPathFactory) -> RunsByCase:
    return RunsByCase(tmp_path_factory.mktemp("runs_by_case"))


def stop_after(update: int, config: Config) -> Run:
    """Train until a SIGTERM in the last forward pass of an update."""
    custom_losses.forwards = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGNAL", "SIGTERM")
        patch.setenv("SIGNAL_AT", str(forwards(config) * update))
        return train(config)


def forwards(config: Config) -> int:
    """Return the number of forward passes of an update in one process."""
    return math.ceil(config.batch.global_size / config.batch.micro_size)


def killed(function: Any, *arguments: Any) -> None:
    """Run a function in a process of its own, which must die of SIGKILL."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def train_until_forward(values: dict[str, Any], number: int) -> None:
    os.environ.update(SIGNAL="SIGKILL", SIGNAL_AT=str(number))
    train(Config.from_dict(values))


def train_until_the_end_is_saved(values: dict[str, Any], update: int) -> None:
    """Train, and die in the first forward pass of the evaluation of test."""
    config = Config.from_dict(values)
    end = config.folder / "checkpoints" / f"update_{update:08d}" / "manifest.json"

    def die(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if end.is_file():
            os.kill(os.getpid(), signal.SIGKILL)

    model = build_model(config.model, classes=10, channels=1, image_size=8, seed=config.run.seed)
    model.register_forward_pre_hook(die)
    train(config, model=model)


def history_of_training(values: dict[str, Any]) -> list[Line]:
    return train(Config.from_dict(values)).history


def train_and_stop(values: dict[str, Any], rank: str, forward: int) -> bool:
    """Train with a SIGTERM to one rank in one of its forward passes; return whether the run stopped."""
    if os.environ["RANK"] == rank:
        os.environ.update(SIGNAL="SIGTERM", SIGNAL_AT=str(forward))
    return train(Config.from_dict(values)).stopped


def last_of(folder: Path) -> Path:
    path = pointed_to(folder / "checkpoints", "last")
    assert path is not None
    return path


def state_of(folder: Path) -> Line:
    return read_json(last_of(folder) / "state.json")


def ending(folder: Path) -> dict[str, Any]:
    """Return everything in a run's last checkpoint except seconds and what depends on its folder."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last_of(folder).glob("*.safetensors")}
    state = state_of(folder)
    kept = {name: state[name] for name in ("schedule", "optimizer", "preprocessing", "classes")}
    return {**files, **kept, "train_state": {k: v for k, v in state["train_state"].items() if k != "train_seconds"}}


def lines(history: list[Line], kind: str) -> list[Line]:
    return [line for line in history if line["kind"] == kind]


def course(history: list[Line]) -> list[tuple[Any, ...]]:
    """Return what was done and measured, except times."""
    trained = [(x["update"], x["lr"], x["loss"], x["top1"], x["grad_norm"]) for x in lines(history, "train")]
    names = ("update", "split", "weights", "weights_update", "loss", "top1", "top5", "seen", "best")
    return [*trained, *(tuple(line[name] for name in names) for line in lines(history, "eval"))]


def starts(history: list[Line]) -> list[int]:
    return [line["update"] for line in lines(history, "start")]


def rates(history: list[Line]) -> NDArray[np.float64]:
    return np.array([line["lr"] for line in lines(history, "train")])


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of progress.md, each by column name."""
    title, *text = (folder / "progress.md").read_text().splitlines()
    assert title == f"# {folder.name}"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text if row.startswith("|")]
    assert cells[1] == ["---:"] * len(cells[0])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_bit_identical(name: str, runs_by_case: RunsByCase) -> None:
    whole, resumed = runs_by_case.whole(name), runs_by_case.resumed(name)
    assert starts(whole.history) == [0]
    assert starts(resumed.history) == [0, CASES[name][0]]
    assert course(resumed.history) == course(whole.history)
    averaged = {"ema.safetensors"} if "train.ema" in CASES[name][1] else set()
    files = {path.name for path in last_of(whole.folder).glob("*.safetensors")}
    assert files == {"model.safetensors", "optimizer.safetensors"} | averaged
    assert ending(resumed.folder) == ending(whole.folder)
    assert resumed.best == whole.best
    for field in ("updates", "planned_updates", "weights", "best", "final", "test"):
        assert resumed.summary[field] == whole.summary[field]
    for tensor, expected in zip(resumed.model.module.parameters(), whole.model.module.parameters(), strict=True):
        assert torch.equal(tensor, expected)
    shown, expected_rows = table(resumed.folder), table(whole.folder)
    for row in [*shown, *expected_rows]:
        del row["seconds"]
    assert shown == expected_rows


@pytest.mark.parametrize(("name", "before_the_end"), [("ema", 6), ("patience", 0), ("everything", 1)])
def test_a_killed_run_ends_bit_identical(
    name: str, before_the_end: int, runs_by_case: RunsByCase, tmp_path: Path
) -> None:
    whole = runs_by_case.whole(name)
    config = runs_by_case.config(name, tmp_path / "run", checkpoint__every="7 updates")
    last = whole.summary["updates"] - before_the_end
    killed(train_until_forward, config.to_dict(), forwards(config) * last)
    assert status(config.folder)["state"] == "running"
    resumed = train(config)
    state, [first, again] = state_of(config.folder), starts(resumed.history)
    assert first == 0
    assert last - 7 <= again < last
    assert state["train_state"]["position"] == whole.summary["updates"]
    assert course(resumed.history) == course(whole.history)
    assert ending(config.folder) == ending(whole.folder)
    assert resumed.summary["test"] == whole.summary["test"]


def test_a_run_killed_after_its_last_checkpoint_gets_the_same_test_result(
    runs_by_case: RunsByCase, tmp_path: Path
) -> None:
    whole = runs_by_case.whole("everything")
    config = runs_by_case.config("everything", tmp_path / "run")
    end = whole.summary["updates"]
    killed(train_until_the_end_is_saved, config.to_dict(), end)
    assert status(config.folder)["state"] == "running"
    assert not (config.folder / "summary.json").exists()
    resumed = train(config)
    assert starts(resumed.history) == [0, end]
    assert course(resumed.history) == course(whole.history)
    assert ending(config.folder) == ending(whole.folder)
    assert resumed.summary["test"] == whole.summary["test"]
    assert resumed.history[-1]["reason"] == "out of patience"
    assert status(config.folder)["state"] == "finished"


@pytest.mark.parametrize(
    ("name", "factor", "reduced_after"),
    [("plateau", 0.7, [10, 15, 20, 25, 30, 35]), ("plateau, patience 1", 0.5, [15, 25, 35])],
)
def test_a_plateau_reduces_the_rate_before_and_after_the_stop(
    name: str, factor: float, reduced_after: list[int], runs_by_case: RunsByCase
) -> None:
    # No evaluation halves the loss, so each one after the first counts as bad.
    actual = rates(runs_by_case.resumed(name).history)
    reductions = np.searchsorted(reduced_after, np.arange(40), side="right")
    warmup = np.minimum(1, np.arange(1, 41) / 4)
    np.testing.assert_allclose(actual, 3e-3 * warmup * factor**reductions, rtol=1e-12)
    assert actual[21] < actual[9]
    assert actual[-1] < actual[21]
    plateau = runs_by_case.stop(name)["schedule"]["plateau"]
    assert plateau["num_bad_epochs"] == (1 if name.endswith("1") else 0)
    assert plateau["best"] == lines(runs_by_case.resumed(name).history, "eval")[0]["loss"]


@pytest.mark.parametrize("name", ["one cycle", "one cycle, sgd"])
def test_momentum_cycles_with_the_rate(name: str, runs_by_case: RunsByCase, tmp_path: Path) -> None:
    run = runs_by_case.resumed(name)
    actual = rates(run.history)
    assert 0 < actual.argmax() < 39
    assert actual[-1] < 1e-4 * actual.max()
    arguments = {**CASES[name][1].get("schedule.args", {}), "cycle_momentum": False}
    without = train(runs_by_case.config(name, tmp_path / "run", schedule__args=arguments))
    assert rates(without.history).tolist() == actual.tolist()
    assert ending(without.folder)["model.safetensors"] != ending(run.folder)["model.safetensors"]


def test_skipped_updates_are_counted_across_a_stop(runs_by_case: RunsByCase) -> None:
    history = runs_by_case.resumed("skipped updates").history
    skipped = np.array([line["skipped_updates"] for line in lines(history, "train")])
    assert 0 < skipped[17] < skipped[-1] < 20
    train_state, schedule = (runs_by_case.stop("skipped updates")[name] for name in ("train_state", "schedule"))
    assert (train_state["position"], train_state["skipped_updates"]) == (18, skipped[17])
    assert train_state["applied_updates"] == schedule["updates"] == 18 - skipped[17]
    applied = np.arange(40) - np.concatenate([[0], skipped[:-1]])
    assert rates(history).tolist() == rates(runs_by_case.whole("one cycle").history)[applied].tolist()


def test_warm_restarts_fall_where_fractions_of_epochs_say(runs_by_case: RunsByCase) -> None:
    actual = rates(runs_by_case.resumed("restarts").history)
    period = 0.25 * 1294 / 24
    place = np.arange(36)
    expected = 1e-5 + (3e-3 - 1e-5) * (1 + np.cos(np.pi * (place / period % 1))) / 2
    np.testing.assert_allclose(actual[4:], expected, rtol=1e-6)
    restarts = 1 + np.flatnonzero(np.diff(actual[4:]) > 0)
    assert restarts.tolist() == [14, 27]
    assert restarts[0] + 4 < CASES["restarts"][0] < restarts[1] + 4


def test_the_second_of_two_schedules_goes_on_after_the_stop(runs_by_case: RunsByCase) -> None:
    actual = rates(runs_by_case.resumed("sequential").history)
    first, second = np.arange(10), np.arange(26)
    np.testing.assert_allclose(actual[4:14], 3e-3 * (0.2 + 0.8 * first / 10), rtol=1e-12)
    np.testing.assert_allclose(actual[14:], 3e-3 * np.cos(np.pi / 2 * second / 26) ** 2, rtol=1e-9)
    assert CASES["sequential"][0] > 14


def test_a_cooldown_goes_on_after_the_stop(runs_by_case: RunsByCase) -> None:
    actual = rates(runs_by_case.resumed("layer decay").history)
    warmup, cooldown = 3e-3 * np.arange(1, 5) / 4, 3e-3 * np.arange(12, 0, -1) / 12
    np.testing.assert_allclose(actual, [*warmup, *[3e-3] * 24, *cooldown], rtol=1e-12)
    assert CASES["layer decay"][0] > 28


@pytest.mark.parametrize("name", ["lamb", "adan"])
def test_counters_in_an_optimizers_groups_continue(name: str, runs_by_case: RunsByCase) -> None:
    assert {group["step"] for group in runs_by_case.stop(name)["optimizer"]["groups"]} == {19}
    assert {group["step"] for group in state_of(runs_by_case.resumed(name).folder)["optimizer"]["groups"]} == {40}


def test_overrides_hold_across_a_stop(runs_by_case: RunsByCase) -> None:
    run = runs_by_case.resumed("overrides")
    config = runs_by_case.config("overrides", run.folder)
    first = build_model(config.model, classes=10, channels=1, image_size=8, seed=0).state_dict()
    last = load_file(last_of(run.folder) / "model.safetensors")
    same = {name for name, tensor in last.items() if torch.equal(tensor, first[name])}
    assert same == {name for name in last if name.startswith("blocks.0.")}
    assert rates(run.history).max() == 3e-3


def replay(run: Run, config: Config, *, warmup: int, min_delta: float) -> int | None:
    """Return the update at which patience runs out, from the losses of val alone; None if it does not."""
    weights = "ema" if config.train.ema else "raw"
    actual = [(x["update"], x["loss"]) for x in lines(run.history, "eval") if x["split"] == "val"]
    scored = [x["weights"] for x in lines(run.history, "eval") if x["split"] == "val"]
    updates, losses = np.array([one for one, own in zip(actual, scored, strict=True) if own == weights]).T
    improved = [0]
    for i in range(1, len(losses)):
        if losses[i] < losses[improved[-1]] - min_delta:
            improved.append(i)
        counted = updates[improved[-1] + 1 : i + 1] > warmup
        if counted.sum() >= config.evaluate.patience:
            return int(updates[i])
    return None


@pytest.mark.parametrize(("name", "end_without_warmup"), [("patience", 12), ("everything", 32)])
def test_patience_ends_a_run_at_the_predicted_evaluation(
    name: str, end_without_warmup: int, runs_by_case: RunsByCase, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs_by_case.whole(name)
    config = runs_by_case.config(name, run.folder)
    end = int(config.schedule.warmup.split()[0])
    predicted = replay(run, config, warmup=end, min_delta=config.evaluate.min_delta)
    assert predicted is not None
    assert end < predicted < 60
    # Without the rule for warmup the first case ends in its warmup; without min_delta none ends early.
    assert replay(run, config, warmup=0, min_delta=config.evaluate.min_delta) == end_without_warmup
    assert replay(run, config, warmup=end, min_delta=0.0) is None
    trained = [line["update"] for line in lines(run.history, "train")]
    assert trained == list(range(1, predicted + 1))
    assert not run.stopped
    assert run.history[-1]["kind"] == "stop"
    assert run.history[-1]["reason"] == "out of patience"
    assert run.history[-1]["update"] == predicted
    assert status(run.folder)["state"] == "finished"
    assert status(run.folder)["update"] == predicted
    assert read_json(run.folder / "summary.json") == run.summary
    assert (run.summary["updates"], run.summary["planned_updates"]) == (predicted, 60)
    assert len([line for line in lines(run.history, "eval") if line["split"] == "test"]) == (
        2 if config.train.ema else 1
    )
    before = (run.folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["train", "--config", str(run.folder / "config.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "finished before" in printed
    assert f"out of patience {60 - predicted} updates early" in printed
    assert f"loss {run.summary['best']['value']:.4g} on val at update {run.summary['best']['update']}" in printed
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_patience_is_half_spent_at_the_stop(runs_by_case: RunsByCase) -> None:
    assert runs_by_case.stop("patience")["train_state"]["evaluations_without_improvement"] == 1
    assert runs_by_case.stop("patience")["train_state"]["patience_baseline"] == next(
        line["loss"] for line in lines(runs_by_case.whole("patience").history, "eval") if line["update"] == 24
    )
    assert runs_by_case.stop("everything")["train_state"]["evaluations_without_improvement"] == 1


def test_a_run_out_of_patience_saves_and_tests_its_best_weights(runs_by_case: RunsByCase) -> None:
    run, whole = runs_by_case.whole("patience, wrecked"), runs_by_case.whole("ema, raw_loss")
    assert [line["update"] for line in lines(run.history, "train")] == list(range(1, 25))
    assert state_of(run.folder)["train_state"]["position"] == 24
    assert run.best == whole.best
    assert run.best is not None
    assert run.best.update == 16
    assert run.summary["test"] == whole.summary["test"]


def by_hand(config: Config, file: Path, images: NDArray[np.uint8]) -> Tensor:
    """Return probabilities for images by the weights in a file."""
    model = build_model(config.model, classes=10, channels=1, image_size=8, seed=1)
    model.load_state_dict(load_file(file))
    data = open_data(config.data)
    pixels = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        logits: Tensor = model.eval()((pixels - data.mean[0]) / data.std[0])
    return logits.softmax(1)


@pytest.mark.parametrize(("name", "chosen"), [("ema", "ema"), ("ema, raw_loss", "raw")])
def test_averaged_weights_are_evaluated_chosen_and_used(name: str, chosen: str, runs_by_case: RunsByCase) -> None:
    run = runs_by_case.whole(name)
    config = runs_by_case.config(name, run.folder)
    evaluations = lines(run.history, "eval")
    val = [line for line in evaluations if line["split"] == "val"]
    assert [(line["update"], line["weights"]) for line in val] == [
        (update, weights) for update in range(4, 41, 4) for weights in ("raw", "ema")
    ]
    best = {
        weights: min((line for line in val if line["weights"] == weights), key=lambda line: line["loss"])
        for weights in ("raw", "ema")
    }
    assert run.best is not None
    assert (run.best.update, run.best.value) == (best[chosen]["update"], best[chosen]["loss"])
    assert (run.best.metric, run.best.weights) == (config.evaluate.metric, chosen)
    assert run.best.update < 40
    if chosen == "raw":
        assert best["ema"]["update"] > run.best.update
    test = evaluations[len(val) :]
    assert [(x["split"], x["weights"], x["update"], x["weights_update"]) for x in test] == [
        ("test", weights, 40, run.best.update) for weights in ("raw", "ema")
    ]
    by_weights = {line["weights"]: line for line in test}
    assert run.summary["weights"] == chosen
    assert run.summary["test"] == {field: by_weights[chosen][field] for field in ("loss", "top1", "top5")}
    final = next(line for line in val if line["update"] == 40 and line["weights"] == chosen)
    assert run.summary["final"] == {field: final[field] for field in ("loss", "top1", "top5")}
    # The files give the same results, computed by hand.
    data = open_data(config.data).splits["test"]
    images = data.source.pixels[data.indices]  # type: ignore[union-attr]
    labels = torch.from_numpy(data.source.labels[data.indices])
    folder = run.folder / "checkpoints" / "best"
    files = {"raw": folder / "model.safetensors", "ema": folder / "ema.safetensors"}
    for weights, file in files.items():
        probabilities = by_hand(config, file, images)
        assert 100 * (probabilities.argmax(1) == labels).double().mean() == pytest.approx(by_weights[weights]["top1"])
        loss = -probabilities[torch.arange(len(labels)), labels].log().mean()
        assert loss.item() == pytest.approx(by_weights[weights]["loss"], rel=1e-5)
    assert by_weights["raw"]["loss"] != by_weights["ema"]["loss"]
    saved = load_file(files[chosen])
    assert saved.keys() == run.model.module.state_dict().keys()
    for key, tensor in run.model.module.state_dict().items():
        assert torch.equal(tensor, saved[key])
    predicted = run.predict(images).probabilities
    torch.testing.assert_close(torch.from_numpy(predicted), by_hand(config, files[chosen], images))
    # A finished run that is opened again predicts with the same weights.
    again = train(config)
    assert (again.best, again.summary) == (run.best, run.summary)
    assert course(again.history) == course(run.history)
    assert np.array_equal(again.predict(images).probabilities, predicted)


def test_two_processes_match_one_with_everything_on(runs_by_case: RunsByCase, tmp_path: Path) -> None:
    alone = runs_by_case.whole("everything")
    config = runs_by_case.config("everything", tmp_path / "run")
    histories = run_world(2, history_of_training, tmp_path / "logs", config.to_dict())
    history = read_metrics(config.folder / "metrics.jsonl")
    assert lines(history, "start")[0]["world_size"] == 2
    assert lines(history, "start")[0]["plan"]["micro_batches_per_rank"] == 1
    assert course(histories[0]) == course(histories[1]) == course(history)
    assert rates(history).tolist() == rates(alone.history).tolist()
    # The stop falls between reductions of the rate, with patience half spent.
    assert len(set(rates(alone.history)[6:])) > 2
    for kind in ("train", "eval"):
        actual, expected = lines(history, kind), lines(alone.history, kind)
        names = ("update", "epoch", "samples") + (("split", "weights", "seen") if kind == "eval" else ())
        assert [[line[name] for name in names] for line in actual] == [
            [line[name] for name in names] for line in expected
        ]
        np.testing.assert_allclose(
            [line["loss"] for line in actual], [line["loss"] for line in expected], rtol=1e-5, err_msg=kind
        )
    assert history[-1]["reason"] == alone.history[-1]["reason"] == "out of patience"
    assert history[-1]["update"] == alone.history[-1]["update"] == 32
    state, expected_state = state_of(config.folder), state_of(alone.folder)
    assert alone.best is not None
    assert state["train_state"]["best"]["update"] == alone.best.update
    assert (
        state["train_state"]["evaluations_without_improvement"]
        == expected_state["train_state"]["evaluations_without_improvement"]
        == 2
    )
    assert read_json(config.folder / "summary.json")["updates"] == 32


def test_a_run_stopped_in_two_processes_resumes_in_one(runs_by_case: RunsByCase, tmp_path: Path) -> None:
    whole = runs_by_case.whole("everything")
    config = runs_by_case.config("everything", tmp_path / "run")
    # They agree at the end of the update after the one in which the signal came.
    assert run_world(2, train_and_stop, tmp_path / "logs", config.to_dict(), "1", 21) == [True, True]
    assert state_of(config.folder)["train_state"]["position"] == 22
    resumed = train(config)
    assert [line["world_size"] for line in lines(resumed.history, "start")] == [2, 1]
    assert rates(resumed.history).tolist() == rates(whole.history).tolist()
    for kind in ("train", "eval"):
        actual, expected = ([line["loss"] for line in lines(run.history, kind)] for run in (resumed, whole))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=kind)
    assert resumed.history[-1]["reason"] == "out of patience"


@pytest.mark.parametrize("name", ["everything", "patience"])
def test_progress_has_a_row_for_each_evaluation(name: str, runs_by_case: RunsByCase) -> None:
    run = runs_by_case.whole(name)
    averaged = name == "everything"
    val = [line for line in lines(run.history, "eval") if line["split"] == "val"]
    updates = list(dict.fromkeys(line["update"] for line in val))
    rows = table(run.folder)
    assert [row["update"] for row in rows] == [str(update) for update in updates]
    assert len(rows) == run.summary["updates"] // 4
    assert [name for name in rows[0] if name.startswith("EMA")] == (["EMA loss", "EMA top1"] if averaged else [])
    span = [line for line in lines(run.history, "train") if line["update"] > updates[-2]]
    scores = {line["weights"]: line for line in val if line["update"] == updates[-1]}
    last = rows[-1]
    assert len(span) == 4
    assert float(last["epoch"]) == pytest.approx(24 * updates[-1] / 1294, abs=0.005)
    assert float(last["train loss"]) == pytest.approx(np.mean([line["loss"] for line in span]), abs=6e-5)
    assert float(last["train top1"]) == pytest.approx(np.mean([line["top1"] for line in span]), abs=6e-3)
    assert last["val loss"] == f"{scores['raw']['loss']:.4f}"
    assert last["val top1"] == f"{scores['raw']['top1']:.2f}"
    if averaged:
        assert last["EMA loss"] == f"{scores['ema']['loss']:.4f}"
        assert last["EMA top1"] == f"{scores['ema']['top1']:.2f}"
    assert float(last["seconds"]) == pytest.approx(sum(line["update_seconds"] for line in span), abs=0.051)
    assert run.best is not None
    assert [int(row["update"]) for row in rows if row["best"]][-1] == run.best.update
    assert {row["best"] for row in rows} <= {"", "best"}


def test_other_arguments_of_a_schedule_are_refused_on_resume(runs_by_case: RunsByCase, tmp_path: Path) -> None:
    config = runs_by_case.config("one cycle", tmp_path / "run")
    stop_after(6, config)
    before = {path: path.stat().st_mtime_ns for path in config.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        train(runs_by_case.config("one cycle", tmp_path / "run", schedule__args={"pct_start": 0.5}))
    assert str(caught.value) == (
        f"{config.folder}: holds a run of another config: schedule.args: {{'pct_start': 0.4}} there, "
        "{'pct_start': 0.5} now: set another run.dir, or change these back"
    )
    assert {path: path.stat().st_mtime_ns for path in config.folder.rglob("*") if path.is_file()} == before


def follow_average(folder: Path, decay: float) -> list[int]:
    """Check that the average follows its formula between checkpoints; return the updates applied at each."""
    before: dict[str, Tensor] = {}
    counts: list[int] = []
    for path in sorted((folder / "checkpoints").glob("update_*")):
        after, weights = load_file(path / "ema.safetensors"), load_file(path / "model.safetensors")
        applied = read_json(path / "state.json")["train_state"]["applied_updates"]
        part = 1 - min(decay, applied / (9 + applied)) if applied not in counts else 0
        for name, tensor in before.items():
            mean = tensor.double() + part * (weights[name].double() - tensor.double())
            torch.testing.assert_close(after[name].double(), mean, rtol=1e-5, atol=1e-7)
        before = after
        counts.append(applied)
    return counts


def test_skipped_updates_leave_the_average_and_its_count(tmp_path: Path) -> None:
    more = {"loss__name": "tests.custom_losses:sometimes_nan", "checkpoint__every": "1 updates"}
    run = train(steady(tmp_path / "run", "24 updates", checkpoint__keep=100, **more))
    counts = follow_average(run.folder, decay=0.7)
    skipped = [line["skipped_updates"] for line in lines(run.history, "train")]
    assert skipped[-1] > 0
    assert counts == (np.arange(1, 25) - skipped).tolist()


def steady(folder: Path, duration: str, **more: Any) -> Config:
    """Return a run with wsd and an average: before the cooldown nothing depends on the run's length."""
    changes = {name.replace("__", "."): value for name, value in more.items()}
    own = {"train.ema": 0.7, "schedule.name": "wsd", "schedule.cooldown": "6 updates", "train.duration": duration}
    return Config.load("digits", {**DIGITS, **own, "run.dir": str(folder), **changes})


def test_a_run_made_longer_before_its_cooldown_equals_the_longer_run(tmp_path: Path) -> None:
    whole = train(steady(tmp_path / "whole", "36 updates"))
    assert stop_after(14, steady(tmp_path / "run", "24 updates")).stopped
    grown = train(steady(tmp_path / "run", "36 updates"))
    assert starts(grown.history) == [0, 14]
    assert lines(grown.history, "start")[1]["changed"] == {"train.duration": "36 updates"}
    assert course(grown.history) == course(whole.history)
    assert ending(grown.folder) == ending(whole.folder)


def test_a_finished_run_is_made_longer(tmp_path: Path) -> None:
    every = {"checkpoint__every": "1 updates", "checkpoint__keep": 100}
    first = train(steady(tmp_path / "run", "20 updates", **every))
    short = load_file(last_of(first.folder) / "ema.safetensors")
    run = train(steady(tmp_path / "run", "30 updates", **every))
    assert not run.stopped
    assert starts(run.history) == [0, 20]
    assert [line["reason"] for line in lines(run.history, "stop")] == ["finished", "finished"]
    # The rate falls, is at the peak again, and falls.
    warmup, cooldown = np.arange(1, 5) / 4, np.arange(6, 0, -1) / 6
    expected = [*warmup, *[1] * 10, *cooldown, *[1] * 4, *cooldown]
    np.testing.assert_allclose(rates(run.history), 3e-3 * np.array(expected), rtol=1e-12)
    # The average and its count go on from where they were.
    kept = load_file(run.folder / "checkpoints" / "update_00000020" / "ema.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in short.items())
    assert follow_average(run.folder, decay=0.7) == list(range(1, 31))
    scores = [line for line in lines(run.history, "eval") if line["weights"] == "ema"]
    assert [(line["split"], line["update"]) for line in scores] == [
        ("val", 10), ("val", 20), ("val", 30), ("test", 30),
    ]  # fmt: skip
    assert (run.summary["updates"], run.summary["planned_updates"]) == (30, 30)
    assert run.best is not None
    assert run.best.value == min(line["loss"] for line in scores if line["split"] == "val")
    assert math.isclose(run.summary["test"]["loss"], scores[-1]["loss"])


def digits(folder: Path, **more: Any) -> Config:
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("digits", {**DIGITS, "run.dir": str(folder), **changes})


def test_a_run_made_longer_and_killed_before_its_first_update_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = digits(folder, train__duration="6 updates")
    train(short)
    longer = digits(folder, train__duration="12 updates")
    runtime = Runtime(longer.run, "fp32")
    lock = claim_folder(longer, runtime, TrainState(position=6), None, open_splits(longer, None))
    assert lock is not None
    lock.release()  # as a kill would, right after the folder was taken
    runtime.end()
    assert status(folder)["state"] == "running"
    assert train(longer).summary["updates"] == 12


def test_patience_starts_over_if_a_run_is_made_longer(tmp_path: Path) -> None:
    fields = {"evaluate__every": "4 updates", "evaluate__patience": 2, "evaluate__min_delta": 100.0}
    folder = tmp_path / "run"
    early = train(digits(folder, train__duration="40 updates", **fields))
    assert early.summary["updates"] < 40
    grown = train(digits(folder, train__duration="80 updates", **fields))
    assert grown.summary["updates"] == early.summary["updates"] + 8
    assert [line["split"] for line in grown.history if line["kind"] == "eval"].count("test") == 1


def test_a_run_started_from_another_has_its_own_best(tmp_path: Path) -> None:
    fields = {
        "optimizer__name": "sgd",
        "optimizer__lr": 1.0,
        "schedule__name": "constant",
        "evaluate__every": "4 updates",
    }
    train(digits(tmp_path / "a", train__duration="8 updates", **fields))
    run = train(digits(tmp_path / "b", train__duration="12 updates", run__resume=str(tmp_path / "a"), **fields))
    assert run.best is not None
    assert run.best.update == 12
    assert (tmp_path / "b" / "checkpoints" / "best").exists()
    [test] = [line for line in run.history if line["kind"] == "eval" and line["split"] == "test"]
    assert test["weights_update"] == 12

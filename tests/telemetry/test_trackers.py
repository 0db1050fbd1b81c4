"""W&B (offline) and TensorBoard: their files are read back and compared with metrics.jsonl and summary.json."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import custom_losses
from tests.conftest import REPOSITORY
from tests.run_folder.full_disk import fill, small_disk
from tests.training.test_run import digits
from vit_dist import Config, Run, train
from vit_dist.config.fields import RunConfig
from vit_dist.config.output_fields import LogConfig
from vit_dist.files import read_json
from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    InputExamples,
    SavedPredictions,
    read_inputs,
    read_predictions,
)
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.tensorboard_run import TensorBoardRun
from vit_dist.telemetry.trackers import Trackers, chosen_trackers, wandb_mode

NOT_LOGGED_IN = "optional: `wandb login` sends the metrics to Weights & Biases too"
SIGNALLING = "tests.custom_losses:signalling"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


@pytest.mark.parametrize(
    ("environ", "names", "reason"),
    [
        ({}, [], NOT_LOGGED_IN),
        ({"WANDB_API_KEY": "k"}, ["wandb"], None),
        ({"WANDB_MODE": "offline"}, ["wandb"], None),
        ({"WANDB_MODE": "online"}, [], NOT_LOGGED_IN),
        ({"WANDB_MODE": "disabled"}, [], None),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, [], None),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "k"}, [], None),
    ],
)
def test_auto_is_wandb_if_the_user_is_logged_in(
    environ: dict[str, str], names: list[str], reason: str | None, tmp_path: Path
) -> None:
    environ = {"NETRC": str(tmp_path / "none"), **environ}
    assert chosen_trackers("auto", environ) == (names, reason)
    assert chosen_trackers("none", environ) == ([], None)
    assert chosen_trackers("wandb", environ) == (["wandb"], None)


def test_a_login_in_netrc_counts_for_its_host(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    environ = {"NETRC": str(path)}
    path.write_text("machine api.wandb.ai login user password k\n")
    assert chosen_trackers("auto", environ) == (["wandb"], None)
    own = {**environ, "WANDB_BASE_URL": "https://wandb.example.com/"}
    assert chosen_trackers("auto", own) == ([], NOT_LOGGED_IN)
    path.write_text("machine wandb.example.com login user password k\n")
    assert chosen_trackers("auto", own) == (["wandb"], None)
    assert chosen_trackers("auto", environ) == ([], NOT_LOGGED_IN)
    path.write_text("machine {\n")
    assert chosen_trackers("auto", environ) == ([], NOT_LOGGED_IN)


def test_wandb_is_offline_if_its_server_is_not_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/"}
        assert wandb_mode(url) == "online"
    assert wandb_mode(url) == "offline"
    assert wandb_mode({**url, "HTTPS_PROXY": "http://proxy"}) == "online"
    assert wandb_mode({**url, "WANDB_MODE": "disabled"}) == "disabled"


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: LevelDB's log format in 32 KiB blocks after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def whole_records(path: Path) -> list[Any]:
    """Return the records of a complete .wandb file; wandb's own process may end it a little after `finish`."""
    from google.protobuf.message import DecodeError

    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(DecodeError):
            records = list(wandb_records(path))
            if any(record.WhichOneof("record_type") == "exit" for record in records):
                return records
        time.sleep(0.05)
    raise AssertionError(f"{path} has no end")


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_offline_gets_the_numbers_of_each_line(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    config = Config(
        run=RunConfig(name="mine", dir=str(folder), device="cpu"),
        log=LogConfig(trackers="auto", project="digits", group="group", tags=("a", "b")),
    )
    notes: list[str] = []
    trackers = Trackers(config, notes.append, enabled=True)
    trackers.start(None)
    assert trackers.names == ["wandb"]
    for kind in ("start", "stop", "other"):
        trackers.log({"kind": kind, "time": 1.0, "update": 10, "epoch": 1.0, "world_size": 1})
    trackers.log({"kind": "train", "time": 1.0, "update": 10, "loss": 1.5, "top1": None, "grad_norm": "nan"})
    trackers.log({"kind": "save", "time": 1.5, "update": 10, "seconds": 0.25})
    evaluation = {"kind": "eval", "time": 2.0, "update": 20, "split": "val", "weights": "raw", "loss": 1.25}
    trackers.log(evaluation)
    trackers.end()
    assert trackers.names == []
    assert notes == [f"wandb: offline; later: wandb sync {folder / 'wandb'}/offline-run-*"]
    assert trackers.run_id

    (path,) = folder.glob(f"wandb/offline-run-*/run-{trackers.run_id}.wandb")
    lines, settings, runs = [], {}, []
    for record in whole_records(path):
        settings |= values_of(record.config.update) | values_of(record.run.config.update)
        if record.WhichOneof("record_type") == "run":
            runs.append((record.run.project, record.run.display_name, record.run.run_group, list(record.run.tags)))
        if record.WhichOneof("record_type") == "history":
            values = values_of(record.history.item)
            lines.append({name: value for name, value in values.items() if not name.startswith("_") or name == "_step"})
    assert lines == [{"_step": 10, "train/loss": 1.5, "save/seconds": 0.25}, {"_step": 20, "eval/val_raw_loss": 1.25}]
    assert runs[0] == ("digits", "mine", "group", ["a", "b"])
    assert (settings["optimizer.lr"], settings["train.duration"]) == (1e-3, "20 epochs")


def test_without_a_login_nothing_starts_but_a_note(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    notes: list[str] = []
    hints: list[str] = []
    trackers = Trackers(Config(run=RunConfig(dir=str(tmp_path))), notes.append, enabled=True)
    trackers.start(None)
    trackers.log({"kind": "train", "update": 1, "loss": 1.0})
    trackers.end()
    Trackers(trackers.config, print, enabled=True, hint=hints.append).start(None)
    assert hints == [NOT_LOGGED_IN]
    assert (notes, trackers.names, trackers.run_id) == ([NOT_LOGGED_IN], [], None)
    assert list(tmp_path.iterdir()) == []


def saved_examples(folder: Path) -> tuple[InputExamples, SavedPredictions]:
    inputs, kept = read_inputs(folder / INPUTS), read_predictions(folder / PREDICTIONS)
    assert inputs is not None
    assert kept is not None
    return inputs, kept


def numbers(line: Line) -> dict[str, float]:
    """Return the numbers of a line by the names that trackers give them."""
    prefix = line["kind"]
    if prefix not in ("train", "eval", "save"):
        return {}
    if prefix == "eval":
        prefix = f"eval/{line['split']}_{line['weights']}_"
    else:
        prefix += "/"
    hidden = ("time", "update")
    return {
        f"{prefix}{name}": value
        for name, value in line.items()
        if type(value) in (int, float, bool) and name not in hidden
    }


def stopped_at(update: int, config: Config, patch: pytest.MonkeyPatch) -> Run:
    """Return a run stopped by a signal after an update of 3 micro-batches."""
    custom_losses.forwards = 0
    patch.setenv("SIGNAL", "SIGTERM")
    patch.setenv("SIGNAL_AT", str(3 * update))
    run = train(config)
    assert run.stopped
    patch.setenv("SIGNAL_AT", "0")
    return run


@dataclass(frozen=True)
class Wandb:
    """The content of a .wandb file: its record of the run, config and summary by name, history by step."""

    run: Any
    config: dict[str, Any]
    summary: dict[str, Any]
    lines: dict[int, dict[str, Any]]
    files: Path

    @classmethod
    def read(cls, path: Path) -> Wandb:
        run, config, summary, lines = None, {}, {}, {}
        for record in whole_records(path):
            config |= values_of(record.config.update) | values_of(record.run.config.update)
            summary |= values_of(record.summary.update)
            if record.WhichOneof("record_type") == "run":
                run = record.run
            if record.WhichOneof("record_type") == "history":
                values = values_of(record.history.item)
                assert values["_step"] not in lines
                lines[values["_step"]] = values
        return cls(run, config, summary, lines, path.parent / "files")

    def images(self, name: str, step: int) -> tuple[list[str], list[np.ndarray[Any, Any]]]:
        """Return the captions and pictures that were sent under a name."""
        entry = {key.removeprefix(f"{name}/"): value for key, value in self.lines[step].items() if key.startswith(name)}
        assert (entry["_type"], entry["count"]) == ("images/separated", len(entry["filenames"]))
        return entry["captions"], [np.asarray(Image.open(self.files / file)) for file in entry["filenames"]]


def offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    patch.chdir(folder)


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Wandb]:
    """Return a run of 20 updates and the content of its .wandb file."""
    folder = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        offline(patch, folder.parent)
        config = digits(
            folder,
            run__name="mine",
            train__duration="20 updates",
            evaluate__every="8 updates",
            log__every="10 updates",
            log__trackers="wandb",
            log__project="numbers",
            log__group="group",
            log__tags=["a", "b"],
        )
        run = train(config)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return run, Wandb.read(path)


def test_wandb_has_the_numbers_of_metrics_jsonl(wandb_run: tuple[Run, Wandb]) -> None:
    run, wandb = wandb_run
    expected: dict[int, dict[str, float]] = {}
    step = 0
    for line in read_metrics(run.folder / "metrics.jsonl"):
        step = max(step, line["update"])  # the line of a save comes later than its update
        expected.setdefault(step, {}).update(numbers(line))
    assert sorted(expected) == [0, 8, 10, 16, 20]
    shown = ("inputs", "test/")
    assert expected == {
        step: {name: value for name, value in line.items() if not name.startswith(("_", *shown))}
        for step, line in wandb.lines.items()
    }
    last = wandb.lines[20]
    assert last["train/samples_per_second"] > 0
    assert 0 < last["train/lr"] < 1e-3
    assert last["eval/test_raw_top1"] == run.summary["test"]["top1"]
    assert last["eval/val_raw_top1"] == run.summary["final"]["top1"]
    # No peak FLOP/s is known for this device, so there is no mfu.
    trained = [line for line in run.history if line["kind"] == "train"]
    assert [line["mfu"] for line in trained] == [None] * 4
    assert not any("train/mfu" in line for line in wandb.lines.values())


def test_wandb_has_the_config_and_the_summary(wandb_run: tuple[Run, Wandb]) -> None:
    run, wandb = wandb_run
    assert (wandb.run.display_name, wandb.run.project, wandb.run.run_group) == ("mine", "numbers", "group")
    assert list(wandb.run.tags) == ["a", "b"]
    assert (
        wandb.run.run_id
        == read_json(run.folder / "checkpoints" / "last" / "state.json")["train_state"]["tracker_run_id"]
    )
    fields = Config.load(run.folder / "config.yaml").fields()
    assert {name: wandb.config[name] for name in fields} == {
        name: "" if value is None else value for name, value in fields.items()
    }
    summary = read_json(run.folder / "summary.json")
    flat = {f"summary/{name}": value for name, value in summary.items() if not isinstance(value, dict)}
    for name, values in summary.items():
        if isinstance(values, dict):
            flat |= {f"summary/{name}/{inner}": value for inner, value in values.items()}
    assert len(flat) > 20
    assert {name: value for name, value in wandb.summary.items() if name.startswith("summary/")} == flat


def test_wandb_has_the_confusion_matrix(wandb_run: tuple[Run, Wandb]) -> None:
    run, wandb = wandb_run
    _, kept = saved_examples(run.folder)
    (path,) = wandb.files.glob("media/table/test/confusion_table_*.table.json")
    table = read_json(path)
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    classes = kept.metadata["classes"]
    counts = np.zeros((10, 10), np.int64)
    for label, predicted, count in table["data"]:
        counts[classes.index(label), classes.index(predicted)] += int(count)
    by_hand = np.zeros((10, 10), np.int64)
    for label, top in zip(kept.predictions.label, kept.predictions.top[:, 0], strict=True):
        by_hand[label, top] += 1
    assert len(table["data"]) == 100
    assert counts.tolist() == by_hand.tolist() == kept.predictions.confusion(10).tolist()
    assert counts.sum() == 359
    assert 100 * counts.trace() / 359 == run.summary["test"]["top1"]


def test_wandb_has_the_pictures(wandb_run: tuple[Run, Wandb]) -> None:
    run, wandb = wandb_run
    inputs, kept = saved_examples(run.folder)
    captions, images = wandb.images("inputs", 0)
    assert captions == inputs.captions()
    assert all(caption in kept.metadata["classes"] for caption in captions)
    np.testing.assert_array_equal(np.stack(images), inputs.pixels[:, 0])
    captions, images = wandb.images("test/mistakes", 20)
    wrong = int((kept.predictions.top[:, 0] != kept.predictions.label).sum())
    assert len(captions) == len(kept.picture_rows) == min(24, wrong) == 24
    assert captions == [
        f"{kept.predictions.top[row, 0]} {kept.predictions.probability[row, 0]:.0%}, is {kept.predictions.label[row]}"
        for row in kept.picture_rows
    ]
    np.testing.assert_array_equal(np.stack(images), kept.pictures[:, 0])


def test_wandb_shows_few_mistakes_or_none(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_run: tuple[Run, Wandb]
) -> None:
    offline(monkeypatch, tmp_path)
    _, kept = saved_examples(wandb_run[0].folder)
    notes: list[str] = []
    config = Config(run=RunConfig(dir=str(tmp_path), device="cpu"), log=LogConfig(trackers="wandb"))
    trackers = Trackers(config, notes.append, enabled=True)
    trackers.start(None)
    captions = [f"{predicted}, is {label}" for predicted, label in kept.captions()]
    for step, count in ((1, 2), (2, 0)):
        part = SavedPredictions(kept.predictions, kept.metadata, kept.picture_rows[:count], kept.pictures[:count])
        trackers.show_predictions(part, captions[:count], step)
    trackers.log({"kind": "train", "time": 0.0, "update": 3, "loss": 1.0})
    trackers.end()
    assert notes == [f"wandb: offline; later: wandb sync {tmp_path / 'wandb'}/offline-run-*"]
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    wandb = Wandb.read(path)
    assert wandb.images("test/mistakes", 1)[0] == captions[:2]
    assert "test/confusion_table/path" in wandb.lines[2]
    assert wandb.lines[3]["train/loss"] == 1.0


def test_wandb_continues_the_run_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch, tmp_path)
    config = digits(
        tmp_path / "run",
        loss__name=SIGNALLING,
        train__duration="12 updates",
        log__every="3 updates",
        log__trackers="wandb",
    )
    stopped_at(5, config, monkeypatch)
    (first,) = config.folder.glob("wandb/offline-run-*/*.wandb")
    before = Wandb.read(first)
    # wandb names its folder after the second of its start and the run's id: two in one second would be one.
    first.parent.rename(tmp_path / "first")
    assert not train(config).stopped
    (second,) = config.folder.glob("wandb/offline-run-*/*.wandb")
    after = Wandb.read(second)
    state = read_json(config.folder / "checkpoints" / "last" / "state.json")
    assert before.run.run_id == after.run.run_id == state["train_state"]["tracker_run_id"]
    steps = [[step for step, line in wandb.lines.items() if "train/loss" in line] for wandb in (before, after)]
    assert steps == [[3, 5], [6, 9, 12]]
    assert 0 in before.lines
    assert "inputs/count" in before.lines[0]
    # The first inputs were sent before the stop, and are not sent again.
    assert not any("inputs/count" in line for line in after.lines.values())
    assert after.lines[12]["test/mistakes/count"] == 24


def events(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    board.Reload()
    return board


def scalars(board: EventAccumulator) -> dict[tuple[str, int], list[float]]:
    """Return the values by name and step, in the order in which they were written."""
    values: dict[tuple[str, int], list[float]] = {}
    for name in board.Tags()["scalars"]:
        for event in board.Scalars(name):
            values.setdefault((name, event.step), []).append(event.value)
    return values


def expected_scalars(lines: list[Line]) -> dict[tuple[str, int], list[float]]:
    values: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        for name, value in numbers(line).items():
            values.setdefault((name, line["update"]), []).append(pytest.approx(float(value), rel=1e-6))
    return values


@dataclass(frozen=True)
class Board:
    """A run stopped at 17 that lost that checkpoint and went on from 10 to 30: TensorBoard's content each time.

    first: the lines that counted when it was stopped.
    """

    run: Run
    before: EventAccumulator
    after: EventAccumulator
    first: list[Line]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    config = digits(
        folder,
        loss__name=SIGNALLING,
        train__duration="30 updates",
        schedule__name="StepLR",
        schedule__args={"step_size": "20 updates"},
        evaluate__every="7 updates",
        checkpoint__every="10 updates",
        log__every="4 updates",
        log__trackers="tensorboard",
        log__tags=["a", "b"],
    )
    with pytest.MonkeyPatch.context() as patch:
        first = stopped_at(17, config, patch).history
    before = events(folder)
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("update_*"):
        if int(path.name.removeprefix("update_")) > 10:
            shutil.rmtree(path)
    run = train(config)
    return Board(run, before, events(folder), first)


def test_tensorboard_has_the_numbers_of_metrics_jsonl(board: Board) -> None:
    assert [line["update"] for line in board.first if line["kind"] == "train"] == [4, 7, 8, 12, 14, 16, 17]
    assert scalars(board.before) == expected_scalars(board.first)
    names = board.before.Tags()["scalars"]
    assert {"train/loss", "train/lr", "train/samples_per_second", "eval/val_raw_top1"} <= set(names)
    assert "train/mfu" not in names


def test_tensorboard_drops_what_a_resume_supersedes(board: Board) -> None:
    lines = read_metrics(board.run.folder / "metrics.jsonl")
    assert [line["update"] for line in lines if line["kind"] == "start"] == [0, 10]
    assert scalars(board.after) == expected_scalars(lines)
    trained = [event.step for event in board.after.Scalars("train/loss")]
    assert trained == [4, 7, 8, 12, 14, 16, 20, 21, 24, 28, 30]
    # Update 17 was logged because of the stop alone, and the lines that count have no stop there.
    assert ("train/loss", 17) in scalars(board.before)
    assert ("train/loss", 17) not in scalars(board.after)
    assert scalars(board.after)["eval/test_raw_top1", 30] == [pytest.approx(board.run.summary["test"]["top1"])]


def test_tensorboard_has_the_pictures(board: Board) -> None:
    inputs, kept = saved_examples(board.run.folder)
    assert sorted(board.after.Tags()["images"]) == ["inputs", "test/confusion", "test/mistakes"]
    assert {name: [event.step for event in board.after.Images(name)] for name in board.after.Tags()["images"]} == {
        "inputs": [0],
        "test/confusion": [30],
        "test/mistakes": [30],
    }

    def tiles(name: str, height: int, width: int) -> list[np.ndarray[Any, Any]]:
        """Return the tiles of a grid, row by row."""
        [event] = board.after.Images(name)
        path = board.run.folder.parent / "tile.png"
        path.write_bytes(event.encoded_image_string)
        pixels = np.asarray(Image.open(path).convert("L"))
        rows = range(0, pixels.shape[0], height)
        return [pixels[y : y + height, x : x + width] for y in rows for x in range(0, pixels.shape[1], width)]

    np.testing.assert_array_equal(np.stack(tiles("inputs", 8, 8))[:16], inputs.pixels[:, 0])
    np.testing.assert_array_equal(np.stack(tiles("test/mistakes", 8, 8))[:24], kept.pictures[:, 0])
    [confusion] = tiles("test/confusion", 10, 10)
    counts = kept.predictions.confusion(10)
    shares = 255 * counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(confusion, shares, atol=1.0)


def test_tensorboard_takes_settings_of_every_kind(board: Board) -> None:
    """Lists, mappings and None become text in its table of settings."""
    import yaml

    paths = sorted((board.run.folder / "tensorboard").glob("*/hparams.yml"))
    assert len(paths) == 2
    written = yaml.safe_load(paths[0].read_text())
    fields = Config.load(board.run.folder / "config.yaml").fields()
    kinds = {type(value) for value in fields.values()}
    assert {list, dict, str, float, int, bool} <= kinds
    assert written == {
        name: value if isinstance(value, (int, float)) else "" if value is None else str(value)
        for name, value in fields.items()
    }
    assert written["log.tags"] == "['a', 'b']"
    assert written["schedule.args"] == "{'step_size': '20 updates'}"


def test_tensorboard_shows_few_mistakes_or_none(runtime: Runtime, tmp_path: Path, board: Board) -> None:
    _, kept = saved_examples(board.run.folder)
    notes: list[str] = []
    config = Config(run=RunConfig(dir=str(tmp_path), device="cpu"), log=LogConfig(trackers="tensorboard"))
    trackers = Trackers(config, notes.append, enabled=True)
    trackers.start(None)
    for step, count in ((1, 2), (2, 0)):
        part = SavedPredictions(kept.predictions, kept.metadata, kept.picture_rows[:count], kept.pictures[:count])
        trackers.show_predictions(part, ["x"] * count, step)
    many = {**kept.metadata, "classes": [str(number) for number in range(101)]}
    trackers.show_predictions(
        SavedPredictions(kept.predictions, many, kept.picture_rows[:1], kept.pictures[:1]), ["x"], 3
    )
    trackers.end()
    written = events(tmp_path)
    assert notes == []
    assert [event.step for event in written.Images("test/mistakes")] == [1, 3]
    # A confusion matrix of more than 100 classes is not shown.
    assert [event.step for event in written.Images("test/confusion")] == [1, 2]


def test_a_missing_package_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    code = "import sys; sys.modules['tensorboard'] = None; from vit_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    fields = {"log.trackers": "tensorboard", "run.device": "cpu", "run.threads": "1", "run.dir": str(tmp_path / "run")}
    arguments = ["train", *(part for name, value in fields.items() for part in (f"--{name}", value))]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "vit-dist: log.trackers: tensorboard is not installed: pip install tensorboard, or set none"
    ]
    assert list(tmp_path.iterdir()) == []


class Broken:
    """A tracker whose every call fails."""

    calls = 0

    def __getattr__(self, name: str) -> Any:
        """Return a function that raises an error of two lines."""

        def fail(*arguments: Any, **settings: Any) -> None:
            self.calls += 1
            raise ConnectionError(f"{name}:\nno server")

        return fail


def test_a_tracker_that_fails_is_dropped_with_one_line(tmp_path: Path) -> None:
    notes: list[str] = []
    trackers, broken = Trackers(Config(run=RunConfig(dir=str(tmp_path))), notes.append, enabled=True), Broken()
    tracker = TensorBoardRun(broken)
    trackers._trackers = {"tensorboard": tracker}
    line = {"kind": "train", "time": 0.0, "update": 1, "loss": 1.0}
    trackers.log(line)
    assert tracker.background.close(lambda: None, 10)
    for _ in range(2):
        trackers.log(line)
    assert (notes, trackers.names, broken.calls) == (["tensorboard: log: no server: continuing without it"], [], 1)
    trackers._trackers = {"tensorboard": TensorBoardRun(broken)}
    trackers.end()
    assert (notes[1:], trackers.names) == (["tensorboard: finish: no server"], [])


def test_tensorboard_on_a_full_disk_is_dropped_with_one_line(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes: list[str] = []
    hook = threading.excepthook
    with small_disk(tmp_path / "run", "1m") as folder:
        config = Config(run=RunConfig(dir=str(folder), device="cpu"), log=LogConfig(trackers="tensorboard"))
        trackers = Trackers(config, notes.append, enabled=True)
        trackers.start(None)
        fill(folder)
        until = time.monotonic() + 30
        update = 0
        while trackers.names and time.monotonic() < until:
            update += 1
            trackers.log({"kind": "train", "time": 0.0, "update": update, "loss": 1.0})
            time.sleep(0.001)
        trackers.end()
    assert notes == ["tensorboard: [Errno 28] No space left on device: continuing without it"]
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook == hook


def test_ranks_that_do_not_track_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    notes: list[str] = []
    trackers = Trackers(Config(run=RunConfig(dir=str(tmp_path))), notes.append, enabled=False)
    trackers.start(None)
    trackers.log({"kind": "train", "time": 0.0, "update": 1, "loss": 1.0})
    trackers.end()
    assert (notes, trackers.names, trackers.run_id, list(tmp_path.iterdir())) == ([], [], None, [])

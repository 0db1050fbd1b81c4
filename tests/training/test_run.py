"""Whole runs: equal at any world size and across kills and stops, from the command to the summary."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import vit_dist
from tests import custom_losses
from tests.conftest import REPOSITORY
from tests.processes import run_world
from vit_dist import Config, Run, UserError, train
from vit_dist.cli import main
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.files import read_json
from vit_dist.inference.evaluation import evaluate
from vit_dist.models.build import build_model
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.status import status
from vit_dist.runtime.runtime import Runtime

DIGITS = {
    "model.width": 32,
    "model.depth": 2,
    "batch.global_size": 48,
    "batch.micro_size": 16,
    "optimizer.lr": 1e-3,
    "schedule.warmup": "5 updates",
    "train.duration": "60 updates",
    "log.every": "1 updates",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}


def digits(folder: Path, **more: Any) -> Config:
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("digits", {**DIGITS, "run.dir": str(folder), **changes})


def pictures(folder: Path, images: Path, workers: int) -> Config:
    """Return a short run with everything random: crops in workers, flips, shifts, dropout, drop-path."""
    return Config.load(
        "folder",
        {
            "data.root": str(images),
            "data.image_size": 16,
            "data.workers": workers,
            "model.width": 24,
            "model.depth": 2,
            "model.heads": 2,
            "model.patch_size": 8,
            "model.dropout": 0.1,
            "model.attention_dropout": 0.1,
            "model.drop_path": 0.2,
            "augment.shift": 1,
            "batch.global_size": 14,
            "batch.micro_size": 8,
            "loss.name": "tests.custom_losses:signalling",
            "schedule.warmup": "5 updates",
            "train.duration": "60 updates",
            "evaluate.every": "25 updates",
            "checkpoint.every": "37 updates",
            "run.dir": str(folder),
            "run.device": "cpu",
            "run.threads": 1,
            "log.report": False,
        },
    )


def end_files(folder: Path) -> tuple[bytes, bytes]:
    last = folder / "checkpoints" / "update_00000060"
    return (last / "model.safetensors").read_bytes(), (last / "optimizer.safetensors").read_bytes()


def train_digits(folder: str) -> dict[str, Any]:
    run = train(digits(Path(folder)))
    return {"history": [line for line in run.history if line["kind"] in ("train", "eval")]}


def ids_and_evaluations() -> dict[str, Any]:
    """Return this rank's sample ids of each global batch, and exact evaluations of the initial weights."""
    config = digits(Path("unused"))
    runtime = Runtime(config.run, "fp32")
    data = open_data(config.data)
    plan = Plan.from_config(config, len(data.splits["train"]), runtime.world_size)
    preprocessing = Preprocessing(8, data.mean, data.std)
    stream = Stream(data.splits["train"], plan, preprocessing, config.augment, runtime, workers=0)
    ids = []
    for position in range(plan.updates):
        windows = [batch.ids[batch.weights > 0].tolist() for batch in stream.window(position)]
        ids.append(windows)
    model = build_model(config.model, classes=10, channels=1, image_size=8, seed=0)
    evaluations = {}
    for split in ("val", "test"):
        for size in (7, 64):
            batches = EvaluationStream(data.splits[split], preprocessing, runtime, batch_size=size, workers=0)
            result = evaluate(model, batches, len(data.splits[split]), runtime)
            evaluations[f"{split} {size}"] = [result.seen, result.top1, result.top5, result.loss]
    runtime.end()
    return {"ids": ids, "evaluations": evaluations}


def test_ids_and_evaluations_are_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    worlds = {size: run_world(size, ids_and_evaluations, tmp_path / str(size)) for size in (1, 2, 3)}
    alone = [list(chain(*windows)) for windows in worlds[1][0]["ids"]]
    walked = list(chain(*alone))
    assert len(alone) == 60
    assert len(set(walked[:1294])) == 1294
    assert sorted(walked[:1294]) == sorted(walked[1294:2588])
    for size in (2, 3):
        for position in range(60):
            windows = [rank["ids"][position] for rank in worlds[size]]
            dealt = [windows[number % size][number // size] for number in range(3)]
            assert list(chain(*dealt)) == alone[position]
    expected = worlds[1][0]["evaluations"]
    assert [expected["val 7"][0], expected["test 7"][0]] == [144, 359]
    assert expected["test 7"][:3] == expected["test 64"][:3]
    for size, ranks in worlds.items():
        for rank in ranks:
            for name, (seen, top1, top5, loss) in rank["evaluations"].items():
                assert [seen, top1, top5] == expected[name][:3], (size, name)
                assert loss == pytest.approx(expected[name][3], rel=1e-6)


def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    [alone] = run_world(1, train_digits, tmp_path / "logs1", str(tmp_path / "one"))
    run_world(2, train_digits, tmp_path / "logs2", str(tmp_path / "two"))
    histories = [alone["history"], read_metrics(tmp_path / "two" / "metrics.jsonl")]
    losses, rates = (
        [[x[name] for x in lines if x["kind"] == "train"] for lines in histories] for name in ("loss", "lr")
    )
    assert len(losses[0]) == 60
    assert rates[0] == rates[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.05
    for folder in ("one", "two"):
        state = read_json(tmp_path / folder / "checkpoints" / "last" / "state.json")
        assert state["schedule"]["updates"] == 60
        assert state["train_state"]["applied_updates"] == 60
        assert state["train_state"]["skipped_updates"] == 0
    start = next(line for line in histories[1] if line["kind"] == "start")
    assert start["world_size"] == 2
    assert start["plan"]["micro_batches_per_rank"] == 2
    assert start["all_reduce_bytes"] == 4 * start["parameters"]
    assert start["all_reduce_calls"] == 1


@pytest.fixture(scope="module")
def uninterrupted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(pictures(folder, image_folder, workers=0))
    return end_files(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_after_update_37_ends_bit_identical(
    workers: int,
    image_folder: Path,
    tmp_path: Path,
    uninterrupted: tuple[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = pictures(tmp_path / "run", image_folder, workers)
    custom_losses.forwards = 0
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", str(2 * 37))
    handler = signal.getsignal(signal.SIGTERM)
    stopped = train(config)
    assert stopped.stopped
    assert signal.getsignal(signal.SIGTERM) is handler
    assert status(config.folder)["state"] == "stopped"
    assert status(config.folder)["update"] == 37
    monkeypatch.setenv("SIGNAL_AT", "0")
    finished = train(config)
    assert not finished.stopped
    assert status(config.folder)["state"] == "finished"
    assert end_files(config.folder) == uninterrupted
    assert [line["update"] for line in finished.history if line["kind"] == "start"] == [0, 37]
    assert [line["update"] for line in finished.history if line["kind"] == "eval"] == [25, 50, 60]


def test_a_killed_run_resumes_from_its_last_checkpoint(
    image_folder: Path, tmp_path: Path, uninterrupted: tuple[bytes, bytes]
) -> None:
    config = pictures(tmp_path / "run", image_folder, workers=2)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    command = [sys.executable, "scripts/train.py", "--config", str(path)]
    environment = {**os.environ, "SIGNAL": "SIGKILL", "SIGNAL_AT": str(2 * 45), "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert status(config.folder)["state"] == "running"
    assert [path.name for path in sorted((config.folder / "checkpoints").glob("update_*"))] == [
        "update_00000025",
        "update_00000037",
    ]
    assert not train(config).stopped
    assert end_files(config.folder) == uninterrupted
    lines = [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [line["update"] for line in read_metrics(config.folder / "metrics.jsonl") if line["kind"] == "train"]
    assert updates == [10, 20, 25, 30, 40, 50, 60]
    assert len([line for line in lines if line["kind"] == "train"]) == 8


def test_a_broken_checkpoint_is_named_and_the_one_before_it_used(
    image_folder: Path, tmp_path: Path, uninterrupted: tuple[bytes, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    config = pictures(tmp_path / "run", image_folder, workers=0)
    train(config)
    torn = config.folder / "checkpoints" / "update_00000060" / "model.safetensors"
    content = bytearray(torn.read_bytes())
    content[-1] ^= 1
    torn.write_bytes(content)
    (config.folder / "status.json").unlink()
    capsys.readouterr()
    run = train(config)
    printed = capsys.readouterr().out
    assert f"{torn}: its SHA-256 is not the manifest's: not used" in printed
    assert [line["update"] for line in run.history if line["kind"] == "start"][-1] < 60
    assert end_files(config.folder) == uninterrupted


def test_files_and_numbers_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = digits(tmp_path / "run", evaluate__every="20 updates", log__every="10 updates")
    run = train(config)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "status.json",
        "summary.json",
        "checkpoints",
    }
    assert Config.from_dict(yaml.safe_load((folder / "config.yaml").read_text())) == config
    assert read_metrics(folder / "metrics.jsonl") == run.history
    kinds = [line["kind"] for line in run.history]
    assert kinds[0] == "start"
    assert kinds[-1] == "stop"
    assert [line["update"] for line in run.history if line["kind"] == "train"] == [10, 20, 30, 40, 50, 60]
    for line in run.history:
        if line["kind"] != "train":
            continue
        assert line["samples"] == line["update"] * 48
        assert line["epoch"] == pytest.approx(line["samples"] / 1294)
        assert line["samples_per_second"] == pytest.approx(48 / line["update_seconds"])
        assert line["mfu"] is None
        assert 0 < line["matmul_fraction"] < 1.2
        assert 0 <= line["data_wait_fraction"] < 1
        assert line["peak_memory_bytes"] > 1e8
    evaluations = [line for line in run.history if line["kind"] == "eval"]
    assert [(line["split"], line["update"]) for line in evaluations] == [
        ("val", 20), ("val", 40), ("val", 60), ("test", 60),
    ]  # fmt: skip
    summary = read_json(folder / "summary.json")
    assert summary == run.summary
    best = min(evaluations[:3], key=lambda line: line["loss"])
    assert summary["best"] == {
        "update": best["update"], "metric": "loss", "value": best["loss"], "weights": "raw", "loss": best["loss"],
    }  # fmt: skip
    assert summary["best_epoch"] == best["epoch"]
    assert os.readlink(folder / "checkpoints" / "best") == f"update_{best['update']:08d}"
    assert summary["test"]["top1"] == evaluations[-1]["top1"]
    assert summary["final"]["top1"] == evaluations[-2]["top1"]
    assert summary["parameters"] == sum(p.numel() for p in run.model.module.parameters())
    # A finished run returns its summary and does not train again.
    capsys.readouterr()
    again = train(config)
    assert "finished before" in capsys.readouterr().out
    assert again.summary == summary
    assert again.best == run.best


def test_the_result_in_python_predicts_with_the_best_weights(tmp_path: Path) -> None:
    config = digits(tmp_path / "run", train__duration="20 epochs", log__every="50 updates", optimizer__lr=5e-3)
    data = open_data(config.data)
    run = train(config, source=data)
    test = data.splits["test"]
    assert not isinstance(test.source, type(None))
    images, labels = test.source.pixels[test.indices], test.source.labels[test.indices]  # type: ignore[union-attr]
    predictions = run.predict(images)
    assert predictions.probabilities.shape == (359, 10)
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, rtol=1e-6)
    top1 = 100 * (predictions.numbers == labels).mean()
    assert top1 == pytest.approx(run.summary["test"]["top1"])
    assert top1 > 80
    # A finished run predicts with the weights that it saved.
    again = train(config)
    loaded = vit_dist.load(run.folder, device="cpu")
    for model in (again.model, loaded):
        assert np.array_equal(model.predict(images).probabilities, predictions.probabilities)
        assert np.array_equal(model.embed(images[:9]), run.model.embed(images[:9]))
        assert repr(model) == repr(run.model)
    measured = run.model.evaluate()
    figures = run.summary["figures"]["top1_interval"]
    margin = max(top1 - figures[0], figures[1] - top1)
    updates = run.history[-1]["update"]
    assert repr(run) == f"Run(run: finished, {top1:.1f} % on test (±{margin:.1f}), {updates:,} updates)" == repr(again)
    assert repr(measured) == f"Evaluation({top1:.1f} % of 359 images, loss {measured.loss:.4f})"
    assert (measured.top1, measured.loss) == (run.summary["test"]["top1"], pytest.approx(run.summary["test"]["loss"]))


def test_train_says_what_to_write_in_place_of_a_folder(tmp_path: Path) -> None:
    for given, expected in (
        (str(tmp_path), f'not str: train(Config.load("folder", {{"data.root": "{tmp_path}"}}))'),
        ("nothing", 'not str: train(Config.load("digits", {…}))'),
        ({"data.root": "x"}, 'not dict: train(Config.load("digits", {…}))'),
    ):
        with pytest.raises(UserError) as caught:
            train(given)  # type: ignore[arg-type]
        assert str(caught.value) == f"train: takes a Config, {expected}"


def test_train_takes_a_users_model(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(images.flatten(1))
            return logits

    torch.manual_seed(0)
    run = train(digits(tmp_path / "run", optimizer__lr=1e-2, optimizer__weight_decay=0), model=Flat())
    assert run.summary["parameters"] == 650
    assert run.summary["test"]["top1"] > 75


def test_a_longer_duration_resumes_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(digits(folder, train__duration="10 updates"))
    run = train(digits(folder, train__duration="15 updates"))
    assert [line["update"] for line in run.history if line["kind"] == "start"] == [0, 10]
    assert run.history[-1]["update"] == 15
    with pytest.raises(
        UserError, match=r"^train.duration: may only grow: 15 updates before, 12 now: set another run.name or"
    ):
        train(digits(folder, train__duration="12 updates"))


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(digits(folder, train__duration="6 updates"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        train(digits(folder, train__duration="6 updates", optimizer__lr=0.5, model__depth=3))
    assert str(caught.value) == (
        f"{folder}: holds a run of another config: model.depth: 2 there, 3 now; optimizer.lr: 0.001 there, 0.5 now: "
        "set another run.dir, or change these back"
    )
    with pytest.raises(UserError) as caught:
        train(digits(folder, train__duration="6 updates", run__resume="never"))
    assert str(caught.value) == (f"run.dir: {folder} holds a run: set run.resume auto to resume it, or another run.dir")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"other holds other files: set another, or an empty folder$"):
        train(digits(tmp_path / "other"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_may_start_from_another_runs_checkpoint(tmp_path: Path) -> None:
    first = train(digits(tmp_path / "first", train__duration="10 updates"))
    config = digits(tmp_path / "second", train__duration="15 updates", run__resume=str(first.folder))
    second = train(config)
    assert [line["update"] for line in second.history if line["kind"] == "start"] == [10]
    assert second.history[0]["resumed_from"] == str(first.folder / "checkpoints" / "update_00000010")
    path = tmp_path / "nothing"
    with pytest.raises(UserError, match=rf"^run.resume: no complete checkpoint at {path}$"):
        train(digits(tmp_path / "third", run__resume=str(path)))
    with pytest.raises(UserError, match=r"update_00000010: holds a run of another config: model.depth: 2 there, 3 now"):
        train(digits(tmp_path / "third", run__resume=str(first.folder), model__depth=3))
    assert not (tmp_path / "third").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        train(digits(tmp_path / "file" / "run"))
    what = f"{tmp_path}/file/run cannot be written: {tmp_path}/file is no folder: set another"
    assert str(caught.value) == f"run.dir: {what}"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    imports = "import sys, pathlib; from vit_dist.run_folder.lock import FolderLock"
    holding = f"{imports}; lock = FolderLock(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{holding}; print(flush=True); sys.stdin.read()", str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError) as caught:
            train(digits(folder))
        other.stdin.close()
    assert str(caught.value) == f"run.dir: another process trains in {folder}: wait for it, or set another"


def test_bf16_follows_the_curve_of_fp32(tmp_path: Path) -> None:
    runs = [train(digits(tmp_path / name, train__precision=name, log__every="20 updates")) for name in ("fp32", "bf16")]
    losses = [[line["loss"] for line in run.history if line["kind"] == "train"] for run in runs]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[1] != losses[0]
    assert runs[1].history[0]["precision"] == "bf16"
    # The precision that `auto` chose at the start is kept on resume.
    state = tmp_path / "bf16" / "checkpoints" / "last" / "state.json"
    assert read_json(state)["precision"] == "bf16"


FLIPPED = "  note: augment.flip: flipping digits makes them unreadable: set augment.flip 0"


def stopping_at(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the next run of `signalling_digits` in this process after an update; 0: stop none."""
    custom_losses.forwards = 0
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", str(3 * update))


def signalling_digits(folder: Path, **more: Any) -> Config:
    own = {"loss__name": "tests.custom_losses:signalling", "log__every": "4 updates", "augment__flip": 0.5}
    return digits(folder, **own, train__duration="8 updates", log__trackers="none", **more)


def arguments_of(config: Config, path: Path) -> list[str]:
    """Write the config and return the arguments of `vit-dist` that train it."""
    path.write_text(yaml.safe_dump(config.to_dict()))
    return ["train", "--config", str(path)]


def test_the_warning_level_prints_notes_and_errors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = signalling_digits(tmp_path / "run", log__level="warning")
    stopping_at(3, monkeypatch)
    assert train(config).stopped
    printed = capsys.readouterr()
    stopped = "stopped at update 3 of 8; nothing is lost: the same command goes on from there"
    assert (printed.out.splitlines(), printed.err) == ([FLIPPED, stopped], "")
    stopping_at(0, monkeypatch)
    assert not train(config).stopped
    printed = capsys.readouterr()
    assert (printed.out.splitlines(), printed.err) == ([FLIPPED], "")
    assert not (config.folder / "report").exists()
    # A finished run that is opened again prints nothing.
    train(config)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    again = train(signalling_digits(tmp_path / "run"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{config.folder}: finished before; to go on: --run.dir {config.folder} and a longer --train.duration",
        f"finished: {again.summary['test']['top1']:.1f} % on test" + lines[1][lines[1].index(" (±") :],
    ]
    other = signalling_digits(tmp_path / "run", log__level="warning", optimizer__lr=0.5)
    assert main(arguments_of(other, tmp_path / "config.yaml")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"vit-dist: {config.folder}: holds a run of another config: optimizer.lr: 0.001 there, 0.5 now: "
        "set another run.dir, or change these back"
    ]


def test_a_report_is_written_at_the_end_and_its_failure_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped run is resumed twice: in this process, and in another with a file in place of the report's folder."""
    config = signalling_digits(tmp_path / "run", log__report=True)
    folder, copy = config.folder, tmp_path / "copy"
    stopping_at(3, monkeypatch)
    assert train(config).stopped
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "stopped at update 3 of 8; nothing is lost: the same command goes on from there"
    assert not (folder / "report").exists()
    stopping_at(0, monkeypatch)
    shutil.copytree(folder, copy, symlinks=True)

    assert not train(config).stopped
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run: resumed from update 3 of 8 (epoch 0.")
    assert FLIPPED in lines
    main_lines = [line for line in lines if line.startswith(("first", "update", "epoch", "val", "test", "finished"))]
    assert [re.split(r"  | after|:", line)[0] for line in main_lines] == [
        "first update",
        "update 4/8",
        "update 8/8",
        "epoch 0.3",
        "test, weights of update 8",
        "finished",
    ]
    page = folder / "report" / "index.html"
    assert page.read_text().lstrip().startswith("<!")
    end = lines.index("next")
    assert lines[end - 1].split() == ["report", *f"{page}: open it in a browser".split()]
    assert lines[end + 1] == "  The run is short: it makes few updates."
    assert lines[-3].split() == [*f"vit-dist predict {folder} IMAGE … classify images of your own".split()]

    (copy / "report").write_text("not a folder")
    elsewhere = signalling_digits(copy, log__report=True, log__level="debug")
    command = [sys.executable, "-m", "vit_dist", *arguments_of(elsewhere, tmp_path / "config.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0
    printed = done.stdout.splitlines()
    assert [line for line in printed if line.strip().startswith("report")] == [
        f"report: {copy / 'report'} cannot be written: File exists"
    ]
    assert printed[-1].split()[:3] == ["vit-dist", "export", str(copy)]
    assert status(copy)["state"] == "finished"
    assert read_json(copy / "summary.json")["test"] == read_json(folder / "summary.json")["test"]
    assert (copy / "report").read_text() == "not a folder"
    # `debug` shows the libraries' own logs, except those of Matplotlib and Pillow.
    assert "DEBUG:a_library:its own log" in done.stderr.splitlines()
    assert not [line for line in done.stderr.splitlines() if line.startswith(("DEBUG:matplotlib", "DEBUG:PIL"))]
    assert "Traceback" not in done.stderr


def rows_of_reports(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("report")]


def test_the_summary_names_only_a_current_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is replaced by a stub that writes a file, since drawing takes seconds."""

    def drawn(self: Run, out: Path | None = None) -> Path:
        page = self.folder / "report" / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.touch()
        return page

    monkeypatch.setattr(Run, "report", drawn)
    folder = tmp_path / "run"
    page = folder / "report" / "index.html"
    row = f"report   {page}: open it in a browser"

    def of(length: int, **more: Any) -> list[str]:
        train(digits(folder, train__duration=f"{length} updates", schedule__warmup="0%", **more))
        return rows_of_reports(capsys)

    assert of(2, log__report=True) == [row]
    # Opened again, the summary names the report that is there.
    assert of(2, log__report=True) == of(2) == [row]
    # Made longer without a report, the run has an outdated one.
    assert of(4) == []
    assert page.is_file()
    # Opened again, it is drawn: a process that was killed while it drew has left it undone.
    assert of(4, log__report=True) == [row]
    page.unlink()
    assert of(4, log__report=True) == [row]
    assert page.is_file()

    def failing(self: Run, out: Path | None = None) -> Path:
        raise ValueError("no such\n  colour")

    monkeypatch.setattr(Run, "report", failing)
    assert of(6, log__report=True) == ["report: ValueError: no such colour"]
    assert status(folder)["state"] == "finished"

    def refusing(self: Run, out: Path | None = None) -> Path:
        raise UserError("report: a person's mistake " + 300 * "!")

    monkeypatch.setattr(Run, "report", refusing)
    assert of(8, log__report=True) == [("report: a person's mistake " + 300 * "!")[:200]]
    page.unlink()
    assert of(8) == []

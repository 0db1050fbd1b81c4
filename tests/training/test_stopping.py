"""A run that is asked to stop, by whatever means and in whatever phase, saves and goes on later as if it had not."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tests import custom_losses
from tests.training.test_kill_points import CONFIG, config, result
from vit_dist import Config, Run, UserError, train
from vit_dist.data.sources.open import open_data
from vit_dist.files import read_json
from vit_dist.models.build import build_model
from vit_dist.run_folder.status import status
from vit_dist.runtime.flags import Flags, Stopped

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the run leaves that is not stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config(folder))
    return result(folder)


def train_acting(folder: Path, forward: int, act: Callable[[], None], **fields: Any) -> Run:
    """Train; do something in one of the forward passes of the training."""
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    custom_losses.forwards, custom_losses.actions = 0, {forward: act}
    values = {**CONFIG, "run.dir": str(folder), "loss.name": "tests.custom_losses:acting", **changes}
    try:
        return train(Config.load("digits", values))
    finally:
        custom_losses.actions = {}


def train_evaluating(folder: Path, number: int, act: Callable[[], None]) -> Run:
    """Train; do something before the forward pass of evaluation with this number, from 1."""
    settings = config(folder)
    model = build_model(settings.model, classes=10, channels=1, image_size=8, seed=settings.run.seed)
    passes = -1  # the first one shows, before training, that the model fits

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += not module.training
        if passes == number and not module.training:
            act()

    model.register_forward_pre_hook(before)
    return train(settings, model=model)


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def last_line(run: Run) -> dict[str, Any]:
    return run.history[-1]


@pytest.mark.parametrize("number", SIGNALS)
def test_each_stop_signal_saves_and_stops(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup leaves SIGHUP, which a run then ignores too
        signal.signal(number, signal.SIG_DFL)
    handler = signal.getsignal(number)
    run = train_acting(folder, 3, send(number), checkpoint__every="100%")
    assert run.stopped
    assert last_line(run)["reason"] == f"asked to stop ({number.name})"
    assert status(folder)["state"] == "stopped"
    assert read_json(folder / "checkpoints" / "last" / "state.json")["train_state"]["position"] == 3
    assert signal.getsignal(number) == handler
    assert not train_acting(folder, -1, send(number), checkpoint__every="100%").stopped


# The first pass counts FLOPs. An evaluation passes each batch with the raw weights and with the average: four passes at
# updates 2, 4, 6 and 7, then ten of test. It is given up before its next batch.
@pytest.mark.parametrize(
    ("number", "position", "due"),
    [(2, 2, True), (7, 4, True), (14, 7, True), (18, 7, False), (24, 7, False)],
)
def test_a_stop_in_an_evaluation_saves_first_and_evaluates_when_resumed(
    number: int, position: int, due: bool, expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert train_evaluating(folder, number, send(signal.SIGTERM)).stopped
    state = read_json(folder / "checkpoints" / "last" / "state.json")["train_state"]
    assert (state["position"], state["evaluation_due"]) == (position, due)
    assert not (folder / "summary.json").exists()
    assert not train(config(folder)).stopped
    assert result(folder) == expected


def test_an_evaluation_that_is_due_waits_for_the_save(expected: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # The same loss, by another name.
    values = {**CONFIG, "run.dir": str(folder), "loss.name": "tests.custom_losses:acting", "loss.label_smoothing": 0.0}
    whole = {**values, "run.dir": str(tmp_path / "whole")}
    train(Config.load("digits", whole))
    for forward in (4, 3):  # at update 4, and at update 7
        custom_losses.forwards, custom_losses.actions = 0, {forward: send(signal.SIGUSR1)}
        run = train(Config.load("digits", values))
        assert run.stopped
        assert [line["kind"] for line in run.history[-2:]] == ["save", "stop"]
        assert read_json(folder / "checkpoints" / "last" / "state.json")["train_state"]["evaluation_due"]
    custom_losses.actions = {}
    assert not train(Config.load("digits", values)).stopped
    assert result(folder) == result(tmp_path / "whole")
    assert result(folder) != expected


class StoppingSource:
    """A source whose images stop the run while they are opened."""

    def __init__(self) -> None:
        digits = open_data(Config.load("digits", {}).data).splits["train"]
        self.labels, self.inner = digits.labels, digits.source

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return self.inner.image(index)


def test_a_stop_while_data_is_opened_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(config(tmp_path / "run"), source=StoppingSource())
    assert not (tmp_path / "run").exists()


def test_the_time_limit_stops_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = {**CONFIG, "run.dir": str(folder), "train.duration": "1000000 updates", "evaluate.every": "100%"}
    values |= {"schedule.name": "constant", "schedule.args": {}, "checkpoint.every": "100%", "log.every": "100 updates"}
    run = train(Config.load("digits", {**values, "run.time_limit": "0.8 seconds"}))
    assert run.stopped
    assert last_line(run)["reason"] == "asked to stop (run.time_limit)"
    first = last_line(run)["update"]
    again = train(Config.load("digits", {**values, "run.time_limit": "0.8 seconds"}))
    assert last_line(again)["update"] > first > 0


def test_checkpoints_can_go_by_the_clock(tmp_path: Path) -> None:
    values = {**CONFIG, "evaluate.every": "100%", "checkpoint.keep": 20, "run.dir": str(tmp_path / "run")}
    run = train(Config.load("digits", {**values, "checkpoint.every": "0.000001 minutes"}))
    assert [line["update"] for line in run.history if line["kind"] == "save"] == [1, 2, 3, 4, 5, 6, 7]
    rarely = {**values, "checkpoint.every": "10 hours", "run.dir": str(tmp_path / "rarely")}
    run = train(Config.load("digits", rarely))
    assert [line["update"] for line in run.history if line["kind"] == "save"] == [7]


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        flags = Flags()
        with flags.on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flags.agreed().stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_while_modules_are_imported_gives_no_traceback(tmp_path: Path) -> None:
    # Python's own handler, which a shell's background job does not have.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler)\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "pydantic.py").write_text(f"import os, signal\n{interrupt}")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    done = subprocess.run([sys.executable, "-m", "vit_dist", "train"], env=environ, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_a_run_whose_launcher_is_gone_saves_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = {**CONFIG, "run.dir": str(folder), "train.duration": "1000000 updates", "evaluate.every": "100%"}
    values |= {"schedule.name": "constant", "schedule.args": {}, "log.level": "info", "log.every": "10 updates"}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "vit_dist"]
    launcher = subprocess.Popen([*launch, "train", *flags], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert any(line.startswith("update ") for line in launcher.stdout)
    launcher.kill()
    launcher.wait()
    with (folder / ".lock").open("r+") as lock:
        signal.alarm(60)
        fcntl.lockf(lock, fcntl.LOCK_EX)  # free once the run has ended
        signal.alarm(0)
    launcher.stdout.close()
    ended = status(folder)
    assert ended["state"] == "stopped"
    assert read_json(folder / "checkpoints" / "last" / "state.json")["train_state"]["position"] == ended["update"] > 0


def test_a_stop_after_the_folder_was_claimed_is_told_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes with the first line that the run prints."""
    write = sys.stdout.write

    def stopping(text: str) -> int:
        if text.startswith("run: new run"):
            os.kill(os.getpid(), signal.SIGTERM)
        return write(text)

    monkeypatch.setattr(sys.stdout, "write", stopping)
    with pytest.raises(Stopped):
        train(Config.load("digits", {**CONFIG, "log.level": "info", "run.dir": str(tmp_path / "run")}))
    assert status(tmp_path / "run")["state"] == "stopped"
    monkeypatch.undo()
    assert not train(config(tmp_path / "run")).stopped


def test_a_save_that_fails_ends_the_run_after_the_next_update(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def block() -> None:
        (folder / "checkpoints" / ".writing_update_00000003").write_text("in the way")

    with pytest.raises(UserError, match=r"checkpoints: a checkpoint cannot be written: \[Errno 17\] File exists"):
        train_acting(folder, 2, block)
    ended = status(folder)
    assert (ended["state"], ended["update"] <= 5) == ("failed", True)
    assert "a checkpoint cannot be written" in ended["reason"]
    (folder / "checkpoints" / ".writing_update_00000003").unlink()
    assert not train_acting(folder, -1, block).stopped


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_acting(tmp_path / "run", 3, twice)
    assert status(tmp_path / "run")["state"] == "failed"
    assert not train_acting(tmp_path / "run", -1, twice).stopped

"""W&B when it fails: servers that answer 500, nothing, or that a key is wrong; its processes stopped or killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.telemetry.test_trackers import Wandb
from tests.telemetry.wandb_server import serving, silent
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.config.output_fields import LogConfig
from vit_dist.telemetry import trackers as trackers_module
from vit_dist.telemetry import wandb_process, wandb_run
from vit_dist.telemetry.trackers import Trackers
from vit_dist.telemetry.wandb_process import service_processes
from vit_dist.telemetry.wandb_run import WandbRun

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
KEY = "a" * 40


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in, and wait for less time than a user's run."""
    for name in ("WANDB_MODE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(trackers_module, "_SECONDS_TO_START", 30)
    monkeypatch.setattr(wandb_run, "SECONDS_TO_FINISH", 1)


def trackers_in(folder: Path, notes: list[str]) -> Trackers:
    config = Config(run=RunConfig(dir=str(folder), device="cpu"), log=LogConfig(trackers="wandb"))
    return Trackers(config, notes.append, enabled=True)


def of_wandb(trackers: Trackers) -> WandbRun:
    run = trackers._trackers["wandb"]
    assert isinstance(run, WandbRun)
    return run


def line(update: int) -> dict[str, object]:
    return {"kind": "train", "time": 1.0, "update": update, "loss": 0.5}


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_of(processes: list[int], seconds: float = 20) -> list[int]:
    """The processes that still live after a while."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(map(is_alive, processes)):
        time.sleep(0.02)
    return [process for process in processes if is_alive(process)]


def port_of_nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def broken_servers() -> dict[str, tuple[Callable[[ExitStack], dict[str, str]], str]]:
    """Name → (function that starts it and returns the environment that names it, what is told)."""

    def answering(status: int) -> Callable[[ExitStack], dict[str, str]]:
        def start(stack: ExitStack) -> dict[str, str]:
            return {"WANDB_BASE_URL": f"http://127.0.0.1:{stack.enter_context(serving(status)).server_port}"}

        return start

    def quiet(stack: ExitStack) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{stack.enter_context(silent())}"}

    def proxy_gone(stack: ExitStack) -> dict[str, str]:
        return {"HTTPS_PROXY": f"http://127.0.0.1:{port_of_nobody()}"}

    def odd_key(stack: ExitStack) -> dict[str, str]:
        return {**quiet(stack), "WANDB_API_KEY": "short"}

    late = "no answer within 1 s"
    return {
        "answers 500": (answering(500), late),
        "is silent": (quiet, late),
        "proxy is gone": (proxy_gone, late),
        "refuses the key": (answering(401), "no such key"),
        "key of another form": (odd_key, "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."),
    }


@pytest.mark.parametrize("kind", list(broken_servers()))
def test_a_server_that_does_not_work_means_offline(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, reason = broken_servers()[kind]
    if "no answer" in reason:
        monkeypatch.setattr(trackers_module, "_SECONDS_TO_START", 1)
    notes: list[str] = []
    trackers = trackers_in(tmp_path, notes)
    with ExitStack() as stack:
        for name, value in start(stack).items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        trackers.start(None)
        took = time.monotonic() - began
    processes = [of_wandb(trackers)._process.pid, *of_wandb(trackers)._service]
    trackers.log(line(1))
    trackers.end()
    assert notes == [f"wandb: offline ({reason}); later: wandb sync {tmp_path / 'wandb'}/offline-run-*"]
    assert took < 1 + 15  # that long only where importing wandb is slow
    assert left_of(processes) == []
    assert service_processes(os.getpid()) == []
    (path,) = tmp_path.glob(f"wandb/offline-run-*/run-{trackers.run_id}.wandb")
    assert Wandb.read(path).lines[1]["train/loss"] == 0.5


def test_a_server_that_works_gets_values_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run, "SECONDS_TO_FINISH", 30)
    notes: list[str] = []
    trackers = trackers_in(tmp_path, notes)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        trackers.start("abcd1234")
        trackers.log(line(1))
        trackers.write("a line of output")
        trackers.end()
    assert trackers.run_id == "abcd1234"
    assert notes == [f"wandb: http://127.0.0.1:{server.server_port}/me/vit_dist/runs/abcd1234"]
    assert any('"train/loss":0.5' in text for text in server.held)
    assert any(text.endswith("a line of output") for text in server.held)


def test_a_server_that_dies_later_bounds_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    trackers = trackers_in(tmp_path, notes)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        trackers.start(None)
        server.status = 500
        processes = [of_wandb(trackers)._process.pid, *of_wandb(trackers)._service]
        trackers.log(line(1))
        began = time.monotonic()
        trackers.end()
        took = time.monotonic() - began
    assert took < 1 + 2 + 3
    path = f"{tmp_path / 'wandb'}/*run-*-{trackers.run_id}"
    assert notes[1:] == [f"wandb: not finished within 1 s; what is missing there: wandb sync {path}"]
    assert left_of(processes) == []
    assert list(tmp_path.glob("wandb/run-*/*.wandb")) != []


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Trackers, list[str], list[int]]]:
    """Yield trackers that run offline, their notes and their processes: ours, then W&B's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    notes: list[str] = []
    trackers = trackers_in(tmp_path, notes)
    trackers.start(None)
    run = of_wandb(trackers)
    processes = [run._process.pid, *run._service]
    assert len(processes) == 2
    yield trackers, notes[1:], processes
    assert left_of(processes) == []


@pytest.mark.parametrize("place", [0, 1])
def test_a_stopped_process_holds_up_nothing(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: tuple[Trackers, list[str], list[int]]
) -> None:
    trackers, _, processes = offline
    notes: list[str] = []
    trackers.say = notes.append
    os.kill(processes[place], signal.SIGSTOP)
    longest = 0.0
    for update in range(1, 20_001):
        began = time.perf_counter()
        trackers.log(line(update))
        longest = max(longest, time.perf_counter() - began)
    assert longest < 0.5
    assert notes == ["wandb: takes nothing at the moment: some lines are left out; metrics.jsonl has them all"]
    began = time.monotonic()
    trackers.end()
    assert time.monotonic() - began < 1 + 2 + 3
    assert notes[1].startswith("wandb: not finished within 1 s; what is missing there: wandb sync ")
    assert len(notes) == 2


def test_a_line_of_an_earlier_update_goes_to_the_latest_step(
    tmp_path: Path, offline: tuple[Trackers, list[str], list[int]]
) -> None:
    trackers, _, _ = offline
    trackers.log(line(10))
    trackers.log({"kind": "save", "time": 1.0, "update": 5, "stall_seconds": 0.25})
    trackers.log(line(11))
    trackers.end()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    lines = Wandb.read(path).lines
    assert (lines[10]["save/stall_seconds"], lines[10]["train/loss"]) == (0.25, 0.5)
    assert sorted(lines) == [10, 11]


@pytest.mark.parametrize("place", [0, 1])
def test_a_killed_process_is_told_once(place: int, offline: tuple[Trackers, list[str], list[int]]) -> None:
    trackers, _, processes = offline
    notes: list[str] = []
    trackers.say = notes.append
    trackers.log(line(1))
    os.kill(processes[place], signal.SIGKILL)
    assert left_of(processes[place : place + 1]) == []
    for update in range(2, 50):
        trackers.log(line(update))
    trackers.end()
    path = f"{trackers.config.folder / 'wandb'}/*run-*-{trackers.run_id}"
    told = f"wandb: its process has ended; what is missing there: wandb sync {path}"
    assert [note.removesuffix(": continuing without it") for note in notes] == [told]


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_run_that_was_killed(stopped: bool, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.config.output_fields import LogConfig
from vit_dist.telemetry import wandb_process
from vit_dist.telemetry.trackers import Trackers

trackers = Trackers(Config(run=RunConfig(dir={str(tmp_path)!r}), log=LogConfig(trackers="wandb")), print, enabled=True)
trackers.start(None)
run = trackers._trackers["wandb"]
print("processes", run._process.pid, *run._service, flush=True)
if {stopped}:
    os.kill(run._service[0], signal.SIGSTOP)
trackers.log({{"kind": "train", "time": 1.0, "update": 1, "loss": 0.5}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=80,
    )
    processes = [int(number) for number in done.stdout.split("processes")[1].split()]
    assert len(processes) == 2
    assert left_of(processes, 30 if stopped else 10) == []


def test_the_times_that_are_waited_are_those_that_the_docs_name() -> None:
    text = (REPOSITORY / "docs" / "looking.md").read_text(encoding="utf-8")
    assert f"{wandb_process.SECONDS_TO_FINISH} seconds" in text

"""A run does not outlive its launcher: once that has been ended or killed, the run saves, and none of it is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.runtime.test_launch import ACCELERATE, environment, free_port
from vit_dist.run_folder.status import status

LAUNCHERS = {
    "accelerate": [*ACCELERATE, "--cpu"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
}
MARK = "VIT_DIST_TESTED"
# Prints, and then takes for ever to be imported, as a run's own code.
SLOW = "import time\nprint('importing', flush=True)\nwhile True:\n    time.sleep(60)\n"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")


@pytest.fixture
def reaper() -> Iterator[None]:
    """Make this process the parent of those whose own has ended, so that it learns their exit codes."""
    libc = ctypes.CDLL(None)
    set_child_subreaper = 36
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(set_child_subreaper, 0, 0, 0, 0) == 0


def marked(mark: str) -> set[int]:
    """Return the ids of the processes that run with a mark in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def exit_codes(processes: set[int]) -> set[int]:
    """Wait until each of these children of this process has ended; return their exit codes."""
    deadline, codes = time.monotonic() + 60, set()
    for process in processes:
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, f"process {process} goes on"
            time.sleep(0.05)
        codes.add(os.waitstatus_to_exitcode(ended[1]))
    return codes


def end_launcher(name: str, number: signal.Signals, folder: Path, until: str, *flags: str) -> tuple[set[int], str]:
    """Launch a run, and end its launcher by a signal once a line starts with `until`.

    Return the exit codes of the run's processes, and what was printed.
    """
    command = [*LAUNCHERS[name], *([free_port()] if name == "torchrun" else []), "scripts/train.py", *flags]
    command += ["--run.dir", str(folder), "--run.device", "cpu", "--log.every", "1 updates", "--log.trackers", "none"]
    environ = {
        **environment(),
        MARK: str(folder),
        "PYTHONPATH": f"{REPOSITORY}:{folder.parent}",
        "PYTHONUNBUFFERED": "1",
    }
    output = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environ, stdout=output, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        assert launcher.stdout is not None
        printed = ""
        for line in launcher.stdout:
            printed += line
            if line.startswith(until):
                break
        run = marked(str(folder)) - {launcher.pid}
        launcher.send_signal(number)
        launcher.wait(60)
        codes = exit_codes(run - {0})
        printed += launcher.stdout.read()
    assert marked(str(folder)) == set()
    return codes, printed


@pytest.mark.usefixtures("reaper")
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("accelerate", signal.SIGTERM),
        pytest.param("accelerate", signal.SIGKILL, marks=pytest.mark.slow),
        ("torchrun", signal.SIGKILL),
    ],
)
def test_a_run_saves_when_its_launcher_ends(name: str, number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes, printed = end_launcher(name, number, folder, "update 3/")
    assert codes == {75}, printed
    at = status(folder)["update"]
    assert status(folder)["state"] == "stopped"
    assert at >= 3
    assert (folder / "checkpoints" / f"update_{at:08d}" / "manifest.json").is_file()


@pytest.mark.usefixtures("reaper")
@pytest.mark.parametrize("name", ["accelerate", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_run_that_is_set_up_ends_with_its_launcher(name: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    folder = tmp_path / "run"
    codes, printed = end_launcher(name, signal.SIGKILL, folder, "importing", "--loss.name", "slow:loss")
    assert codes == {75}, printed
    assert "vit-dist: stopped before the first update; the same command starts again" in printed

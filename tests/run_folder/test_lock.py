"""The lock on a run's folder, between real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from vit_dist.errors import UserError
from vit_dist.run_folder.lock import FolderLock, is_held

pytest.importorskip("fcntl")

_START = (
    "import os, sys\nfrom pathlib import Path\n"
    "from vit_dist.run_folder.lock import FolderLock\nfrom vit_dist.errors import UserError\n"
)
# Holds the folder from its first output to the end of its input.
HOLDS = _START + "lock = FolderLock(Path(sys.argv[1]))\nprint('holds', flush=True)\nsys.stdin.read()\n"
RELEASES = (
    _START + "lock = FolderLock(Path(sys.argv[1]))\nlock.release()\nprint('released', flush=True)\nsys.stdin.read()\n"
)
ASKS = (
    _START
    + "try:\n    FolderLock(Path(sys.argv[1]))\n    print('holds')\nexcept UserError as error:\n    print(error)\n"
)
# Exits at once and leaves a process that it forked while it held the folder.
LEAVES_A_WORKER = _START + (
    "lock = FolderLock(Path(sys.argv[1]))\n"
    "if os.fork() == 0:\n    sys.stdin.read()\nelse:\n    print('holds', flush=True)\n    os._exit(0)\n"
)


@contextmanager
def process(code: str, folder: Path, first_line: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process and wait for its first line of output; its input ends with the block."""
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{first_line}\n"
        yield running


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        FolderLock(folder)
    return str(error.value)


def text(folder: Path) -> str:
    return f"run.dir: another process trains in {folder}: wait for it, or set another"


def test_a_folder_that_another_process_holds_is_refused_until_it_exits(tmp_path: Path) -> None:
    with process(HOLDS, tmp_path, "holds") as running:
        assert refusal(tmp_path) == text(tmp_path)
        assert refusal(tmp_path) == text(tmp_path)
        running.communicate()
        assert running.returncode == 0
        FolderLock(tmp_path).release()


def test_a_killed_process_releases_the_folder(tmp_path: Path) -> None:
    with process(HOLDS, tmp_path, "holds") as running:
        assert refusal(tmp_path) == text(tmp_path)
        running.kill()
        running.wait()
        FolderLock(tmp_path).release()


def test_release_frees_the_folder_before_the_process_ends(tmp_path: Path) -> None:
    with process(RELEASES, tmp_path, "released") as running:
        FolderLock(tmp_path).release()
        assert running.poll() is None


def test_a_worker_that_outlives_its_process_does_not_hold_the_folder(tmp_path: Path) -> None:
    with process(LEAVES_A_WORKER, tmp_path, "holds") as running:
        running.wait()
        assert not is_held(tmp_path)
        lock = FolderLock(tmp_path)
        assert is_held(tmp_path)
        lock.release()


def test_a_lock_in_this_process_refuses_other_processes_in_the_same_folder_only(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    lock = FolderLock(tmp_path)
    answers = []
    for folder in (tmp_path, other):
        run = subprocess.run(
            [sys.executable, "-c", ASKS, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        answers.append(run.stdout)
    lock.release()
    assert answers == [f"{text(tmp_path)}\n", "holds\n"]


def test_a_folder_is_held_as_long_as_its_process_lives(tmp_path: Path) -> None:
    assert not is_held(tmp_path)  # there is no lock file
    assert list(tmp_path.iterdir()) == []
    with process(HOLDS, tmp_path, "holds") as running:
        assert is_held(tmp_path)
        assert is_held(tmp_path)
        # Asking does not take the lock from its holder.
        assert refusal(tmp_path) == text(tmp_path)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert (tmp_path / ".lock").is_file()
        assert not is_held(tmp_path)
        # The asking process does not keep the lock either.
        run = subprocess.run(
            [sys.executable, "-c", ASKS, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert run.stdout == "holds\n"


def test_a_released_folder_is_not_held(tmp_path: Path) -> None:
    with process(RELEASES, tmp_path, "released") as running:
        assert not is_held(tmp_path)
        assert running.poll() is None


def test_a_folder_on_storage_without_locks_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object) -> None:
        raise OSError("no locks here")

    (tmp_path / ".lock").touch()
    assert not is_held(tmp_path)
    monkeypatch.setattr("fcntl.lockf", refuses)
    assert is_held(tmp_path)
    assert not is_held(tmp_path / "gone")


def test_asking_does_not_release_a_lock_of_this_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert is_held(tmp_path)
    imports = "from pathlib import Path; from vit_dist.run_folder.lock import is_held"
    code = f"{imports}; print(is_held(Path({str(tmp_path)!r})))"
    asked = [sys.executable, "-c", code]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == "True"
    lock.release()
    assert not is_held(tmp_path)

"""One process at a time in a folder, between real processes."""

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
# Holds the folder from its first word to the end of its input.
HOLDS = _START + "lock = FolderLock(Path(sys.argv[1]))\nprint('holds', flush=True)\nsys.stdin.read()\n"
RELEASES = (
    _START + "lock = FolderLock(Path(sys.argv[1]))\nlock.release()\nprint('released', flush=True)\nsys.stdin.read()\n"
)
ASKS = (
    _START
    + "try:\n    FolderLock(Path(sys.argv[1]))\n    print('holds')\nexcept UserError as error:\n    print(error)\n"
)
# Ends at once, and leaves a process behind that it forked while it held the folder.
LEAVES_A_WORKER = _START + (
    "lock = FolderLock(Path(sys.argv[1]))\n"
    "if os.fork() == 0:\n    sys.stdin.read()\nelse:\n    print('holds', flush=True)\n    os._exit(0)\n"
)


@contextmanager
def process(code: str, folder: Path, says: str) -> Iterator[subprocess.Popen[str]]:
    """A process at the point where it has said its word; its input ends with the block."""
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{says}\n"
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


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with process(HOLDS, tmp_path, "holds") as running:
        assert refusal(tmp_path) == text(tmp_path)
        running.kill()
        running.wait()
        FolderLock(tmp_path).release()


def test_release_frees_the_folder_while_its_process_lives(tmp_path: Path) -> None:
    with process(RELEASES, tmp_path, "released") as running:
        FolderLock(tmp_path).release()
        assert running.poll() is None


def test_a_worker_that_outlives_its_process_holds_nothing(tmp_path: Path) -> None:
    with process(LEAVES_A_WORKER, tmp_path, "holds") as running:
        running.wait()
        FolderLock(tmp_path).release()


def test_this_process_refuses_others_and_other_folders_are_free(tmp_path: Path) -> None:
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


def test_a_folder_is_held_for_as_long_as_its_process_lives(tmp_path: Path) -> None:
    assert not is_held(tmp_path)  # no file of a lock
    assert list(tmp_path.iterdir()) == []
    with process(HOLDS, tmp_path, "holds") as running:
        assert is_held(tmp_path)
        assert is_held(tmp_path)
        # To ask takes nothing from its holder.
        assert refusal(tmp_path) == text(tmp_path)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert (tmp_path / ".lock").is_file()
        assert not is_held(tmp_path)
        # Nor does the asking process keep it.
        run = subprocess.run(
            [sys.executable, "-c", ASKS, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert run.stdout == "holds\n"


def test_a_folder_that_was_freed_is_not_held(tmp_path: Path) -> None:
    with process(RELEASES, tmp_path, "released") as running:
        assert not is_held(tmp_path)
        assert running.poll() is None


def test_a_folder_that_does_not_tell_may_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: object) -> None:
        raise OSError("no locks here")

    (tmp_path / ".lock").touch()
    assert not is_held(tmp_path)
    monkeypatch.setattr("fcntl.lockf", refuses)
    assert is_held(tmp_path)
    assert not is_held(tmp_path / "gone")


def test_asking_does_not_free_what_this_process_holds(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert is_held(tmp_path)
    imports = "from pathlib import Path; from vit_dist.run_folder.lock import is_held"
    code = f"{imports}; print(is_held(Path({str(tmp_path)!r})))"
    asked = [sys.executable, "-c", code]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == "True"
    lock.release()
    assert not is_held(tmp_path)

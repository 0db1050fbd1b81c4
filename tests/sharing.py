"""Folders that are made once for all tests of a session, also when several processes run them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name` of the session; the first process that asks for it calls `make` with its path.

    The others wait until it is made. Tests must not change what is in it.
    """
    session = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    home = session / "made_once" / name
    home.mkdir(parents=True, exist_ok=True)
    folder, done = home / name, home / "done"
    with (home / "lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder

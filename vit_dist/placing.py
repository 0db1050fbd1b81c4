"""Files and folders that get their name when they are whole, and on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vit_dist.values import UserError


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for what `place` makes it; what is there at the end is removed.

    Raises UserError, naming `path`, for what the system refuses.
    """
    hidden = path.with_name(f".writing_{path.name}")
    _remove(hidden)
    try:
        yield hidden
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be written: {reason}: name a place in a folder of yours that exists") from None
    finally:
        _remove(hidden)


def place(hidden: Path, path: Path) -> None:
    """Gives what `aside` named its own name: a file replaces a file, a folder an empty one. Raises OSError."""
    for file in hidden.iterdir() if hidden.is_dir() else ():
        sync(file)
    sync(hidden)
    if hidden.is_dir() and path.is_dir():
        path.rmdir()  # Windows replaces no folder
    hidden.replace(path)
    sync(path.parent)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def require_place(path: Path, flag: str) -> None:
    """Raises UserError, naming the flag that asked for it, where a file cannot be: before the work, not behind it."""
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be written: there is no folder {path.parent}")


def sync(path: Path) -> None:
    """Forces a file or a folder's entries to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The lock on a run's folder: one process at a time."""

from __future__ import annotations

from pathlib import Path

from vit_dist.errors import UserError

_HELD: set[Path] = set()


class FolderLock:
    """Holds a folder for this process for as long as it lives."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises UserError if another process has it."""
        self._folder = folder.resolve()
        self._file = (folder / ".lock").open("a")
        try:
            import fcntl
        except ImportError:
            return
        try:
            # Not flock: worker processes would inherit it, and outlive a killed run for some seconds.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"run.dir: another process trains in {folder}: wait for it, or set another") from None
        except OSError:
            return  # storage that has no locks
        _HELD.add(self._folder)

    def release(self) -> None:
        """Free the folder."""
        _HELD.discard(self._folder)
        self._file.close()


def is_held(folder: Path) -> bool:
    """Return whether a living process has the folder, or may have it: storage without locks does not show it."""
    if folder.resolve() in _HELD:  # opening and closing the file would free it
        return True
    try:
        import fcntl

        with (folder / ".lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True
    return False

"""Local copies of parts of files that are far away, bounded in bytes, shared by all processes of a machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

# The part of the limit that a process may write before it looks at how much there is.
_UNSEEN = 256


class PartCache:
    """Parts of files, each in a file of its own; the ones that were not used for longest make room for others.

    A disk that is full or cannot be written is no error: then less is kept. Several processes may go beyond the limit
    by what each writes between two looks at the whole, 1/256 of it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """folder: for these parts. limit: most bytes in the folder above it, that of all caches."""
        self.folder = folder
        self.limit = limit
        self._unseen = limit  # so that the first part that is kept looks at what is there

    def read(self, name: str, length: int, offset: int, size: int) -> bytes | None:
        """Return bytes of a part that has this length; None if it is not there, or has another."""
        path = self.folder / name
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != length:
                    return None
                file.seek(offset)
                content = file.read(size)
            os.utime(path)
        except OSError:
            return None
        return content

    def keep(self, name: str, content: bytes) -> None:
        """Keep a part, if that is possible."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, hidden = tempfile.mkstemp(dir=self.folder, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                os.replace(hidden, self.folder / name)
            except OSError:
                os.unlink(hidden)
                raise
            self._unseen += len(content)
            if self._unseen >= self.limit // _UNSEEN:
                self._make_room()
                self._unseen = 0

    def forget(self, name: str) -> bool:
        """Remove a part; return whether it was there."""
        try:
            (self.folder / name).unlink()
        except OSError:
            return False
        return True

    def _make_room(self) -> None:
        """Remove the parts that were not used for longest, until a tenth of the limit is free."""
        found: list[tuple[int, int, str]] = []
        for folder in self.folder.parent.iterdir():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self.limit:
            return
        for _, size, path in sorted(found):
            if total <= self.limit * 0.9:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size

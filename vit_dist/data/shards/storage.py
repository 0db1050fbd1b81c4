"""Read parts of the files in a folder: any number of files, few of them open at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

# More than a window of shards, at most 100, and one more for each lane that begins another.
_MOST_OPEN = 128


class Storage(Protocol):
    """Files of one folder, wherever it is. opened: how many files this process has opened so far."""

    opened: int

    @property
    def name(self) -> str:
        """The folder, for people."""

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return bytes of a file; fewer where it ends before. Raises OSError."""

    def forget(self, file: str, offset: int, size: int) -> bool:
        """Remove the local copy of bytes of a file, which may be damaged; return whether there was one."""


class LocalFolder:
    """The files in a folder of this machine. Processes that inherit it open files of their own."""

    def __init__(self, root: Path, most_open: int = _MOST_OPEN) -> None:
        self.root = root
        self.most_open = most_open
        self.opened = 0
        self._files: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()

    @property
    def name(self) -> str:
        """The folder, for people."""
        return str(self.root)

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return bytes of a file; fewer where it ends before. Raises OSError."""
        descriptor = self._descriptor(file)
        content = _read_at(descriptor, offset, size)
        while 0 < len(content) < size:  # a signal, or more than 2 GiB
            more = _read_at(descriptor, offset + len(content), size - len(content))
            if not more:
                break
            content += more
        return content

    def forget(self, file: str, offset: int, size: int) -> bool:
        """Return False: the files are no copies."""
        return False

    def _descriptor(self, file: str) -> int:
        if self._process != os.getpid():  # after a fork: what is open there stays open there
            self._close()
            self._process = os.getpid()
        descriptor = self._files.get(file)
        if descriptor is None:
            descriptor = os.open(self.root / file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self.opened += 1
            self._files[file] = descriptor
            if len(self._files) > self.most_open:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(file)
        return descriptor

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "most_open": self.most_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        """Close the files."""
        self._close()


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows, where a process has its files for itself
    return os.read(descriptor, size)

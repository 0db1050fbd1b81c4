"""Write the files that a run can go on without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vit_dist.errors import one_line


class Outputs:
    """Writes a run's files other than its checkpoints. A failure never ends the run: it is said once and tried again.

    failing: path → what is wrong, for the files that could not be written when last tried.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: prints a line for the user."""
        self.failing: dict[Path, str] = {}
        self._say = say
        self._late: dict[Path, Callable[[], None]] = {}

    def write(self, path: Path, write: Callable[[], None]) -> None:
        """Call a function that writes a file. If it fails, call it again after the next file that is written."""
        if not self._attempt(path, write):
            self._late[path] = write
            return
        self._late.pop(path, None)
        self.retry()

    def retry(self) -> None:
        """Write what could not be written before, as far as that works now."""
        for path, write in list(self._late.items()):
            if self._attempt(path, write):
                del self._late[path]

    def _attempt(self, path: Path, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            if path not in self.failing:
                self.failing[path] = error.strerror or one_line(error)
                self._say(f"{path}: cannot be written: {self.failing[path]}: the run goes on and tries it again")
            return False
        if self.failing.pop(path, None):
            self._say(f"{path}: written again")
        return True

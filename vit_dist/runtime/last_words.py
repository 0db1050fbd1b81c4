"""What a process says before it is ended: the store, the storage or the reader of its output may hang or be gone."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable

from vit_dist.errors import visible_lines

_LONGEST = 5.0  # seconds for each


def attempt(*acts: Callable[[], object]) -> None:
    """Do all of it at once; what fails, or takes longer than a few seconds, is left."""

    def one(act: Callable[[], object]) -> None:
        with contextlib.suppress(Exception):
            act()

    threads = [threading.Thread(target=one, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONGEST)


def tell(text: str) -> None:
    """Print a text to standard error, as a mistake is printed."""
    for line in visible_lines(text).splitlines():
        print(f"vit-dist: {line}", file=sys.stderr, flush=True)

"""How much memory the system can still give."""

from __future__ import annotations

import contextlib
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that processes can still take, of the machine or of the container; None if nothing says so.

    root: where proc and sys are. What the system keeps of files in memory, and can give back, counts as free.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(1024 * _numbers(root / "proc/meminfo")["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, KeyError):
        group = root / "sys/fs/cgroup"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(limit - used + _numbers(group / "memory.stat")["inactive_file"])
    return max(0, min(found)) if found else None


def _numbers(path: Path) -> dict[str, int]:
    """Return first word → number of the lines of a file of the system."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}

"""The sizes of many files, each looked up once."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_dist.plan.keys import Ints

_AT_A_TIME = 2_000
# From so many seconds a file on, the storage is waited for, and not the processor: then several are asked for at once.
_SLOW, _AT_ONCE = 50e-6, 32


class FileSizes(NamedTuple):
    """Of each file, int64 bytes, -1 if it is not there; and whether it is a regular file."""

    bytes: Ints
    regular: NDArray[np.bool_]

    def missing(self) -> list[int]:
        """Return the numbers of those that are not there."""
        found: list[int] = np.flatnonzero(self.bytes < 0).tolist()
        return found


def file_sizes(names: Sequence[str]) -> FileSizes:
    """Look up the sizes of files, following links: one call of the system for each."""
    sizes = FileSizes(np.full(len(names), -1, np.int64), np.zeros(len(names), np.bool_))

    def look(begin: int) -> None:
        found = [*_look(names[begin : begin + _AT_A_TIME])]
        sizes.bytes[begin : begin + len(found)] = [size for size, _ in found]
        sizes.regular[begin : begin + len(found)] = [regular for _, regular in found]

    begins = range(0, len(names), _AT_A_TIME)
    for done, begin in enumerate(begins):
        start = time.perf_counter()
        look(begin)
        if time.perf_counter() - start > _SLOW * _AT_A_TIME:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(look, begins[done + 1 :]))
            break
    return sizes


def _look(names: Sequence[str]) -> Iterator[tuple[int, bool]]:
    for name in names:
        try:
            status = os.stat(name)
        except (OSError, ValueError):
            yield -1, False
        else:
            yield status.st_size, stat.S_ISREG(status.st_mode)

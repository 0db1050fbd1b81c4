"""Standard output and error at the end of a command."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


def drop_unwritten(stream: TextIO | None) -> str | None:
    """Drop what was printed to a stream and cannot be written, of which Python would complain at its exit.

    Return what is wrong, unless it is that a pipe's reader is gone.
    """
    if stream is None:
        return None
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return None if isinstance(error, BrokenPipeError) else error.strerror
    except ValueError:  # closed
        return None
    return None

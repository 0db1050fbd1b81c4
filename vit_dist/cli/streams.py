"""Standard output and error: what they can print, mistakes in red, and what cannot be written at the end."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import time
from typing import TextIO

from vit_dist.errors import UserError
from vit_dist.runtime.launch import is_first_process, speaks_for_host

_SPEAKER_FIRST = 3.0  # seconds


def prepare_streams() -> None:
    """Let everything be printed: what the encoding lacks as a question mark, and to a closed stream nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (as long as the process)
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


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


def print_mistake(error: UserError) -> None:
    """Print a mistake of the user's, on the process of a run that is to say it."""
    if speaks_for_host(os.environ) if error.speaks is None else error.speaks:
        of_this_host = error.speaks is None and not is_first_process(os.environ)
        where = f"process {os.environ['RANK']} on {socket.gethostname()}: " if of_this_host else ""
        with contextlib.suppress(OSError):
            for line in f"{where}{error}".splitlines():
                print_error(line)
    elif error.speaks is None:
        # All make the same mistake; a launcher ends the others at the end of the first, which is not to be this one.
        time.sleep(_SPEAKER_FIRST)


def print_error(line: str) -> None:
    """Print a mistake to standard error; in red on a terminal, unless NO_COLOR is set. Raises OSError."""
    red = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = line if line.startswith("  ") else f"vit-dist: {line}"  # it goes on with the line above
    print(f"\x1b[31m{text}\x1b[0m" if red else text, file=sys.stderr)

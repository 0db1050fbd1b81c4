"""The loss of the runs that failures.py breaks: it breaks its own process as the environment asks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cross_entropy

AT = 12  # the update at which a run is broken

_forwards = 0


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy, slowly; break this process as the environment asks, once in a run."""
    global _forwards
    values = cross_entropy(logits.float(), targets, reduction="none")
    if not logits.requires_grad:
        return values
    time.sleep(0.05)
    _forwards += 1
    act, stamp = os.environ.get("BREAK", ""), Path(os.environ.get("BREAK_STAMP", ""))
    if act and os.environ.get("RANK", "0") == os.environ["BREAK_RANK"]:
        if act == "image":
            if _forwards == AT - 8:  # workers read ahead
                Path(os.environ["BREAK_FILE"]).write_bytes(b"no image")
            stamp.touch()
        elif _forwards == AT and not stamp.exists():
            stamp.touch()
            _break(act)
    return values


def _break(act: str) -> None:
    if act == "exception":
        raise RuntimeError("a mistake in the loss")
    if act == "disk":
        with contextlib.suppress(OSError), Path(os.environ["BREAK_FILE"]).open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL if act == "kill" else signal.SIGSTOP)

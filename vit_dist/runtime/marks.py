"""Names for the parts of an update, which a profile shows."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.profiler import record_function

# What the code marks, in the order of an update; and what is left out of a profile's sums: evaluations and saves.
UPDATE, PAUSED = "update", "paused"
# A pass is a forward and a backward pass, which cannot be told apart where a CUDA graph is replayed.
PASS = "pass"
DATA_WAIT, AUGMENTATION, FORWARD, BACKWARD, OPTIMIZER = "data wait", "augmentation", "forward", "backward", "optimizer"

_NOTHING = contextlib.nullcontext()


def mark(name: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context that gives its block a name in a profile; without one it does nothing."""
    return record_function(name) if torch.autograd._profiler_enabled() else _NOTHING  # type: ignore[attr-defined]

"""Where gradients lie in DDP's buckets is decided before the first update, and never changes."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel


def fix_buckets(model: DistributedDataParallel) -> None:
    """Make DDP decide now into which buckets gradients go: from the last parameter to the first.

    By itself it decides after the first backward pass. But where a number lies in a bucket decides in which order
    three or more processes add theirs: the first update after a resume would round otherwise than the same update of a
    run that was not stopped. Called on all ranks, whose gradients it takes away.
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            total = total + 0 * parameter.sum()
    model.reducer.prepare_for_backward([])
    total.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    model.reducer._rebuild_buckets()

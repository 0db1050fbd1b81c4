"""Losses that tests name by import path; some send a real signal at a chosen forward pass."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vit_dist.training.losses import cross_entropy

forwards = 0
# Number of a forward pass → what `acting` does then.
actions: dict[int, Callable[[], None]] = {}


def acting(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy; at the forwards that `actions` names, do what it says."""
    global forwards
    forwards += torch.is_grad_enabled()  # not the call before the run, which checks that it fits
    actions.get(forwards, lambda: None)()
    return cross_entropy(logits, targets)


def signalling(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy; at forward number SIGNAL_AT of this process, send SIGNAL to it."""
    global forwards
    if not torch.is_grad_enabled():  # the call before the run, which checks that it fits
        return cross_entropy(logits, targets)
    forwards += 1
    if forwards == 1:
        logging.getLogger("a_library").debug("its own log")
    if forwards == int(os.environ.get("SIGNAL_AT", "0")):
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return cross_entropy(logits, targets, label_smoothing=0.1)


def sometimes_nan(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the same, but NaN for a micro-batch whose class numbers have a sum that ends in 7."""
    values = signalling(logits, targets)
    return values * float("nan") if targets.sum().item() % 10 == 7 else values


def hard_targets_only(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy; accept class numbers only."""
    assert targets.ndim == 1
    return cross_entropy(logits, targets)


def lost(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy; NaN on rank LOST_RANK from its forward number LOST_FROM to LOST_TO, both included.

    The NaN has no derivative, so that the gradient stays finite.
    """
    global forwards
    forwards += logits.requires_grad
    values = cross_entropy(logits, targets)
    first, last = int(os.environ["LOST_FROM"]), int(os.environ.get("LOST_TO", "1000000"))
    here = os.environ.get("RANK", "0") == os.environ.get("LOST_RANK", "0")
    return values.masked_fill(targets >= 0, float("nan")) if here and first <= forwards <= last else values


def explodes(update: int) -> float:
    """Return the part of the peak rate at an update, from 0: EXPLODES_BY, far too much, at number EXPLODES_AT."""
    return float(os.environ.get("EXPLODES_BY", "1e30")) if update == int(os.environ["EXPLODES_AT"]) else 1.0


def lagging(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy, after LAGGING_SECONDS."""
    time.sleep(float(os.environ["LAGGING_SECONDS"]))
    return cross_entropy(logits, targets)

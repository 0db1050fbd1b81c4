"""Beside what a model was made into: the same images, what may differ, and no noise of others."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from vit_dist.errors import UserError
from vit_dist.inference.load import TrainedModel

# How files are resized before a model sees them.
INTERPOLATION = "bicubic"


def random_pixels(trained: TrainedModel, count: int) -> Tensor:
    """The same uint8 [count, channels, side, side] at every call."""
    side, generator = trained.preprocessing.image_size, torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, trained.channels, side, side), dtype=torch.uint8, generator=generator)


def check_same_logits(found: Tensor, expected: Tensor, tolerance: float, what: str, instead: str) -> float:
    """The largest difference between logits [images, classes] and those expected.

    Raises UserError where it is beyond `tolerance` of max(1, largest |logit|), or the likeliest class is another
    where that is not a matter of rounding: it says that `what` does so, and to export `instead`.
    """
    what, instead = f"model.name: {what}", f"export {instead} instead"
    if found.shape != expected.shape:
        raise UserError(f"{what} gives {list(found.shape)} logits, not {list(expected.shape)}: {instead}")
    largest = (found - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    if not largest <= allowed:  # NaN is never allowed
        raise UserError(f"{what} gives other logits, {largest:.3g} apart where {allowed:.3g} may be: {instead}")
    best = expected.topk(min(2, expected.shape[1])).values
    clear = best[:, 0] - best[:, -1] > allowed
    if (found.argmax(1) != expected.argmax(1))[clear].any():
        raise UserError(f"{what} chooses other classes: {instead}")
    return largest


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Without others' warnings, prints and lines of log: what is wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""Check that an exported model gives the same logits as the original."""

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


def random_pixels(trained: TrainedModel, count: int) -> Tensor:
    """Return random images for a model, uint8 [count, channels, side, side]: the same ones at every call."""
    side, generator = trained.preprocessing.image_size, torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, trained.channels, side, side), dtype=torch.uint8, generator=generator)


def check_same_logits(logits: Tensor, expected: Tensor, tolerance: float, export: str, alternative: str) -> float:
    """Return the largest difference between logits and those expected, both [images, classes].

    export: the exported model, and alternative: another format to use, in words for the errors.
    Raises UserError if the difference exceeds `tolerance` · max(1, largest |logit|), or a likeliest class differs
    whose lead over the second is larger than that.
    """
    export, alternative = f"model.name: {export}", f"export {alternative} instead"
    if logits.shape != expected.shape:
        raise UserError(f"{export} gives {list(logits.shape)} logits, not {list(expected.shape)}: {alternative}")
    largest = (logits - expected).abs().max().item()
    allowed = tolerance * max(1.0, expected.abs().max().item())
    if not largest <= allowed:  # NaN is never allowed
        difference = f"they differ by {largest:.3g}, and {allowed:.3g} is allowed"
        raise UserError(f"{export} gives other logits: {difference}: {alternative}")
    best = expected.topk(min(2, expected.shape[1])).values
    clear = best[:, 0] - best[:, -1] > allowed
    if (logits.argmax(1) != expected.argmax(1))[clear].any():
        raise UserError(f"{export} predicts other classes: {alternative}")
    return largest


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Suppress the warnings, prints and log lines of other libraries; their exceptions still pass."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

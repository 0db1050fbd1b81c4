"""The forward pass of a trained model: pixels → logits → the likeliest classes and their probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vit_dist.data.preprocessing import Preprocessing
from vit_dist.models.forward import at_least_float32, eval_mode

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


def predict_pixels(
    model: nn.Module, pixels: Tensor, preprocessing: Preprocessing, autocast: Autocast = contextlib.nullcontext
) -> Tensor:
    """Return the logits [n, classes], float32 at least, of uint8 pixels [n, channels, h, w] on the model's device.

    autocast: the precision to compute in. The model's training mode is left as it was.
    """
    with eval_mode(model), autocast():
        return at_least_float32(model(preprocessing.normalise(pixels)))


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` likeliest classes and their probabilities, [n, count] each, best first."""
    classes = logits.topk(min(count, logits.shape[1])).indices
    return classes, probabilities_of(logits, classes)


def probabilities_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probabilities of classes int64 [n, k], float32 [n, k], given logits [n, all classes]."""
    return logits.softmax(1).gather(1, classes).float()

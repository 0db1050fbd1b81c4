"""One exact pass over a split: every sample counts once, at any world size and batch size."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.models.build import evaluating
from vit_dist.runtime import Runtime
from vit_dist.update import at_least_float32


@dataclass(frozen=True)
class Evaluation:
    """loss: mean plain cross entropy. top1, top5: percent; no top5 for five classes or fewer. seen: samples."""

    loss: float
    top1: float
    top5: float | None
    seen: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate(
    model: nn.Module, stream: Iterable[tuple[Tensor, Tensor, Tensor]], length: int, runtime: Runtime
) -> Evaluation:
    """The bare model over a split of `length` samples. The stream gives equally many batches on every rank.

    One all-reduce of sums at the end; its modules' modes are left as they were.
    """
    start = time.perf_counter()
    sums = torch.zeros(4, device=runtime.device, dtype=runtime.sum_dtype)
    classes = 0
    with evaluating(model):
        for images, targets, weights in stream:
            logits = at_least_float32(model(images))
            classes = logits.shape[1]
            losses = F.cross_entropy(logits, targets, reduction="none")
            hits = logits.topk(min(5, classes)).indices == targets[:, None]
            terms = [weights, losses * weights, hits[:, 0] * weights, hits.any(1) * weights]
            sums += torch.stack([term.sum() for term in terms])
    seen, loss, first, fifth = runtime.sum(sums).tolist()
    assert round(seen) == length, f"{seen} of {length} samples were seen"
    return Evaluation(
        loss=loss / seen,
        top1=100 * first / seen,
        top5=100 * fifth / seen if classes > 5 else None,
        seen=round(seen),
        seconds=time.perf_counter() - start,
    )

"""One exact pass over a split: every sample counts once, at any world size and batch size."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.data.reader import worker_count
from vit_dist.data.sources.splits import Subset
from vit_dist.data.stream import EvaluationStream
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import at_least_float32, eval_mode
from vit_dist.run_folder.predictions import Predictions
from vit_dist.runtime.devices import resolve_precision, uses_cuda
from vit_dist.runtime.runtime import Runtime


def precision_of(trained: TrainedModel) -> str:
    """Return the precision to compute in: the config's, else the training's if it runs here, else fp32.

    Raises UserError for a precision asked for that does not run here.
    """
    device, precision = trained.config.run.device, trained.config.train.precision
    if precision not in ("auto", trained.precision):
        return resolve_precision(precision, device)
    return (
        "fp32"
        if trained.precision == "fp16" and not uses_cuda(device)
        else resolve_precision(trained.precision, device)
    )


def evaluate_subset(trained: TrainedModel, subset: Subset, runtime: Runtime, *, keep: int) -> Evaluation:
    """One exact pass of the model over a part of its data, by all processes."""
    config = trained.config
    workers = worker_count(config.data.workers, runtime)
    size = min(config.evaluate.batch_size, max(2, len(subset)))
    stream = EvaluationStream(subset, trained.preprocessing, runtime, batch_size=size, workers=workers)
    model = trained.model.to(runtime.device)
    try:
        with runtime.autocast():
            return evaluate(model, stream, stream.length, runtime, keep=keep)
    finally:
        stream.close()


_MEASURES = ("loss", "top1", "top5", "seen", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """loss: mean plain cross entropy. top1, top5: percent; no top5 for five classes or fewer. seen: samples.
    predictions: of every sample, in the split's order, where they were asked for."""

    loss: float
    top1: float
    top5: float | None
    seen: int
    seconds: float
    predictions: Predictions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; not the predictions."""
        return {name: getattr(self, name) for name in _MEASURES}


def evaluate(
    model: nn.Module,
    stream: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    length: int,
    runtime: Runtime,
    *,
    keep: int = 0,
) -> Evaluation:
    """The bare model over a split of `length` samples. The stream gives equally many batches on every rank: images,
    targets, weights and ids, these on the host.

    One all-reduce of sums at the end, and two of predictions where `keep` is above 0: so many classes of each sample,
    from batches of one shape.
    Its modules' modes are left as they were.
    """
    start = time.perf_counter()
    sums = torch.zeros(4, device=runtime.device, dtype=runtime.sum_dtype)
    classes = 0
    said: list[Tensor] = []
    surely: list[Tensor] = []
    with eval_mode(model):
        for images, targets, weights, ids in stream:
            logits = at_least_float32(model(images))
            classes = logits.shape[1]
            losses = F.cross_entropy(logits, targets, reduction="none")
            order = logits.topk(min(max(5, keep), classes)).indices
            hits = order[:, :5] == targets[:, None]
            terms = [weights, losses * weights, hits[:, 0] * weights, hits.any(1) * weights]
            sums += torch.stack([term.sum() for term in terms])
            if keep:
                real, top = (weights > 0).long(), order[:, :keep]
                said.append(torch.cat([torch.stack([real, runtime.to_device(ids), targets], 1), top], 1))
                surely.append(logits.softmax(1).gather(1, top).float())
    seen, loss, first, fifth = runtime.all_reduce_sum(sums).tolist()
    assert round(seen) == length, f"{seen} of {length} samples were seen"
    return Evaluation(
        loss=loss / seen,
        top1=100 * first / seen,
        top5=100 * fifth / seen if classes > 5 else None,
        seen=round(seen),
        seconds=time.perf_counter() - start,
        predictions=_gathered(said, surely, runtime) if keep else None,
    )


def _gathered(said: list[Tensor], surely: list[Tensor], runtime: Runtime) -> Predictions:
    """All ranks' batches in the order of the split, on every rank: batch b of rank r is number b·W + r of all."""

    def of_all(parts: list[Tensor]) -> Tensor:
        own = torch.stack(parts)
        whole = own.new_zeros(own.shape[0], runtime.world_size, *own.shape[1:])
        whole[:, runtime.rank] = own
        return runtime.all_reduce_sum(whole).flatten(0, 2).cpu()

    numbers, probability = of_all(said).numpy(), of_all(surely).numpy()
    real = numbers[:, 0] == 1
    numbers, probability = numbers[real], probability[real]
    return Predictions(numbers[:, 1], numbers[:, 2], numbers[:, 3:], probability)

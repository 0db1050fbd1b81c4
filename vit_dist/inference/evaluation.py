"""Exact evaluation: one pass over a split in which every sample counts once, at any world size and batch size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.data.bad_samples import BadSamples
from vit_dist.data.sources.splits import Subset
from vit_dist.data.stream import EvaluationStream
from vit_dist.data.workers import worker_count
from vit_dist.errors import UserError
from vit_dist.formatting import loss_text
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.probabilities import probabilities_of
from vit_dist.models.forward import at_least_float32, eval_mode
from vit_dist.run_folder.predictions import Predictions
from vit_dist.runtime.devices import resolve_precision, uses_cuda
from vit_dist.runtime.flags import Stopped
from vit_dist.runtime.runtime import Runtime

_FIELDS = ("loss", "top1", "top5", "seen", "bad", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    loss: mean plain cross entropy. top1, top5: percent; no top5 for five classes or fewer. seen: samples. bad: samples
    left out, since they could not be read. predictions: for every sample seen, in the split's order, if they were
    asked for.
    """

    loss: float
    top1: float
    top5: float | None
    seen: int
    seconds: float
    bad: int = 0
    predictions: Predictions | None = None

    def __repr__(self) -> str:
        """Return the result in words, without the arrays."""
        bad = f", {self.bad} left out" if self.bad else ""
        return f"Evaluation({self.top1:.1f} % of {self.seen:,} images{bad}, loss {loss_text(self.loss)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the predictions."""
        return {name: getattr(self, name) for name in _FIELDS}


Batches = Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]
# What puts weights into the model for a `with` statement.
Swap = Callable[[], contextlib.AbstractContextManager[object]]


def evaluate(
    model: nn.Module, stream: Batches, length: int, runtime: Runtime, *, keep: int = 0, bad: BadSamples | None = None
) -> Evaluation:
    """Evaluate the bare model, with the weights that it holds, on a split of `length` samples: `evaluate_each`."""
    return evaluate_each(model, {"": contextlib.nullcontext}, stream, length, runtime, keep={"": keep}, bad=bad)[""]


def evaluate_each(
    model: nn.Module,
    weights: Mapping[str, Swap],
    stream: Batches,
    length: int,
    runtime: Runtime,
    *,
    keep: Mapping[str, int],
    bad: BadSamples | None = None,
) -> dict[str, Evaluation]:
    """Evaluate the bare model with several weights on a split of `length` samples, in one pass over its images.

    The modules' training modes are left as they were. weights: name → what puts them into the model. stream: equally
    many batches on every rank: images, targets and sample weights on the device, ids on the host. keep: name of
    weights → also return predictions, with so many classes of each sample; then batches must have one shape. bad: of
    the stream, if it leaves samples out. The seconds of the pass are shared out equally. Ranks communicate once at the
    end for each weights, and twice more for predictions. Raises UserError if no sample could be read, and Stopped, on
    all ranks, if the run is asked to stop.
    """
    start = time.perf_counter()
    if bad:
        bad.take()
    measures = {name: _Measure(runtime, keep.get(name, 0)) for name in weights}
    with eval_mode(model):
        for images, targets, sample_weights, ids in stream:
            if runtime.flags.agreed().stop:
                raise Stopped
            for name, swapped in weights.items():
                with swapped():
                    logits = at_least_float32(model(images))
                measures[name].add(logits, targets, sample_weights, ids)
    left_out = bad.take() if bad else 0
    results = {name: measure.result(length, left_out) for name, measure in measures.items()}
    seconds = (time.perf_counter() - start) / len(results)
    return {name: replace(result, seconds=seconds) for name, result in results.items()}


class _Measure:
    """The sums of one pass with some weights, on the device, and their predictions if they are kept."""

    def __init__(self, runtime: Runtime, keep: int) -> None:
        self._runtime = runtime
        self._keep = keep
        self._sums = torch.zeros(5, device=runtime.device, dtype=runtime.sum_dtype)
        self._classes = 0
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, targets: Tensor, weights: Tensor, ids: Tensor) -> None:
        """Add a batch."""
        self._classes = logits.shape[1]
        top_classes = logits.topk(min(max(5, self._keep), self._classes)).indices
        self._sums[:4] += _weighted_sums(logits, targets, weights, top_classes[:, :5])
        if self._keep:
            kept = top_classes[:, : self._keep]
            numbers = [(weights > 0).long(), self._runtime.to_device(ids), targets]
            self._batches.append((torch.cat([torch.stack(numbers, 1), kept], 1), probabilities_of(logits, kept)))

    def result(self, length: int, left_out: int) -> Evaluation:
        """Return the evaluation of all ranks' batches. left_out: samples of this rank. Raises UserError."""
        self._sums[4] = left_out
        seen, loss, top1, top5, bad = self._runtime.all_reduce_sum(self._sums).tolist()
        assert round(seen + bad) == length, f"{seen} of {length} samples were seen, and {bad} left out"
        if not seen:
            raise UserError(f"data: none of the {length:,} images to evaluate can be read")
        return Evaluation(
            loss=loss / seen,
            top1=100 * top1 / seen,
            top5=100 * top5 / seen if self._classes > 5 else None,
            seen=round(seen),
            seconds=0.0,
            bad=round(bad),
            predictions=_gather_predictions(self._batches, self._runtime) if self._keep else None,
        )


def _weighted_sums(logits: Tensor, targets: Tensor, weights: Tensor, top_classes: Tensor) -> Tensor:
    """Return the sums over a batch of weight, loss, top-1 and top-5 hits, [4]; top_classes: int64 [n, 5 at most]."""
    losses = F.cross_entropy(logits, targets, reduction="none")
    hits = top_classes == targets[:, None]
    return torch.stack([(term * weights).sum() for term in (torch.ones_like(weights), losses, hits[:, 0], hits.any(1))])


def _gather_predictions(batches: list[tuple[Tensor, Tensor]], runtime: Runtime) -> Predictions:
    """Return all ranks' predictions in the order of the split, on every rank.

    batches: this rank's (is_real, id, target and classes, int64 [n, 3 + k]; probabilities [n, k]). Batch b of rank r
    is number b·W + r of the split.
    """

    def gather(tensors: list[Tensor]) -> Tensor:
        own = torch.stack(tensors)
        everyone = own.new_zeros(own.shape[0], runtime.world_size, *own.shape[1:])
        everyone[:, runtime.rank] = own
        return runtime.all_reduce_sum(everyone).flatten(0, 2).cpu()

    numbers = gather([numbers for numbers, _ in batches]).numpy()
    probabilities = gather([probabilities for _, probabilities in batches]).numpy()
    real = numbers[:, 0] == 1
    numbers, probabilities = numbers[real], probabilities[real]
    return Predictions(numbers[:, 1], numbers[:, 2], numbers[:, 3:], probabilities)


def evaluate_subset(trained: TrainedModel, subset: Subset, runtime: Runtime, *, keep: int) -> Evaluation:
    """Evaluate a trained model on a part of its data, with all processes. keep: as for `evaluate`."""
    stream = subset_stream(trained, subset, runtime)
    model = trained.model.to(runtime.device)
    try:
        with runtime.autocast():
            return evaluate(model, stream, stream.length, runtime, keep=keep, bad=stream.bad)
    finally:
        stream.close()


def subset_stream(trained: TrainedModel, subset: Subset, runtime: Runtime) -> EvaluationStream:
    """Return the stream of a part of a trained model's data, in batches as its config has them. To be closed."""
    config = trained.config
    return EvaluationStream(
        subset,
        trained.preprocessing,
        runtime,
        batch_size=min(config.evaluate.batch_size, max(2, len(subset))),
        workers=worker_count(config.data.workers, runtime.cores),
        timeout=config.data.timeout,
        on_bad_sample=config.data.on_bad_sample,
    )


def precision_of(trained: TrainedModel) -> str:
    """Return the precision to compute in: the config's, else the training's if it runs here, else fp32.

    Raises UserError for a precision asked for that does not run here.
    """
    device, precision = trained.config.run.device, trained.config.train.precision
    if precision not in ("auto", trained.precision):
        return resolve_precision(precision, device)
    if trained.precision == "fp16" and not uses_cuda(device):
        return "fp32"
    return resolve_precision(trained.precision, device)

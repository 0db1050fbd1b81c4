"""Exact evaluation of a model of two towers: recall both ways and zero-shot accuracy, the same at any world size."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_dist.data.bad_samples import BadSamples
from vit_dist.data.sources.splits import Subset
from vit_dist.errors import UserError
from vit_dist.formatting import loss_text
from vit_dist.inference.evaluation import Batches, Evaluation, Swap, subset_stream
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.retrieval import (
    Ranking,
    class_embeddings,
    hit_rate,
    rank_candidates,
)
from vit_dist.inference.split_texts import SplitTexts, split_texts
from vit_dist.models.contrastive_loss import ContrastiveLoss
from vit_dist.models.forward import eval_mode
from vit_dist.plan.keys import Ints, Purpose, key, keys
from vit_dist.plan.permutation import permute
from vit_dist.run_folder.pair_figures import MEAN_RECALL, RECALLS
from vit_dist.run_folder.pairs import Pairs
from vit_dist.runtime.flags import Stopped
from vit_dist.runtime.runtime import Runtime

# Images of the heat map.
_SAMPLE = 16


@dataclass(frozen=True)
class ContrastiveEvaluation:
    """The result of an evaluation of two towers.

    loss: mean of the training's loss over batches as large as the training's. figures: name → percent, or None where
    too little is there to measure it. seen: images. bad: images left out, since they could not be read. pairs: of all
    images seen, if they were asked for.
    """

    loss: float
    figures: Mapping[str, float | None]
    seen: int
    seconds: float
    bad: int = 0
    pairs: Pairs | None = None

    def __repr__(self) -> str:
        """Return the result in words, without the arrays."""
        known = ", ".join(f"{name} {value:.1f} %" for name, value in self.figures.items() if value is not None)
        bad = f", {self.bad} left out" if self.bad else ""
        return f"ContrastiveEvaluation({known}, of {self.seen:,} images{bad}, loss {loss_text(self.loss)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the pairs."""
        return {"loss": self.loss, **self.figures, "seen": self.seen, "bad": self.bad, "seconds": self.seconds}


Evaluated = Evaluation | ContrastiveEvaluation


def evaluate_towers(
    model: nn.Module,
    weights: Mapping[str, Swap],
    stream: Batches,
    texts: SplitTexts,
    runtime: Runtime,
    *,
    loss: ContrastiveLoss,
    loss_size: int,
    batch_size: int,
    keep: str | None = None,
    bad: BadSamples | None = None,
) -> dict[str, ContrastiveEvaluation]:
    """Evaluate the bare model of two towers with several weights on a split, in one pass over its images.

    weights: name → what puts them into the model. stream: as for `evaluate_each`. batch_size: texts of one forward
    pass. loss: of `loss_size` pairs together, each image with one of its captions, drawn by key. keep: the name of the
    weights whose pairs the result holds. Every rank ends with the same result, to the bit the one of a single
    process: the embeddings of all are gathered, and each rank ranks its blocks of rows. Raises UserError if no image
    could be read, and Stopped, on all ranks, if the run is asked to stop.
    """
    start = time.perf_counter()
    towers: Any = model
    if bad:
        bad.take()
    images: dict[str, list[Tensor]] = {name: [] for name in weights}
    numbers: list[Tensor] = []
    with eval_mode(model):
        for pixels, targets, sample_weights, ids in stream:
            if runtime.flags.agreed().stop:
                raise Stopped
            for name, swapped in weights.items():
                with swapped(), runtime.autocast():
                    images[name].append(towers.encode_image(pixels).float())
            numbers.append(torch.stack([(sample_weights > 0).long(), runtime.to_device(ids), targets], 1))
        of_all = _gathered(numbers, runtime).cpu().numpy()
        real = of_all[:, 0] == 1
        left_out = int(runtime.all_reduce_sum(torch.tensor([bad.take() if bad else 0.0], device=runtime.device)).item())
        seen = int(real.sum())
        assert seen + left_out == len(texts.indices), f"{seen} of {len(texts.indices)} seen, and {left_out} left out"
        if not seen:
            raise UserError(f"data: none of the {len(texts.indices):,} images to evaluate can be read")
        results = {}
        for name, swapped in weights.items():
            with swapped():
                scale, bias = towers.logit_scale.exp(), towers.logit_bias
                bias = None if bias is None else bias.clone()
                with runtime.autocast():
                    of_texts = _encode_texts(towers, texts.tokens, batch_size, runtime)
            of_images = _gathered(images.pop(name), runtime)[torch.from_numpy(real).to(runtime.device)]
            measured = _Measured(of_images, of_texts, texts, of_all[real, 1], of_all[real, 2], runtime)
            value = measured.loss(loss, loss_size, scale, bias)
            pairs = measured.pairs() if name == keep else None
            results[name] = ContrastiveEvaluation(value, measured.figures(), seen, 0.0, left_out, pairs)
    seconds = (time.perf_counter() - start) / len(results)
    return {name: replace(result, seconds=seconds) for name, result in results.items()}


def evaluate_pairs(
    trained: TrainedModel, subset: Subset, runtime: Runtime, *, keep: bool = False
) -> ContrastiveEvaluation:
    """Evaluate a trained model of two towers on a part of its data, with all processes. keep: the pairs."""
    stream = subset_stream(trained, subset, runtime)
    try:
        return evaluate_towers(
            trained.model.to(runtime.device),
            {"": contextlib.nullcontext},
            stream,
            split_texts(trained.config, subset, trained.classes),
            runtime,
            batch_size=trained.config.evaluate.batch_size,
            loss=ContrastiveLoss(trained.config.loss),
            loss_size=trained.config.batch.global_size,
            keep="" if keep else None,
            bad=stream.bad,
        )[""]
    finally:
        stream.close()


class _Measured:
    """Hold what is computed of the embeddings of one split by some weights.

    images: float32 [seen, dim], texts: float32 [texts + prompts, dim], on the device of every rank. ids, labels: of
    the images, int64 [seen].
    """

    def __init__(
        self, images: Tensor, texts: Tensor, split: SplitTexts, ids: Ints, labels: Ints, runtime: Runtime
    ) -> None:
        self._split, self._ids, self._labels, self._runtime = split, ids, labels, runtime
        self._images = images
        self._captions, numbers = split.texts.only(split.places(ids))
        self._texts = texts[torch.from_numpy(numbers).to(texts.device)]
        self._prompts = texts[len(split.texts.texts) :]
        captions = self._captions
        self._by_image = self._rank(images, self._texts, captions.image, captions.text)

    def figures(self) -> dict[str, float | None]:
        """Return the figures by their names in metrics.jsonl."""
        captions, split = self._captions, self._split
        by_text = np.argsort(captions.text, kind="stable")
        to_image = self._rank(self._texts, self._images, captions.text[by_text], captions.image[by_text]).rank
        times = torch.from_numpy(np.bincount(captions.text, minlength=len(captions.texts))).to(to_image.device)
        figures: dict[str, float | None] = {}
        if split.classes:
            classes = class_embeddings(self._prompts, split.classes)
            ranks = self._rank(self._images, classes, np.arange(len(self._labels)), self._labels).rank
            figures["zero_shot_top1"] = hit_rate(ranks, 1)
            figures["zero_shot_top5"] = hit_rate(ranks, 5) if split.classes > 5 else None
        for k in RECALLS:
            many = k == 1 or len(captions.texts) > k
            figures[f"image_to_text_recall_at_{k}"] = hit_rate(self._by_image.rank, k) if many else None
        for k in RECALLS:
            many = k == 1 or len(self._images) > k
            figures[f"text_to_image_recall_at_{k}"] = hit_rate(to_image, k, times) if many else None
        firsts = [figures[f"{way}_recall_at_1"] or 0.0 for way in ("image_to_text", "text_to_image")]
        figures[MEAN_RECALL] = sum(firsts) / 2
        return figures

    def loss(self, loss: ContrastiveLoss, size: int, scale: Tensor, bias: Tensor | None) -> float:
        """Return the mean loss of the images, each with one of its captions, `size` pairs together in order."""
        own = torch.from_numpy(self._one_of_each()).to(self._images.device)
        runtime = self._runtime
        values = torch.zeros(len(own), device=self._images.device)
        for number, start in enumerate(range(0, len(own), size)):
            if number % runtime.world_size == runtime.rank:
                texts = own[start : start + size]
                images = self._images[start : start + size]
                values[start : start + size] = loss.values(images, self._texts[texts], texts, scale, bias)
        return float(runtime.all_reduce_sum(values).to(runtime.sum_dtype).mean().item())

    def pairs(self) -> Pairs:
        """Return the pairs of all images, with the heat map of a keyed sample."""
        split, ranking = self._split, self._by_image
        count = len(self._ids)
        order = permute(np.arange(count), count, key(split.seed, Purpose.GRID))
        caption = self._one_of_each()
        # No caption twice: an image is as similar to the caption of another if that is the same.
        _, different = np.unique(caption[order], return_index=True)
        chosen = order[np.sort(different)][:_SAMPLE]
        own = torch.from_numpy(caption[chosen]).to(self._texts.device)
        similar = self._images[torch.from_numpy(chosen).to(self._images.device)] @ self._texts[own].T
        rank, right, wrong, similarity, wrong_similarity = (part.cpu().numpy() for part in ranking.tensors())
        return Pairs(
            index=self._ids,
            rank=rank,
            similarity=similarity,
            wrong_similarity=wrong_similarity,
            own=right,
            wrong=wrong,
            texts=self._captions.texts,
            sample=chosen.astype(np.int64),
            sample_texts=tuple(self._captions.texts[number] for number in caption[chosen].tolist()),
            similarities=similar.float().cpu().numpy(),
        )

    def _one_of_each(self) -> Ints:
        """Return the number of one caption of each image, drawn by key, int64 [seen]."""
        captions, count = self._captions, len(self._ids)
        first = np.searchsorted(captions.image, np.arange(count + 1))
        drawn = keys(self._split.seed, Purpose.GRID, self._ids) % np.diff(first).astype(np.uint64)
        return captions.text[first[:-1] + drawn.astype(np.int64)]

    def _rank(self, queries: Tensor, candidates: Tensor, query: Ints, candidate: Ints) -> Ranking:
        """Rank with all processes."""
        runtime = self._runtime
        part = rank_candidates(queries, candidates, query, candidate, rank=runtime.rank, world_size=runtime.world_size)
        return Ranking(*(runtime.all_reduce_sum(tensor) for tensor in part.tensors()))


def _encode_texts(towers: Any, tokens: Tensor, batch_size: int, runtime: Runtime) -> Tensor:
    """Return the embeddings of all texts, float32 [texts, dim], on every rank: batches of one shape, dealt in turn."""
    count = len(tokens)
    size = min(batch_size, count)
    batches = -(-count // size)
    each = -(-batches // runtime.world_size)
    made = []
    for number in range(each):
        start = (number * runtime.world_size + runtime.rank) * size
        rows = torch.arange(start, start + size) % count
        made.append(towers.encode_text(runtime.to_device(tokens[rows].long())).float())
    return _gathered(made, runtime)[:count]


def _gathered(batches: Iterable[Tensor], runtime: Runtime) -> Tensor:
    """Return all ranks' batches in order, [batches · size, …], on every rank: batch b of rank r is number b · W + r."""
    own = torch.stack(list(batches))
    everyone = own.new_zeros(own.shape[0], runtime.world_size, *own.shape[1:])
    everyone[:, runtime.rank] = own
    return runtime.all_reduce_sum(everyone).flatten(0, 2)

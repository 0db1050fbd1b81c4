"""Rank candidates by similarity, in blocks of rows: recall at k of image-text retrieval, and zero-shot accuracy.

Of candidates that are equally similar the wrong ones come first, and a similarity that is NaN is never the smaller one:
a model that gives all images one embedding is right about none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_dist.plan.keys import Ints

# Similarities that are computed at once: 64 MiB in float32.
_BLOCK = 2**24


@dataclass(frozen=True)
class Texts:
    """The captions of a split's images, with each text once.

    texts: in the order in which they come up. image, text: of each caption, the place of its image and the number of
    its text, int64 [captions], in the images' order; no pair twice.
    """

    texts: tuple[str, ...]
    image: Ints
    text: Ints

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> Texts:
        """Number the captions of each image."""
        numbers: dict[str, int] = {}
        pairs = [
            (place, numbers.setdefault(text, len(numbers)))
            for place, of_image in enumerate(captions)
            for text in dict.fromkeys(of_image)
        ]
        image, text = np.asarray(pairs, np.int64).reshape(-1, 2).T
        return cls(tuple(numbers), image, text)

    def merged(self, same: Ints) -> Texts:
        """Return the captions with texts taken as the same, int64 [texts]: text → the first of those like it."""
        kept, text = np.unique(same[self.text], return_inverse=True)
        pairs = np.stack([self.image, text.reshape(-1)], 1)
        _, places = np.unique(pairs, axis=0, return_index=True)
        image, text = pairs[np.sort(places)].T
        return Texts(tuple(self.texts[number] for number in kept.tolist()), image, text)

    def only(self, seen: Ints) -> tuple[Texts, Ints]:
        """Return the captions of the images at places `seen` (ascending), numbered anew, and the numbers they had."""
        places = np.searchsorted(seen, self.image)
        kept = (places < len(seen)) & (seen[np.minimum(places, len(seen) - 1)] == self.image)
        numbers, text = np.unique(self.text[kept], return_inverse=True)
        texts = tuple(self.texts[number] for number in numbers.tolist())
        return Texts(texts, places[kept].astype(np.int64), text.astype(np.int64)), numbers.astype(np.int64)


@dataclass(frozen=True)
class Ranking:
    """How each query ranks its candidates.

    rank: wrong candidates that are at least as similar as the best right one, int64 [queries]. right, wrong: the most
    similar right and wrong candidate, int64; right_similarity, wrong_similarity: theirs, float32. Without a wrong
    candidate that is number -1 with similarity -inf.
    """

    rank: Tensor
    right: Tensor
    wrong: Tensor
    right_similarity: Tensor
    wrong_similarity: Tensor

    @classmethod
    def zeros(cls, count: int, device: torch.device) -> Ranking:
        """Return one that blocks are written to."""
        numbers = [torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3)]
        return cls(*numbers, *(torch.zeros(count, dtype=torch.float32, device=device) for _ in range(2)))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the five tensors."""
        return (self.rank, self.right, self.wrong, self.right_similarity, self.wrong_similarity)


def rank_candidates(
    queries: Tensor, candidates: Tensor, query: Ints, candidate: Ints, *, rank: int = 0, world_size: int = 1
) -> Ranking:
    """Rank the candidates of each query.

    queries, candidates: float [·, dim], on one device. query, candidate: the right pairs, int64 [pairs], queries in
    ascending order, each at least once. Of several ranks each takes its blocks of rows and leaves the others 0, so
    that their sum is what one process gives, to the bit.
    """
    count = len(candidates)
    found = Ranking.zeros(len(queries), queries.device)
    rows = max(1, _BLOCK // max(1, count))
    for number, start in enumerate(range(0, len(queries), rows)):
        if number % world_size != rank:
            continue
        block = queries[start : start + rows] @ candidates.T
        first, last = np.searchsorted(query, [start, start + len(block)])
        at = torch.from_numpy(query[first:last] - start).to(block.device)
        is_right = torch.zeros(block.shape, dtype=torch.bool, device=block.device)
        is_right[at, torch.from_numpy(candidate[first:last]).to(block.device)] = True
        right = block.masked_fill(~is_right, -torch.inf).max(1)
        wrong = block.masked_fill(is_right, -torch.inf).max(1)
        none_wrong = is_right.all(1)
        before = (~(block < right.values[:, None]) & ~is_right).sum(1)
        made = (before, right.indices, wrong.indices.masked_fill(none_wrong, -1), right.values, wrong.values)
        for whole, part in zip(found.tensors(), made, strict=True):
            whole[start : start + len(block)] = part
    return found


def hit_rate(ranks: Tensor, k: int, weights: Tensor | None = None) -> float:
    """Return the percentage of queries whose best right candidate is among the first k; weights: of the queries."""
    right = (ranks < k).cpu().double()
    weights = torch.ones_like(right) if weights is None else weights.cpu().double()
    return 100 * float((right * weights).sum() / weights.sum())


def class_embeddings(of_prompts: Tensor, classes: int) -> Tensor:
    """Return the embedding of each class, [classes, dim] of length 1, given those of its prompts, [classes · t, dim].

    The mean of the normalised embeddings of the templates, normalised again (Radford et al. 2021, CLIP, section 3.1.4).
    """
    normalised = F.normalize(of_prompts, dim=-1)
    return F.normalize(normalised.view(classes, -1, normalised.shape[1]).mean(1), dim=-1)


def prompts_of(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return each class name in each template ("a photo of a {}."), all of the first class first."""
    return [template.replace("{}", name) for name in classes for template in templates]


def most_similar(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the similarities and numbers of the k most similar candidates, best first, each [queries, k].

    Of equally similar ones the one with the smaller number comes first. k: at most the number of candidates.
    """
    k, count = min(k, len(candidates)), len(candidates)
    rows = max(1, _BLOCK // max(1, count))
    found = []
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ candidates.T
        order = block.sort(dim=1, descending=True, stable=True)
        found.append((order.values[:, :k], order.indices[:, :k]))
    values, numbers = zip(*found, strict=True)
    return torch.cat(values), torch.cat(numbers)

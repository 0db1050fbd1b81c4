"""The contrastive loss of a whole global batch and its derivative, in blocks of rows.

With embeddings a of images and b of texts, weights w, scale s and z_ij = s·a_i·b_j (+ bias), the loss is Σ wᵢℓᵢ / Σ wᵢ.

clip (Radford et al., 2021): ℓᵢ is the mean of two cross entropies, of text i among the texts for image i and of image i
among the images for text i. Where captions are equal, the target is spread evenly over them (Yang et al., "UniCL",
2022), or they are left out of each other's softmax (`mask`).

siglip (Zhai et al., 2023): ℓᵢ is half the sum of the binary cross entropies of image i with every text and of text i
with every image; pairs of equal captions are positive, or left out (`mask`) but for the pair itself.

A slot of weight 0 is no negative either; a slot of any other weight is a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_dist.config.fields import LossConfig

# Elements of a block of logits, rows × all columns, by type of device: on a CPU so that it stays in the cache.
BLOCKS = {"cpu": 2**20, "cuda": 2**24}


def block_elements(device: str) -> int:
    """Return how many elements a block of logits has on a type of device, at most."""
    return BLOCKS.get(device, BLOCKS["cpu"])


@dataclass(frozen=True)
class Pairs:
    """The pairs of a global batch, in the order of their slots: embeddings [n, embed_dim], weights and ids [n].

    ids: equal where captions are.
    """

    image: Tensor
    text: Tensor
    weights: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Derivatives:
    """The loss [m] of some of the slots, and the derivatives of Σ wℓ over all slots.

    image, text: by these slots' embeddings, [m, embed_dim]. log_scale, bias: these slots' part; the sum over all slots
    is the derivative.
    """

    losses: Tensor
    image: Tensor
    text: Tensor
    log_scale: Tensor
    bias: Tensor


class ContrastiveLoss:
    """The loss of a contrastive run: clip or siglip."""

    teacher = None

    def __init__(self, config: LossConfig) -> None:
        self.name = config.name
        self.masks_duplicates = config.duplicates == "mask"

    def derivatives(
        self, pairs: Pairs, own: Tensor, scale: Tensor, bias: Tensor | None, share: Callable[[Tensor], Tensor]
    ) -> Derivatives:
        """Return loss and derivatives of the slots at `own`, int64 [m], of a global batch.

        scale, bias: of the similarities; no bias with clip. share: takes values of the own slots, [m, 2], and returns
        those of all slots, [n, 2]; called on all ranks alike.
        """
        sides = [
            _Side(pairs.image[own] * scale, pairs.text, pairs, own, masks_duplicates=self.masks_duplicates),
            _Side(pairs.text[own] * scale, pairs.image, pairs, own, masks_duplicates=self.masks_duplicates),
        ]
        bias_part = scale.new_zeros(())
        if self.name == "clip":
            losses, sums = _clip(sides, pairs.weights, share)
        else:
            assert bias is not None
            losses, sums, bias_part = _siglip(sides, pairs.weights, bias)
        return Derivatives(losses, sums[0] * scale, sums[1] * scale, (sums[0] * sides[0].rows).sum(), bias_part)

    def values(self, image: Tensor, text: Tensor, ids: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Return the losses [n] of pairs of embeddings [n, embed_dim] that are compared with each other alone.

        ids: int64 [n], equal where captions are.
        """
        pairs = Pairs(image, text, image.new_ones(len(image)), ids)
        own = torch.arange(len(image), device=image.device)
        return self.derivatives(pairs, own, scale, bias, lambda shared: shared).losses


class _Block(NamedTuple):
    """Some rows of one side: their places among the own slots; what is beside them, [rows, n].

    weight: of the rows, [rows, 1]. positives: the pairs that belong together. left_out: those that do not count.
    """

    part: slice
    weight: Tensor
    positives: Tensor
    left_out: Tensor


class _Side:
    """The logits of the own images with all texts, or of the own texts with all images, in blocks of rows."""

    def __init__(self, rows: Tensor, columns: Tensor, pairs: Pairs, own: Tensor, *, masks_duplicates: bool) -> None:
        """rows: embeddings of the own slots, times the scale, [m, embed_dim]. columns: of all, [n, embed_dim]."""
        self.rows, self.columns = rows, columns
        self._pairs, self._own, self._masks_duplicates = pairs, own, masks_duplicates

    def __iter__(self) -> Iterator[_Block]:
        weights, ids = self._pairs.weights, self._pairs.ids
        height = max(1, block_elements(ids.device.type) // len(ids))
        places = torch.arange(len(ids), device=ids.device)
        for start in range(0, len(self._own), height):
            part = slice(start, start + height)
            slots = self._own[part, None]
            left_out = (weights[slots] == 0) | (weights == 0)
            positives = ids[slots] == ids
            if self._masks_duplicates:
                itself = slots == places
                left_out |= positives & ~itself
                positives = itself
            yield _Block(part, weights[slots], positives & ~left_out, left_out)

    def logits(self, block: _Block) -> Tensor:
        """Return the logits [rows, n] without a bias."""
        return self.rows[block.part] @ self.columns.T


def _clip(
    sides: Sequence[_Side], weights: Tensor, share: Callable[[Tensor], Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the losses [m] of the own slots and, for each side, Σⱼ (∂ Σ wℓ / ∂ zᵢⱼ) bⱼ, [m, embed_dim]."""
    rows = sides[0].rows
    losses, own_logsumexp = rows.new_zeros(len(rows)), rows.new_empty(len(rows), 2)
    for number, side in enumerate(sides):
        for block in side:
            z = side.logits(block).masked_fill_(block.left_out, -torch.inf)
            # The row of a slot that does not count is empty.
            logsumexp = z.logsumexp(1).where(block.weight[:, 0] != 0, 0)
            own_logsumexp[block.part, number] = logsumexp
            matched = z.where(block.positives, 0).sum(1) / block.positives.sum(1).clamp(min=1)
            losses[block.part] += (logsumexp - matched) / 2
    logsumexps = share(own_logsumexp)
    sums = torch.empty_like(rows), torch.empty_like(rows)
    for number, side in enumerate(sides):
        for block in side:
            z = side.logits(block).masked_fill_(block.left_out, -torch.inf)
            # Each logit counts in the softmax of its row and in that of its column.
            derivative = (z - own_logsumexp[block.part, number, None]).exp_().mul_(block.weight)
            derivative += z.sub_(logsumexps[:, 1 - number]).exp_().mul_(weights)
            matched = (block.weight + weights).div_(block.positives.sum(1, keepdim=True).clamp(min=1))
            derivative -= matched.masked_fill_(~block.positives, 0)
            sums[number][block.part] = derivative @ side.columns / 2
    return losses, sums


def _siglip(sides: Sequence[_Side], weights: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Return what `_clip` does, and these slots' part of the derivative by the bias."""
    rows = sides[0].rows
    losses, bias_part = rows.new_zeros(len(rows)), rows.new_zeros(())
    sums = torch.empty_like(rows), torch.empty_like(rows)
    for number, side in enumerate(sides):
        for block in side:
            z = side.logits(block).add_(bias)
            sign = 1 - 2 * block.positives.to(z.dtype)
            z *= sign
            losses[block.part] += F.softplus(z).masked_fill_(block.left_out, 0).sum(1) / 2
            derivative = z.sigmoid_().mul_(sign).mul_(block.weight + weights).masked_fill_(block.left_out, 0)
            if number == 0:
                bias_part += derivative.sum() / 2
            sums[number][block.part] = derivative @ side.columns / 2
    return losses, sums, bias_part

"""The exact update of two towers, whose loss couples all samples of the global batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vit_dist.data.batch import Batch
from vit_dist.models.contrastive_loss import ContrastiveLoss, Derivatives, Pairs
from vit_dist.models.two_tower import TwoTower
from vit_dist.runtime.marks import BACKWARD, FORWARD, mark
from vit_dist.training.update import Updater


class ContrastiveUpdater(Updater):
    """Makes updates of two towers: the gradient of the loss of the whole global batch, however it is split.

    In a first pass every micro-batch is embedded without a graph, and all ranks exchange the embeddings. Then each rank
    has the derivative of the loss by those of its own slots, and in a second pass a forward and a backward pass of each
    micro-batch take it on to the weights. Draws are keyed, so both passes draw alike. The micro-batch that is embedded
    last keeps its graph, and needs no second forward pass. From one pass to the other a rank keeps, on the device, its
    micro-batches' inputs and all embeddings.
    """

    loss: ContrastiveLoss  # type: ignore[assignment]

    @property
    def two_tower(self) -> TwoTower:
        """The bare model."""
        bare = getattr(self.model, "module", self.model)
        assert isinstance(bare, TwoTower)
        return bare

    def accumulate(
        self, window: Iterable[Batch], length: int, weight: float, *, spread_nan: bool = True
    ) -> list[Tensor]:
        """Leave the gradient of the whole global batch in the parameters of every rank; see `Updater.accumulate`."""
        self._sums_before = self.sums
        batches = list(window)
        weights = torch.stack([batch.weights for batch in batches])
        embeddings = []
        for batch in batches[:-1]:
            with torch.no_grad():
                embeddings.append(self._embed(batch))
        with self.runtime.gradient_sync(self.model, last=length == 1):
            kept = self._embed(batches[-1])
            embeddings.append((kept[0].detach(), kept[1].detach()))
            with mark(FORWARD):
                found = self._derivatives(embeddings, batches, weights)
            losses = found.losses.view(weights.shape)
            loss = (losses * weights).sum()
            # DDP takes the mean over ranks; times world_size, that is the sum.
            factor = torch.full_like(loss, self.runtime.world_size / weight)
            # NaN, if the loss is not finite: the gradient's all-reduce takes it to the other ranks.
            last_factor = factor * (0 * loss + 1) if spread_nan else factor
            self._backward(kept, found, length - 1, last_factor if length == 1 else factor, last=length == 1)
        for number, batch in enumerate(batches[:-1]):
            last = number == length - 2
            with self.runtime.gradient_sync(self.model, last=last):
                again = self._embed(batch, self._is_trained)
                self._backward(again, found, number, last_factor if last else factor, last=last)
        self.sums = self.sums + torch.stack([loss, loss * torch.nan, weights.sum()])
        return list(losses)

    @property
    def _is_trained(self) -> tuple[bool, bool]:
        """Return whether anything in the image tower, and in the text tower, is trained."""
        image, text = (
            any(p.requires_grad for p in tower.parameters()) for tower in self.two_tower.named_towers().values()
        )
        return image, text

    def _embed(self, batch: Batch, wanted: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor]:
        """Return the embeddings of a micro-batch by both towers; None by one that is not wanted."""
        self.runtime.seed(batch.seed)
        inputs = [part if want else None for part, want in zip((batch.images, batch.tokens), wanted, strict=True)]
        with mark(FORWARD):
            outputs: tuple[Tensor, Tensor] = self.model(
                *inputs, *([] if batch.drop_path is None else [batch.drop_path])
            )
        return outputs

    @torch.no_grad()
    def _derivatives(
        self, embeddings: Sequence[tuple[Tensor, Tensor]], batches: Sequence[Batch], weights: Tensor
    ) -> Derivatives:
        """Return losses and derivatives of this rank's slots, by micro-batch, in one row of them."""
        runtime, model = self.runtime, self.two_tower
        ids = torch.stack([batch.caption_ids for batch in batches if batch.caption_ids is not None])
        images, texts = (torch.stack(each) for each in zip(*embeddings, strict=True))
        places = torch.arange(weights.numel() * runtime.world_size, device=weights.device)
        own = places.view(len(batches), runtime.world_size, -1)[:, runtime.rank].flatten()

        def in_order(everyone: Tensor) -> Tensor:
            """Return the values of all slots in the order of the global batch. everyone: [ranks, window, slots, …]."""
            return everyone.transpose(0, 1).flatten(0, 2)

        def share(values: Tensor) -> Tensor:
            return in_order(runtime.gather_tensors(values.view(*weights.shape, -1))[0])

        image, text, weight, caption = map(in_order, runtime.gather_tensors(images, texts, weights, ids))
        counts = weight[:, None] != 0  # what a filler gives may be anything
        pairs = Pairs(image.where(counts, 0), text.where(counts, 0), weight.to(image.dtype), caption)
        bias = None if model.logit_bias is None else model.logit_bias.detach()
        return self.loss.derivatives(pairs, own, model.logit_scale.detach().exp(), bias, share)

    def _backward(
        self, outputs: tuple[Tensor, Tensor], found: Derivatives, number: int, factor: Tensor, *, last: bool
    ) -> None:
        """Take the derivative by a micro-batch's outputs on to the weights; with the last, by scale and bias too.

        number: of the micro-batch in the window.
        """
        total = factor.new_zeros(())
        for output, by_output in zip(outputs, (found.image, found.text), strict=True):
            if output is not None:
                slots = slice(number * len(output), (number + 1) * len(output))
                total = total + (output * (by_output[slots] * factor)).sum()
        # All of their derivative comes with the last; where DDP wraps a single process, every parameter takes part each
        # time.
        once = factor if last else torch.zeros_like(factor)
        total = total + self.two_tower.logit_scale * (found.log_scale * once)
        if self.two_tower.logit_bias is not None:
            total = total + self.two_tower.logit_bias * (found.bias * once)
        if total.requires_grad:
            with mark(BACKWARD):
                self.runtime.backward(total)

    def _bound(self) -> None:
        self.two_tower.bound_scale()

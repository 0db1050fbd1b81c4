"""One micro-batch on the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    images: float, [slots, channels, height, width], normalised. targets: class numbers int64 [slots], or,
    where slots are mixed, probabilities float32 [slots, classes].
    weights: float32, [slots]; 0 where a slot only fills the shape. ids: the samples' indices in their
    source, int64, [slots], on the host. drop_path: float32 in 0..1, [slots, depth, 2], or None.
    seed: what the default generators are set to before the forward pass. tokens: of the captions, int64
    [slots, context_length], padded with 0; caption_ids: equal where captions are, int64 [slots]; both None without.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    ids: Tensor
    drop_path: Tensor | None
    seed: int
    tokens: Tensor | None = None
    caption_ids: Tensor | None = None

    @property
    def inputs(self) -> list[Tensor]:
        """Return what a forward pass takes: images, then tokens and draws of drop paths where there are any."""
        return [each for each in (self.images, self.tokens, self.drop_path) if each is not None]

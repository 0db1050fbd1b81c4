"""The caption of each slot, drawn by key from those of its image, as tokens."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from vit_dist.data.sources.captions import Captions
from vit_dist.data.text.tokenizer import Tokenizer
from vit_dist.plan.keys import Ints, Purpose, keys

# Captions whose tokens are kept: 20 MB at a context of 77, in each process that reads.
_MOST_KEPT = 32_768


class CaptionTokens(NamedTuple):
    """The captions of slots: tokens, int64 [slots, context_length]; ids, equal where those are, int64 [slots]."""

    tokens: Ints
    ids: Ints


class Captioner:
    """Draws a caption for each slot: by (seed, epoch, sample), so the same for every world, worker and restart."""

    def __init__(self, captions: Captions, tokenizer: Tokenizer, seed: int) -> None:
        """captions: of the source's images. seed: of the run."""
        self.captions = captions
        self.tokenizer = tokenizer
        self.seed = seed
        self._kept: dict[int, tuple[Ints, int]] = {}
        self._keeps = len(captions.ends) <= _MOST_KEPT

    def draw(self, indices: Ints, epochs: Ints) -> Ints:
        """Return the number, among all captions, of the one that each sample has in an epoch, int64 [slots].

        indices: of the samples in their source.
        """
        drawn = keys(self.seed, Purpose.CAPTION, epochs, indices) % self.captions.counts(indices).astype(np.uint64)
        numbers: Ints = self.captions.first[indices] + drawn.astype(np.int64)
        return numbers

    def __call__(self, indices: Ints, epochs: Ints) -> CaptionTokens:
        """Return the drawn captions as tokens. Raises UserError for one that cannot be encoded."""
        found = [self._tokens(number) for number in self.draw(indices, epochs).tolist()]
        return CaptionTokens(np.stack([row for row, _ in found]), np.asarray([each for _, each in found], np.int64))

    def texts(self, indices: Ints, epochs: Ints) -> list[str]:
        """Return the drawn captions as they are."""
        return [self.captions.caption(number) for number in self.draw(indices, epochs).tolist()]

    def _tokens(self, number: int) -> tuple[Ints, int]:
        known = self._kept.get(number)
        if known is None:
            row = self.tokenizer([self.captions.caption(number)])[0]
            known = row, caption_id(row)
            if self._keeps:
                self._kept[number] = known
        return known


def caption_id(tokens: Ints) -> int:
    """Return a number of 63 bits that names a row of tokens: what the text tower cannot tell apart is one caption."""
    digest = hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

"""The captions of a contrastive run: whether they are there, how long they are, and what makes tokens of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_dist.config.config import Config
from vit_dist.data.fingerprint import fingerprint
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.text.tokenizer import Tokenizer, open_tokenizer
from vit_dist.errors import UserError
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute

# Captions of train that are looked at.
_LOOKED_AT = 10_000


def run_tokenizer(config: Config) -> Tokenizer | None:
    """Return the tokenizer of a contrastive run; None for any other. Raises UserError."""
    return open_tokenizer(config.text.tokenizer, config.text.context_length) if config.contrastive else None


def run_fingerprint(config: Config, data: LabelledSplits) -> dict[str, dict[str, Any]]:
    """Return the fingerprint of a run's data, and of the tokenizer of its captions. Raises UserError."""
    tokenizer = run_tokenizer(config)
    return fingerprint(data, tokenizer.digest if tokenizer else "")


def check_captions(config: Config, data: LabelledSplits) -> None:
    """Check that every split of a contrastive run's data has captions. Raises UserError that says how to give them."""
    without = [name for name, split in data.splits.items() if split.captions is None]
    if without:
        raise UserError(
            f"loss.name: {config.loss.name} learns from captions, and {_few(data, without)} has none: give a table "
            "with a column caption (or set data.columns.caption), tar files with a .txt beside each image, a Hugging "
            "Face data set with such a column, or data.name digits_captions"
        )


def caption_notes(data: LabelledSplits, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a note if captions of train are longer than what is read of them.

    Raises UserError if the tokenizer needs a package for some caption, of any split.
    """
    if not all(split.captions is None or split.captions.is_plain() for split in data.splits.values()):
        tokenizer.encode("é")  # as any such caption would, some time
    train = data.splits["train"]
    assert train.captions is not None
    total = int(train.captions.counts(train.indices).sum())
    order = permute(np.arange(len(train), dtype=np.int64), len(train), key(0, Purpose.CAPTION))
    looked_at: list[str] = []
    for place in order.tolist():
        looked_at += train.captions[int(train.indices[place])]
        if len(looked_at) >= _LOOKED_AT:
            break
    lengths = tokenizer.lengths(looked_at)
    cut = int((lengths > tokenizer.context_length).sum())
    if cut:
        seen = f"{cut:,} of the {total:,} captions of train"
        if len(looked_at) < total:
            seen = f"about {cut / len(looked_at):.1%} of the {total:,} captions of train"
        yield (
            f"text.context_length: {seen} are longer than {tokenizer.context_length} tokens, and cut; the longest "
            f"{'of those looked at ' if len(looked_at) < total else ''}has {lengths.max()}"
        )


def _few(data: LabelledSplits, without: list[str]) -> str:
    return "this data" if len(without) == len(data.splits) else f"{' and '.join(without)} of this data"

"""The texts that images and captions are evaluated with: a split's captions, and prompts of its classes, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vit_dist.config.config import Config
from vit_dist.data.sources.splits import Subset
from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.errors import UserError
from vit_dist.inference.retrieval import Texts, prompts_of
from vit_dist.plan.keys import Ints

Tokenize = Callable[[Sequence[str]], Ints]


class SplitTexts:
    """The texts that a split is evaluated with, as tokens: each caption once, then the prompts of the classes.

    indices: of the split's samples in their source. texts: the captions of the images at the places of the split.
    classes: number of classes, 0 if there are none to tell apart. tokens: int32 [texts + prompts, context_length].
    """

    def __init__(
        self, subset: Subset, tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str], *, seed: int
    ) -> None:
        """Read the captions of a split. seed: of the heat map's keyed sample. Raises UserError if there are none."""
        if subset.captions is None:
            raise UserError("data: these images have no captions, which this model is evaluated with")
        captions = subset.captions
        self.indices = subset.indices
        texts = Texts.of([captions[index] for index in subset.indices.tolist()])
        tokens = tokenize(texts.texts).astype(np.int32)
        # Captions that are the same to the tower, as where they differ beyond the cut, are one text.
        _, first, number = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
        self.texts = texts.merged(first[number.reshape(-1)])
        self.classes = len(classes) if len(classes) > 1 else 0
        prompts = tokenize(prompts_of(classes, templates)) if self.classes else tokens[:0]
        kept = tokens[np.sort(first)]
        self.tokens = torch.from_numpy(np.concatenate([kept, prompts.astype(np.int32)]))
        self.seed = seed

    def places(self, ids: Ints) -> Ints:
        """Return the places in the split of samples with these indices in the source."""
        order = np.argsort(self.indices, kind="stable")
        return order[np.searchsorted(self.indices, ids, sorter=order)].astype(np.int64)


def split_texts(config: Config, subset: Subset, classes: Sequence[str]) -> SplitTexts:
    """Return the texts that a split of a run's data is evaluated with. Raises UserError."""
    tokenize = open_tokenizer(config.text.tokenizer, config.text.context_length)
    return SplitTexts(subset, tokenize, classes, config.text.prompts, seed=config.run.seed)

"""The file of image-text pairs: how a split's images rank their captions, and the examples that a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints
from vit_dist.run_folder.lines import is_count
from vit_dist.run_folder.predictions import BROKEN, Floats32, Pixels, are_pictures, read_arrays, replace_arrays

PAIRS = "pairs.safetensors"
_ARRAYS = ("index", "rank", "similarity", "wrong_similarity")


@dataclass(frozen=True)
class Pairs:
    """How each image of a split ranks the captions of all: arrays over the images, in the split's order.

    index: of the images in their source, rank: wrong captions that are at least as similar as the image's own, int64
    [n]. similarity: cosine to the most similar of its own captions, wrong_similarity: to the most similar other
    caption, float32 [n]. own, wrong: these captions, -1 where there is no other; numbers of `texts`, int64 [n].
    sample: places of the images of the heat map, int64 [m]; their captions are `sample_texts`; similarities: float32
    [m, m], images in rows.
    """

    index: Ints
    rank: Ints
    similarity: Floats32
    wrong_similarity: Floats32
    own: Ints
    wrong: Ints
    texts: tuple[str, ...]
    sample: Ints
    sample_texts: tuple[str, ...]
    similarities: Floats32

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lead(self) -> Floats32:
        """Return by how much the image's own caption is more similar than the best other one, float32 [n]."""
        lead: Floats32 = np.nan_to_num(self.similarity - self.wrong_similarity, nan=-2.0, posinf=2.0, neginf=-2.0)
        return lead

    def best(self, count: int) -> Ints:
        """Return the places of the images whose own caption leads most, the best first, int64 [count] at most."""
        order = np.argsort(-self.lead, kind="stable")
        return np.asarray(order[self.rank[order] == 0][:count], np.int64)

    def worst(self, count: int) -> Ints:
        """Return the places of the images whose own caption lags most, the worst first, int64 [count] at most."""
        order = np.argsort(self.lead, kind="stable")
        return np.asarray(order[self.rank[order] > 0][:count], np.int64)


@dataclass(frozen=True)
class ShownPair:
    """A pair that a report shows: the picture, uint8 [channels, height, width], and what is known of it.

    caption: the image's own, wrong: the most similar other one; similarity and wrong_similarity: theirs. rank: see
    `Pairs`. path: of the image's file, or empty.
    """

    picture: Pixels
    caption: str
    wrong: str
    similarity: float
    wrong_similarity: float
    rank: int
    path: str

    def in_words(self) -> str:
        """Return the caption with its cosine and, if another one is ahead, that."""
        own = f"{self.caption} ({self.similarity:.2f})"
        return f"{self.wrong} ({self.wrong_similarity:.2f}), is {own}" if self.rank else own


@dataclass(frozen=True)
class SavedPairs:
    """A file of pairs.

    metadata: split, weights, update, and for each picture its caption, the most similar other one and its path.
    rows: the places of the pictures, int64 [k]: first the `metadata["best"]` best ones, then the worst. sample:
    pictures of the heat map's images, uint8 [m, channels, height, width]; similarities: float32 [m, m].
    """

    index: Ints
    rank: Ints
    similarity: Floats32
    wrong_similarity: Floats32
    rows: Ints
    pictures: Pixels
    sample: Pixels
    similarities: Floats32
    metadata: dict[str, Any]

    def shown(self) -> tuple[list[ShownPair], list[ShownPair]]:
        """Return the best and the worst pairs."""
        about = self.metadata
        pairs = [
            ShownPair(
                self.pictures[number],
                about["captions"][number],
                about["wrong"][number],
                float(self.similarity[row]),
                float(self.wrong_similarity[row]),
                int(self.rank[row]),
                about["paths"][number],
            )
            for number, row in enumerate(self.rows.tolist())
        ]
        return pairs[: about["best"]], pairs[about["best"] :]

    @property
    def sample_captions(self) -> list[str]:
        """The captions of the heat map, one for each of its images."""
        captions: list[str] = self.metadata["sample"]
        return captions


def write_pairs(path: Path, saved: SavedPairs) -> None:
    """Replace a file of pairs atomically. Raises OSError."""
    names = (*_ARRAYS, "rows", "pictures", "sample", "similarities")
    replace_arrays(path, {name: getattr(saved, name) for name in names}, saved.metadata)


def read_pairs(path: Path) -> SavedPairs | None:
    """Read a file of pairs; None if there is none. Raises UserError for any other file."""
    content = read_arrays(path, {*_ARRAYS, "rows", "pictures", "sample", "similarities"})
    if content is None:
        return None
    saved = SavedPairs(**content[0], metadata=content[1])
    if not _agree(saved):
        raise UserError(BROKEN.format(path))
    return saved


def _agree(saved: SavedPairs) -> bool:
    """Return whether the arrays have the types and shapes of one split's pairs."""
    about, count, shown, sample = saved.metadata, len(saved.index), len(saved.rows), len(saved.sample)
    return bool(
        isinstance(about.get("split"), str)
        and about.get("weights") in ("raw", "ema")
        and is_count(about.get("update"))
        and is_count(about.get("best"))
        and about["best"] <= shown
        and all(_are_texts(about, name, shown) for name in ("captions", "wrong", "paths"))
        and _are_texts(about, "sample", sample)
        and all(getattr(saved, name).shape == (count,) for name in _ARRAYS)
        and all(getattr(saved, name).dtype == np.int64 for name in ("index", "rank", "rows"))
        and all(getattr(saved, name).dtype == np.float32 for name in (*_ARRAYS[2:], "similarities"))
        and saved.rows.ndim == 1
        and ((saved.rows >= 0) & (saved.rows < count)).all()
        and are_pictures(saved.pictures, shown)
        and are_pictures(saved.sample, sample)
        and saved.similarities.shape == (sample, sample)
    )


def _are_texts(about: Mapping[str, Any], name: str, count: int) -> bool:
    texts = about.get(name)
    return isinstance(texts, list) and len(texts) == count and all(isinstance(text, str) for text in texts)

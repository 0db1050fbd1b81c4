"""Captions in a run: what is noted of them at the start, and that a resume notices others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_dist import Config, UserError, train
from vit_dist.data.fingerprint import fingerprint
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.training.captions import caption_notes
from vit_dist.training.resolve import resolve

MERGES = Path(__file__).parents[1] / "data" / "text" / "clip_merges.txt"
SMALL = {
    **{"loss.name": "clip", "model.name": "vit_tiny", "model.width": 16, "model.depth": 1, "model.heads": 2},
    **{"model.patch_size": 4, "text.width": 16, "text.depth": 1, "text.heads": 2, "text.embed_dim": 8},
    **{"text.context_length": 16, "batch.global_size": 8, "batch.micro_size": 4, "train.duration": "3 updates"},
    **{"evaluate.every": "3 updates", "run.device": "cpu", "run.threads": 1, "data.workers": 0},
    **{"log.trackers": "none", "log.report": False, "data.val_fraction": 0.2, "augment.crop_min": 0.0},
}
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
TEXTS = [f"picture {number}" for number in range(20)]


def config(folder: Path, **changes: Any) -> Config:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return Config.load("contrastive", {**SMALL, "run.dir": str(folder), **names})


def opened(texts: Sequence[Any] = TEXTS) -> LabelledSplits:
    return from_source((PIXELS, texts), Config.load("contrastive", SMALL).data, captions=True)


def test_a_resume_with_other_captions_or_another_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(config(folder), source=(PIXELS, TEXTS))
    changed = list(TEXTS)
    changed[int(opened().splits["train"].indices[0])] = "another"
    for texts, fields, what in (
        (changed, {}, "other captions of train"),
        (TEXTS, {"text__tokenizer": str(MERGES)}, "another text.tokenizer"),
    ):
        with pytest.raises(UserError) as caught:
            train(config(folder, train__duration="5 updates", **fields), source=(PIXELS, texts))
        assert str(caught.value) == (
            f"data: {folder} was trained with {what}: bring the old ones back, or set another run.dir or run.name, or "
            "none, for a new run"
        )
    run = train(config(folder, train__duration="5 updates"), source=(PIXELS, TEXTS))
    assert [line["update"] for line in run.history if line["kind"] == "train"][-1] == 5


def test_captions_and_tokenizer_name_a_run_and_a_classifier_has_neither() -> None:
    def named(texts: Sequence[Any], **fields: Any) -> str:
        return resolve(Config.load("contrastive", {**SMALL, **fields}), (PIXELS, texts)).config.run.name

    names = [named(TEXTS), named([*TEXTS[:-1], "another"]), named(TEXTS, **{"text.tokenizer": str(MERGES)})]
    assert len(set(names)) == 3
    assert named(TEXTS) == names[0]
    plain = fingerprint(from_source((PIXELS, [number % 2 for number in range(20)]), Config().data))
    assert set(plain["train"]) == {"samples", "sha256"}
    of_pairs = fingerprint(opened(), "digest")
    assert of_pairs["train"].keys() - plain["train"].keys() == {"captions", "tokenizer"}
    assert of_pairs["train"]["captions"] != of_pairs["val"]["captions"]


def test_captions_that_are_cut_are_counted() -> None:
    texts = [["short", "twelve bytes"] if number < 5 else "fits" for number in range(20)]
    data = opened(texts)
    train_texts = [text for place in data.splits["train"].indices.tolist() for text in np.atleast_1d(texts[place])]
    cut = sum(text == "twelve bytes" for text in train_texts)
    assert list(caption_notes(data, open_tokenizer("bytes", 14))) == []
    assert list(caption_notes(data, open_tokenizer("bytes", 10))) == [
        f"text.context_length: {cut} of the {len(train_texts)} captions of train are longer than 10 tokens, and cut; "
        "the longest has 14"
    ]


def test_of_many_captions_a_part_is_looked_at() -> None:
    data = opened()
    many = Captions.of([[f"{number}" * (4 if number % 4 == 0 else 1) for number in range(1000)]] * 20)
    splits = {name: replace(split, captions=many) for name, split in data.splits.items()}
    (note,) = caption_notes(replace(data, splits=splits), open_tokenizer("bytes", 7))
    assert note == (
        "text.context_length: about 24.7% of the 16,000 captions of train are longer than 7 tokens, and cut; the "
        "longest of those looked at has 14"
    )


def test_captions_that_need_a_package_are_told_before_the_run_wherever_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    data, tokenizer = opened(), open_tokenizer(str(MERGES), 16)
    assert list(caption_notes(data, tokenizer)) == []
    texts = list(TEXTS)
    texts[int(data.splits["val"].indices[0])] = "naïve"
    with pytest.raises(UserError, match=r"ftfy, which is not installed: pip install ftfy$"):
        list(caption_notes(opened(texts), tokenizer))
    assert list(caption_notes(opened(texts), open_tokenizer("bytes", 16))) == []

"""Captions in the stream: drawn by key, tokenised, and the same whatever the world, the workers and the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.test_stream import GLOBAL, PREPROCESSING, SEED, as_rank, global_batch, plan_of
from vit_dist.config.fields import AugmentConfig, RunConfig
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.splits import Subset
from vit_dist.data.stream import Stream
from vit_dist.data.text.captioner import Captioner
from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime

TOKENIZER = open_tokenizer("bytes", 24)


def text_of(index: int) -> tuple[str, ...]:
    """The captions of the image at an index of the source: from one to three."""
    return tuple(f"image {index}, caption {number}" for number in range(1 + index % 3))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


@pytest.fixture(scope="module")
def captioned(image_folder: Path) -> Subset:
    """Return train in another order than its source's, so that a place in the split is no index."""
    train = read_folder(image_folder).splits["train"]
    captions = Captions.of(map(text_of, range(len(train.source))))
    return replace(train.take(np.arange(len(train))[::-1].copy()), captions=captions)


def streams_of(subset: Subset, runtime: Runtime, plan: Plan, workers: int = 0, on_bad: str = "fail") -> list[Stream]:
    return [
        Stream(
            subset, plan, PREPROCESSING, AugmentConfig(flip=0.5), as_rank(runtime, rank, plan.world_size),
            workers=workers, tokenizer=TOKENIZER, on_bad_sample=on_bad,
        )
        for rank in range(plan.world_size)
    ]  # fmt: skip


def read(streams: list[Stream], position: int) -> tuple[list[int], list[str], Tensor]:
    """Return samples, texts and caption ids of the real slots of a global batch."""
    ids, texts, numbers = [], [], []
    for batch in global_batch(streams, position):
        assert batch.tokens is not None
        assert batch.caption_ids is not None
        assert batch.tokens.shape == (len(batch.ids), 24)
        assert batch.tokens.dtype == batch.caption_ids.dtype == torch.int64
        real = batch.weights > 0
        ids += batch.ids[real].tolist()
        texts += [bytes(int(byte) - 1 for byte in row if 0 < byte <= 256).decode() for row in batch.tokens[real]]
        numbers.append(batch.caption_ids[real])
    return ids, texts, torch.cat(numbers)


@pytest.mark.parametrize(("micro_size", "world", "workers"), [(4, 1, 0), (4, 2, 1), (2, 3, 0)])
def test_each_sample_has_the_caption_that_its_key_draws(
    captioned: Subset, runtime: Runtime, micro_size: int, world: int, workers: int
) -> None:
    plan = plan_of(micro_size, world)
    whole = plan_of(12)
    for start in (0, 5):  # from the beginning, and as after a resume, over the end of an epoch
        streams = streams_of(captioned, runtime, plan, workers)
        for position in range(start, start + 2):
            ids, texts, numbers = read(streams, position)
            slots = whole.slots(position, 0)
            index, epochs = captioned.indices[slots.index[:GLOBAL]].tolist(), slots.epoch[:GLOBAL].tolist()
            assert ids == index
            assert texts == [
                text_of(i)[key(SEED, Purpose.CAPTION, e, i) % len(text_of(i))]
                for i, e in zip(index, epochs, strict=True)
            ]
            assert len(set(numbers.tolist())) == len(set(texts))
            assert int(numbers.min()) >= 0
        for stream in streams:
            stream.close()


def test_all_captions_of_an_image_have_their_turn_over_the_epochs() -> None:
    captioner = Captioner(Captions.of([("a", "b", "c"), ("d",)]), TOKENIZER, SEED)
    epochs = np.arange(3000)
    drawn = Counter(captioner.draw(np.zeros_like(epochs), epochs).tolist())
    assert sorted(drawn) == [0, 1, 2]
    assert min(drawn.values()) > 900
    assert set(captioner.draw(np.ones_like(epochs), epochs).tolist()) == {3}
    assert set(Captioner(captioner.captions, TOKENIZER, 1).draw(np.zeros(9, int), np.arange(9)).tolist()) <= {0, 1, 2}


def test_captions_have_one_id_exactly_where_their_tokens_are_equal() -> None:
    long = "the same for as long as can be read, "
    captions = Captions.of([("a cat",), ("a dog", "a cat"), (long + "one",), (long + "two",), ("A cat",)])
    captioner = Captioner(captions, TOKENIZER, 0)
    by_text: dict[str, int] = {}
    for epoch in range(20):
        tokens, ids = captioner(np.arange(5), np.full(5, epoch))
        for row, number in zip(tokens, ids.tolist(), strict=True):
            assert by_text.setdefault(row.tobytes().hex(), number) == number
        assert ids[2] == ids[3]
        assert ids[4] != ids[0]
    assert len(by_text) == len(set(by_text.values())) == 4


def test_a_sample_drawn_in_place_of_a_bad_one_brings_its_own_caption(
    captioned: Subset, runtime: Runtime, tmp_path: Path
) -> None:
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(30):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / label / f"{number:02}.png")
    bad = tmp_path / "bee" / "07.png"
    bad.write_bytes(bad.read_bytes()[:40])
    train = read_folder(tmp_path).splits["train"]
    subset = replace(train, captions=Captions.of(map(text_of, range(60))))
    (stream,) = streams_of(subset, runtime, plan_of(12), on_bad="skip")
    seen: list[int] = []
    for position in range(6):
        ids, texts, _ = read([stream], position)
        assert all(text in text_of(index) for index, text in zip(ids, texts, strict=True))
        seen += ids
    assert stream.bad.count == 1
    assert 37 not in seen
    stream.close()


def test_without_a_tokenizer_a_batch_has_no_captions(captioned: Subset, runtime: Runtime) -> None:
    stream = Stream(captioned, plan_of(12), PREPROCESSING, AugmentConfig(), runtime, workers=0)
    batch = next(stream.window(0))
    assert batch.tokens is batch.caption_ids is None

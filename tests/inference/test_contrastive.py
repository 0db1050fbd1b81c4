"""The evaluation of two towers: what sorting by hand gives, the same on one, two and three processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.processes import run_world
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import LabelledSplits, Subset
from vit_dist.data.stream import EvaluationStream
from vit_dist.data.text.tokenizer import open_tokenizer
from vit_dist.errors import UserError
from vit_dist.inference.contrastive import ContrastiveEvaluation, evaluate_towers
from vit_dist.inference.split_texts import SplitTexts
from vit_dist.models.contrastive_loss import ContrastiveLoss
from vit_dist.models.two_tower import TwoTower, build_two_tower
from vit_dist.plan.keys import Purpose, keys
from vit_dist.runtime.runtime import Runtime

FIELDS: dict[str, Any] = {
    **{"data.name": "digits_captions", "loss.name": "clip", "run.device": "cpu"},
    **{"model.width": 24, "model.depth": 1, "model.heads": 2, "model.patch_size": 4},
    **{"text.width": 24, "text.depth": 1, "text.heads": 2, "text.context_length": 24, "text.embed_dim": 12},
    "text.prompts": ["a handwritten {}", "the digit {}"],
}


def _config() -> Config:
    return Config.load("digits", {**FIELDS, "loss.label_smoothing": 0.0})


def _towers(config: Config) -> TwoTower:
    vocabulary = open_tokenizer("bytes", 24).vocabulary_size
    shape: dict[str, Any] = {"vocabulary_size": vocabulary, "channels": 1, "image_size": 8, "seed": 3}
    return build_two_tower(config.model, config.text, "clip", **shape)


def _test_split(config: Config, count: int) -> tuple[LabelledSplits, Subset]:
    data = open_data(config.data, captions=True)
    return data, data.splits["test"].take(slice(count))


def _stream(subset: Subset, runtime: Runtime, batch_size: int, **kwargs: Any) -> EvaluationStream:
    preprocessing = Preprocessing(8, (0.3,), (0.4,))
    return EvaluationStream(subset, preprocessing, runtime, batch_size=batch_size, workers=0, **kwargs)


def _texts(config: Config, data: LabelledSplits, subset: Subset) -> SplitTexts:
    tokenize = open_tokenizer("bytes", config.text.context_length)
    return SplitTexts(subset, tokenize, data.classes, config.text.prompts, seed=0)


def _settings(config: Config, **more: Any) -> dict[str, Any]:
    return {"loss": ContrastiveLoss(config.loss), "loss_size": 32, "batch_size": 16, **more}


def _evaluate(size: int, batch_size: int = 16) -> dict[str, Any]:
    """Evaluate 70 digits and return all figures and arrays, but for the seconds."""
    config = _config()
    torch.set_num_threads(1)
    runtime = Runtime(replace(config.run, threads=1), "fp32")
    try:
        data, subset = _test_split(config, 70)
        stream, texts = _stream(subset, runtime, batch_size), _texts(config, data, subset)
        settings = _settings(config, batch_size=batch_size, keep="")
        weights = {"": contextlib.nullcontext}
        result = evaluate_towers(_towers(config), weights, stream, texts, runtime, **settings)[""]
        assert runtime.world_size == size
    finally:
        runtime.end()
    return _plain(result)


def _plain(result: ContrastiveEvaluation) -> dict[str, Any]:
    assert result.pairs is not None
    arrays = {
        name: value.tolist() if isinstance(value, np.ndarray) else list(value)
        for name, value in asdict(result.pairs).items()
    }
    return {**result.to_dict(), "seconds": 0, "pairs": arrays}


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return _evaluate(1)


def test_figures_are_what_sorting_by_hand_gives(alone: dict[str, Any]) -> None:
    config = _config()
    data, subset = _test_split(config, 70)
    assert subset.captions is not None
    towers, tokenize = _towers(config).eval(), open_tokenizer("bytes", 24)
    source: Any = subset.source
    pixels = torch.from_numpy(source.pixels[subset.indices].astype(np.float32)) / 255
    own = [set(map(_cut, subset.captions[index])) for index in subset.indices.tolist()]
    texts = sorted(set().union(*own))
    with torch.no_grad():
        images = towers.encode_image((pixels - 0.3) / 0.4)
        scores = images @ towers.encode_text(torch.from_numpy(tokenize(texts))).T
        prompts = [[f"a handwritten {name}", f"the digit {name}"] for name in data.classes]
        classes = torch.stack([towers.encode_text(torch.from_numpy(tokenize(of))).mean(0) for of in prompts])
        classes = classes / classes.norm(dim=1, keepdim=True)
        logits = images @ classes.T
    labels = torch.from_numpy(subset.labels)
    queries = [(image, text) for image, of_image in enumerate(own) for text in of_image]
    for k in (1, 5, 10):
        best = scores.topk(k, 1).indices.tolist()
        found = [any(texts[n] in own[image] for n in best[image]) for image in range(70)]
        assert alone[f"image_to_text_recall_at_{k}"] == pytest.approx(100 * np.mean(found))
        best = scores.topk(k, 0).indices.T.tolist()
        found = [any(text in own[n] for n in best[texts.index(text)]) for _, text in queries]
        assert alone[f"text_to_image_recall_at_{k}"] == pytest.approx(100 * np.mean(found))
    assert alone["zero_shot_top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    hits = (logits.topk(5).indices == labels[:, None]).any(1)
    assert alone["zero_shot_top5"] == pytest.approx(100 * hits.float().mean().item())
    firsts = (alone["image_to_text_recall_at_1"], alone["text_to_image_recall_at_1"])
    assert alone["mean_recall_at_1"] == pytest.approx(sum(firsts) / 2)
    assert alone["seen"] == 70
    assert 0 < alone["zero_shot_top1"] < 60


def _cut(text: str) -> str:
    """Return a text as the tower sees it: the first 22 bytes."""
    return text[:22]


def test_the_loss_is_that_of_batches_of_pairs(runtime: Runtime) -> None:
    config = _config()
    data, subset = _test_split(config, 40)
    towers, texts = _towers(config), _texts(config, data, subset)
    weights = {"": contextlib.nullcontext}
    settings = _settings(config, loss_size=24)
    result = evaluate_towers(towers, weights, _stream(subset, runtime, 16), texts, runtime, **settings)[""]
    captions = texts.texts
    first = np.searchsorted(captions.image, np.arange(41))
    drawn = keys(0, Purpose.GRID, subset.indices) % np.diff(first).astype(np.uint64)
    own = captions.text[first[:-1] + drawn.astype(np.int64)]
    source: Any = subset.source
    pixels = torch.from_numpy(source.pixels[subset.indices].astype(np.float32)) / 255
    with torch.no_grad():
        images = towers.encode_image((pixels - 0.3) / 0.4)
        of_texts = towers.encode_text(texts.tokens[torch.from_numpy(own)].long())
        logits = [images[part] @ of_texts[part].T / 0.07 for part in (slice(24), slice(24, 40))]
    losses = []
    for part, z in zip((own[:24], own[24:]), logits, strict=True):
        target = torch.from_numpy(part[:, None] == part).float()
        target /= target.sum(1, keepdim=True)
        losses += (F.cross_entropy(z, target, reduction="none") + F.cross_entropy(z.T, target, reduction="none")) / 2
    assert result.loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_gives_the_same_to_the_bit(alone: dict[str, Any], size: int, tmp_path: Path) -> None:
    expected = json.loads(json.dumps(alone))
    assert run_world(size, _evaluate, tmp_path, size) == [expected] * size


def test_pairs_and_heat_map(alone: dict[str, Any]) -> None:
    pairs = alone["pairs"]
    config = _config()
    _, subset = _test_split(config, 70)
    assert subset.captions is not None
    assert pairs["index"] == subset.indices.tolist()
    assert len(set(pairs["sample_texts"])) == len(pairs["sample"]) == 16
    for place, text in zip(pairs["sample"], pairs["sample_texts"], strict=True):
        assert _cut(text) in {_cut(own) for own in subset.captions[int(subset.indices[place])]}
    for place in range(70):
        captions = {_cut(text) for text in subset.captions[int(subset.indices[place])]}
        assert _cut(pairs["texts"][pairs["own"][place]]) in captions
        assert _cut(pairs["texts"][pairs["wrong"][place]]) not in captions
        assert (pairs["rank"][place] == 0) == (pairs["similarity"][place] > pairs["wrong_similarity"][place])


def test_two_kinds_of_weights_share_a_pass(runtime: Runtime) -> None:
    config = _config()
    data, subset = _test_split(config, 40)
    towers, texts = _towers(config), _texts(config, data, subset)
    before = {name: tensor.clone() for name, tensor in towers.state_dict().items()}

    @contextlib.contextmanager
    def noisy() -> Iterator[None]:
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter.mul_(-1)
        try:
            yield
        finally:
            towers.load_state_dict(before)

    settings = _settings(config)
    weights: dict[str, Any] = {"raw": contextlib.nullcontext, "ema": noisy}
    both = evaluate_towers(towers, weights, _stream(subset, runtime, 16), texts, runtime, **settings)
    for name, swap in weights.items():
        alone = evaluate_towers(towers, {name: swap}, _stream(subset, runtime, 16), texts, runtime, **settings)[name]
        assert replace(both[name], seconds=0.0) == replace(alone, seconds=0.0)
    assert both["raw"].loss != both["ema"].loss
    assert both["raw"].pairs is None
    assert towers.training


def test_images_that_cannot_be_read_are_left_out_with_their_captions(runtime: Runtime) -> None:
    class Torn:
        """The digits, without two of them."""

        def __init__(self, source: Any, bad: set[int]) -> None:
            self.source, self.bad, self.labels = source, bad, source.labels

        def __len__(self) -> int:
            return len(self.labels)

        def image(self, index: int) -> Any:
            if index in self.bad:
                raise OSError("torn")
            return self.source.image(index)

    config = _config()
    data, subset = _test_split(config, 40)
    bad = {int(subset.indices[3]), int(subset.indices[17])}
    left = subset.take(np.asarray([place for place in range(40) if int(subset.indices[place]) not in bad]))
    towers = _towers(config)
    settings = _settings(config, keep="", loss_size=64)
    found = []
    for part in (replace(subset, source=Torn(subset.source, bad)), replace(left, source=Torn(subset.source, set()))):
        stream = _stream(part, runtime, 16, on_bad_sample="skip")
        texts = _texts(config, data, part)
        result = evaluate_towers(
            towers, {"": contextlib.nullcontext}, stream, texts, runtime, bad=stream.bad, **settings
        )[""]
        assert result.pairs is not None
        found.append(result)
    torn, whole = found
    assert (torn.seen, torn.bad, whole.seen, whole.bad) == (38, 2, 38, 0)
    assert torn.figures == whole.figures
    assert torn.loss == pytest.approx(whole.loss, rel=1e-6)
    assert torn.pairs is not None
    assert whole.pairs is not None
    assert torn.pairs.index.tolist() == whole.pairs.index.tolist()


def test_captions_without_classes_have_no_zero_shot_accuracy(runtime: Runtime) -> None:
    config = _config()
    _, subset = _test_split(config, 4)
    subset = replace(subset, labels=np.zeros(4, np.int64))
    texts = SplitTexts(subset, open_tokenizer("bytes", 24), ("",), config.text.prompts, seed=0)
    settings = _settings(config)
    weights = {"": contextlib.nullcontext}
    result = evaluate_towers(_towers(config), weights, _stream(subset, runtime, 2), texts, runtime, **settings)[""]
    assert "zero_shot_top1" not in result.figures
    assert result.figures["text_to_image_recall_at_5"] is None  # of four images all are among the first five
    assert result.figures["image_to_text_recall_at_5"] is not None


def test_a_split_without_captions_is_refused() -> None:
    config = _config()
    data, subset = _test_split(config, 4)
    with pytest.raises(UserError, match=r"^data: these images have no captions"):
        _texts(config, data, replace(subset, captions=None))

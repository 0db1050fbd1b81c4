"""Recall and zero-shot accuracy on embeddings: against sorting by hand, ties, NaN, several captions, blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit_dist.inference import retrieval
from vit_dist.inference.retrieval import Texts, class_embeddings, hit_rate, most_similar, prompts_of, rank_candidates


def _embeddings(count: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def _ranks(*args, **kwargs) -> torch.Tensor:
    return rank_candidates(*args, **kwargs).rank


def test_recall_is_what_the_literature_counts():
    """As on COCO: an image has any of its captions among the first k, a caption has its image among the first k."""
    captions = [[f"image {i} caption {j}" for j in range(1 + i % 5)] for i in range(60)]
    texts = Texts.of(captions)
    images, of_texts = _embeddings(60, 6, 0), _embeddings(len(texts.texts), 6, 1)
    owner = [i for i, own in enumerate(captions) for _ in own]
    scores = images @ of_texts.T
    for k in (1, 5, 10):
        to_text = [any(owner[t] == i for t in scores[i].argsort(descending=True)[:k]) for i in range(60)]
        to_image = [owner[t] in scores[:, t].argsort(descending=True)[:k] for t in range(len(owner))]
        by_text = np.argsort(texts.text, kind="stable")
        assert hit_rate(_ranks(images, of_texts, texts.image, texts.text), k) == pytest.approx(100 * np.mean(to_text))
        found = _ranks(of_texts, images, texts.text[by_text], texts.image[by_text])
        assert hit_rate(found, k) == pytest.approx(100 * np.mean(to_image))


def test_equal_captions_are_one_text_and_right_for_each_of_their_images():
    texts = Texts.of([["a", "b", "a"], ["b"], ["c"]])
    assert texts.texts == ("a", "b", "c")
    assert list(zip(texts.image.tolist(), texts.text.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (2, 2)]
    # Image 1's text is as similar to image 0, whose caption it is too: nothing wrong is before it.
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    of_texts = torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert _ranks(images, of_texts, texts.image, texts.text).tolist() == [0, 0, 0]
    assert _ranks(of_texts, images, np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2])).tolist() == [1, 0, 0]
    few, numbers = texts.only(np.array([1, 2]))
    assert (few.texts, few.image.tolist(), few.text.tolist()) == (("b", "c"), [0, 1], [0, 1])
    assert numbers.tolist() == [1, 2]


def test_ties_count_against_the_model_and_nan_is_never_right():
    collapsed = torch.ones(7, 3)
    pairs = np.arange(7)
    assert _ranks(collapsed, collapsed, pairs, pairs).tolist() == [6] * 7
    broken = _embeddings(7, 3, 0)
    broken[:] = torch.nan
    assert hit_rate(_ranks(broken, collapsed, pairs, pairs), 5) == 0
    one = _embeddings(7, 3, 0)
    one[3] = torch.nan  # one text of NaN is before all others, and no image's
    assert (_ranks(_embeddings(7, 3, 0), one, pairs, pairs) >= 1).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_blocks_and_ranks_change_nothing(monkeypatch, world_size):
    texts = Texts.of([[f"{i}.{j}" for j in range(1 + i % 3)] for i in range(50)])
    images, of_texts = _embeddings(50, 5, 2), _embeddings(len(texts.texts), 5, 3)
    whole = _ranks(images, of_texts, texts.image, texts.text)
    monkeypatch.setattr(retrieval, "_BLOCK", 7 * len(texts.texts))
    parts = [
        _ranks(images, of_texts, texts.image, texts.text, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sum(parts).tolist() == whole.tolist()  # type: ignore[union-attr]
    assert len(set(whole.tolist())) > 5


def test_memory_is_bounded_by_the_block(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 3 * 400)
    shapes = set()
    original = torch.Tensor.masked_fill

    def seen(self, *args, **kwargs):
        shapes.add(tuple(self.shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "masked_fill", seen)
    pairs = np.arange(400)
    rank_candidates(_embeddings(400, 4, 0), _embeddings(400, 4, 1), pairs, pairs)
    assert shapes == {(3, 400), (1, 400), (3,), (1,)}


def test_the_most_similar_right_and_wrong_candidates():
    images, of_texts = torch.eye(3), torch.tensor([[0.9, 0.3, 0.0], [0.8, 0.2, 0.0], [0.7, 0.6, 1.0]])
    found = rank_candidates(images, of_texts, np.array([0, 0, 1, 2]), np.array([1, 2, 0, 2]))
    assert found.right.tolist() == [1, 0, 2]
    assert found.wrong.tolist() == [0, 2, 0]
    assert torch.allclose(found.right_similarity, torch.tensor([0.8, 0.3, 1.0]))
    assert torch.allclose(found.wrong_similarity, torch.tensor([0.9, 0.6, 0.0]))
    alone = rank_candidates(images[:1], of_texts[:1], np.array([0]), np.array([0]))
    assert (alone.rank.item(), alone.wrong.item(), alone.wrong_similarity.item()) == (0, -1, -torch.inf)


def test_zero_shot_is_a_rank_among_classes():
    classes, labels = _embeddings(8, 4, 5), np.arange(40) % 8
    images = _embeddings(40, 4, 6)
    found = _ranks(images, classes, np.arange(40), labels)
    logits, targets = images @ classes.T, torch.from_numpy(labels)
    assert hit_rate(found, 1) == pytest.approx(100 * (logits.argmax(1) == targets).double().mean().item())
    top5 = (logits.topk(5).indices == targets[:, None]).any(1)
    assert hit_rate(found, 5) == pytest.approx(100 * top5.double().mean().item())


def test_templates_are_averaged_after_they_are_normalised():
    assert prompts_of(["cat", "{}"], ["a {}.", "{}"]) == ["a cat.", "cat", "a {}.", "{}"]
    of_prompts = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -2.0], [0.0, -5.0]])
    made = class_embeddings(of_prompts, 2)
    assert torch.allclose(made, torch.tensor([[2**-0.5, 2**-0.5], [0.0, -1.0]]))


def test_weights_of_queries():
    assert hit_rate(torch.tensor([0, 3, 0]), 1, torch.tensor([1, 2, 1])) == 50


def test_most_similar_is_ordered_and_stable(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 8)
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    values, numbers = most_similar(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), candidates, 3)
    assert numbers.tolist() == [[0, 2, 3], [1, 3, 0], [3, 0, 2]]
    assert torch.allclose(values[0], torch.tensor([1.0, 1.0, 0.6]))
    assert most_similar(candidates, candidates, 9)[1].shape == (4, 4)

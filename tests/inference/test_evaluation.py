"""Exact evaluation by hand; its equality over worlds and batch sizes is in test_loop.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.processes import run_world
from vit_dist.config.fields import DataConfig, RunConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.stream import EvaluationStream
from vit_dist.inference.evaluation import evaluate
from vit_dist.runtime.runtime import Runtime

LOGITS = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # right at once
        [1.0, 9, 2, 3, 4, 5, 6],  # class 6 is second
        [0.0, 1, 2, 3, 4, 5, 6],  # class 2 is fifth
        [0.0, 1, 2, 3, 4, 5, 6],  # class 1 is sixth
        [0.0, 1, 2, 3, 4, 5, 6],  # a filler
    ]
)
TARGETS = torch.tensor([0, 6, 2, 1, 6])
WEIGHTS = torch.tensor([1.0, 1, 1, 1, 0])
IDS = torch.tensor([30, 10, 20, 0, 30])


class Given(nn.Module):
    """Logits are the images."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return images


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu"), "fp32")
    yield runtime
    runtime.end()


def test_by_hand(runtime: Runtime) -> None:
    model = Given()
    parts = [(LOGITS[:3], TARGETS[:3], WEIGHTS[:3], IDS[:3]), (LOGITS[3:], TARGETS[3:], WEIGHTS[3:], IDS[3:])]
    result = evaluate(model, parts, 4, runtime)
    exponentials = LOGITS[:4].double().exp()
    by_hand = -(exponentials[range(4), TARGETS[:4]] / exponentials.sum(1)).log().mean().item()
    assert (result.seen, result.top1, result.top5) == (4, 25.0, 75.0)
    assert result.loss == pytest.approx(by_hand, rel=1e-6)
    assert model.modes == [False, False]
    assert model.training


def test_five_classes_have_no_top5(runtime: Runtime) -> None:
    result = evaluate(Given(), [(LOGITS[:1, :5], TARGETS[:1], WEIGHTS[:1], IDS[:1])], 1, runtime)
    assert (result.top1, result.top5) == (100.0, None)


def test_a_sample_that_was_not_seen_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(AssertionError, match=r"4\.0 of 5 samples were seen"):
        evaluate(Given(), [(LOGITS, TARGETS, WEIGHTS, IDS)], 5, runtime)


def test_top1_of_predictions_is_evaluations_to_the_bit(runtime: Runtime) -> None:
    """For every number of right answers among 359."""
    targets = torch.arange(359) % 7
    for right in range(360):
        logits = torch.eye(7)[(targets + (torch.arange(359) >= right)) % 7]
        parts = [(logits, targets, torch.ones(359), torch.arange(359))]
        result = evaluate(Given(), parts, 359, runtime, keep=1)
        assert result.predictions is not None
        assert result.predictions.top1() == result.top1, right


def parts_of(classes: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Two batches of the first so many classes; the last two slots are fillers."""
    return [
        (LOGITS[rows, :classes], TARGETS[rows] % classes, WEIGHTS[rows], IDS[rows]) for rows in ([0, 1, 2], [3, 4, 4])
    ]


@pytest.mark.parametrize("keep", [1, 3, 5, 7, 12])
@pytest.mark.parametrize("classes", [7, 3])
def test_predictions_by_hand(runtime: Runtime, classes: int, keep: int) -> None:
    result = evaluate(Given(), parts_of(classes), 4, runtime, keep=keep)
    found = result.predictions
    assert found is not None
    width = min(keep, classes)
    logits = LOGITS[:4, :classes].double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = [sorted(range(classes), key=lambda one, row=row: -row[one])[:width] for row in logits]
    assert found.index.tolist() == [30, 10, 20, 0]
    assert found.label.tolist() == [0, 6 % classes, 2, 1]
    assert found.top.tolist() == order
    np.testing.assert_allclose(found.probability, np.take_along_axis(probabilities, np.array(order), 1), rtol=1e-6)
    assert {str(array.dtype) for array in (found.index, found.label, found.top)} == {"int64"}
    assert str(found.probability.dtype) == "float32"
    assert len(found) == 4
    assert found.top1() == result.top1
    # What is measured does not depend on what is kept.
    plain = evaluate(Given(), parts_of(classes), 4, runtime)
    assert plain.predictions is None
    assert (plain.loss, plain.top1, plain.top5) == (result.loss, result.top1, result.top5)


def test_predictions_are_no_part_of_a_line(runtime: Runtime) -> None:
    result = evaluate(Given(), parts_of(7), 4, runtime, keep=5)
    values = result.to_dict()
    assert sorted(values) == ["loss", "seconds", "seen", "top1", "top5"]
    assert json.loads(json.dumps(values)) == values
    assert values["top5"] == 75.0


def model_of_digits() -> nn.Module:
    """One that says many things, each of them surely or less so."""
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(0, 0.2, (10, 64))))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def predictions_of_digits(sizes: list[int], keeps: list[int]) -> list[Any]:
    """What each of these batch sizes and numbers of classes gives, on every rank."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    data = open_data(DataConfig(name="digits"))
    subset = data.splits["test"]
    model = model_of_digits()
    found = []
    for size in sizes:
        stream = EvaluationStream(subset, Preprocessing(8, data.mean, data.std), runtime, batch_size=size, workers=0)
        for keep in keeps:
            kept = evaluate(model, stream, len(subset), runtime, keep=keep).predictions
            assert kept is not None
            arrays = (kept.index, kept.label, kept.top, kept.probability)
            found.append([size, keep, *(array.tolist() for array in arrays)])
    runtime.end()
    return found


def test_predictions_are_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    """Of 359 images: batches of 7 leave rank 2 of 3 a whole batch of fillers; one of 400 leaves all but rank 0 so."""
    sizes, keeps = [7, 64, 400], [1, 3, 5, 12]
    data = open_data(DataConfig(name="digits"))
    subset = data.splits["test"]
    pixels = torch.from_numpy(subset.source.pixels[subset.indices]).float() / 255  # type: ignore[union-attr]
    with torch.no_grad():
        logits = model_of_digits()((pixels - data.mean[0]) / data.std[0]).double()
    order = logits.argsort(1, descending=True)
    probability = logits.softmax(1).gather(1, order).numpy()
    labels = subset.source.labels[subset.indices]
    assert len(set(order[:, 0].tolist())) > 5
    of_worlds = {1: [predictions_of_digits(sizes, keeps)]}
    of_worlds |= {n: run_world(n, predictions_of_digits, tmp_path / str(n), sizes, keeps) for n in (2, 3)}
    for world, ranks in of_worlds.items():
        for rank in ranks:
            assert [one[:2] for one in rank] == [[size, keep] for size in sizes for keep in keeps]
            for size, keep, index, label, top, surely in rank:
                assert index == subset.indices.tolist(), (world, size)
                assert label == labels.tolist(), (world, size)
                assert top == order[:, :keep].tolist(), (world, size)
                np.testing.assert_allclose(surely, probability[:, :keep], rtol=1e-5)

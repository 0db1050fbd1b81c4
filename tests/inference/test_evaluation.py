"""Evaluation is exact: it equals calculations by hand, with any batch size and on any number of processes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
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
from vit_dist.inference.evaluation import Swap, evaluate, evaluate_each
from vit_dist.optim.ema import EMA
from vit_dist.runtime.runtime import Runtime

LOGITS = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # class 0 is first
        [1.0, 9, 2, 3, 4, 5, 6],  # class 6 is second
        [0.0, 1, 2, 3, 4, 5, 6],  # class 2 is fifth
        [0.0, 1, 2, 3, 4, 5, 6],  # class 1 is sixth
        [0.0, 1, 2, 3, 4, 5, 6],  # padding
    ]
)
TARGETS = torch.tensor([0, 6, 2, 1, 6])
WEIGHTS = torch.tensor([1.0, 1, 1, 1, 0])
IDS = torch.tensor([30, 10, 20, 0, 30])


class ImagesAsLogits(nn.Module):
    """A model that returns the images as logits and records its mode in each call."""

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


def test_one_pass_with_several_weights_is_one_pass_with_each(runtime: Runtime) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7))
    average = EMA(model, 0.9)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator))
    images, targets = torch.randn(3, 5, 4, generator=generator), torch.randint(7, (3, 5), generator=generator)
    batches = [(images[n], targets[n], torch.ones(5), torch.arange(5) + 5 * n) for n in range(3)]
    reads = iter(batches)  # which can be read only once
    weights: dict[str, Swap] = {"raw": contextlib.nullcontext, "ema": average.swapped}
    together = evaluate_each(model, weights, reads, 15, runtime, keep={"ema": 3})
    raw = evaluate(model, batches, 15, runtime)
    with average.swapped():
        ema = evaluate(model, batches, 15, runtime, keep=3)
    assert raw.loss != ema.loss
    for one, other in ((together["raw"], raw), (together["ema"], ema)):
        assert replace(one, seconds=0.0, predictions=None) == replace(other, seconds=0.0, predictions=None)
    assert together["raw"].predictions is None
    assert together["ema"].predictions is not None
    assert ema.predictions is not None
    assert np.array_equal(together["ema"].predictions.probability, ema.predictions.probability)


def test_loss_and_accuracy_match_a_calculation_by_hand(runtime: Runtime) -> None:
    model = ImagesAsLogits()
    batches = [(LOGITS[:3], TARGETS[:3], WEIGHTS[:3], IDS[:3]), (LOGITS[3:], TARGETS[3:], WEIGHTS[3:], IDS[3:])]
    result = evaluate(model, batches, 4, runtime)
    exponentials = LOGITS[:4].double().exp()
    expected_loss = -(exponentials[range(4), TARGETS[:4]] / exponentials.sum(1)).log().mean().item()
    assert (result.seen, result.top1, result.top5) == (4, 25.0, 75.0)
    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    assert model.modes == [False, False]
    assert model.training


def test_five_classes_have_no_top5(runtime: Runtime) -> None:
    result = evaluate(ImagesAsLogits(), [(LOGITS[:1, :5], TARGETS[:1], WEIGHTS[:1], IDS[:1])], 1, runtime)
    assert (result.top1, result.top5) == (100.0, None)


def test_a_missing_sample_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(AssertionError, match=r"4\.0 of 5 samples were seen"):
        evaluate(ImagesAsLogits(), [(LOGITS, TARGETS, WEIGHTS, IDS)], 5, runtime)


def test_top1_of_predictions_equals_that_of_the_evaluation_exactly(runtime: Runtime) -> None:
    """Check every possible number of right predictions among 359 images."""
    targets = torch.arange(359) % 7
    for right in range(360):
        logits = torch.eye(7)[(targets + (torch.arange(359) >= right)) % 7]
        batches = [(logits, targets, torch.ones(359), torch.arange(359))]
        result = evaluate(ImagesAsLogits(), batches, 359, runtime, keep=1)
        assert result.predictions is not None
        assert result.predictions.top1() == result.top1, right


def two_batches(classes: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return two batches with logits of the first `classes` classes; the last two slots are padding."""
    return [
        (LOGITS[rows, :classes], TARGETS[rows] % classes, WEIGHTS[rows], IDS[rows]) for rows in ([0, 1, 2], [3, 4, 4])
    ]


@pytest.mark.parametrize("keep", [1, 3, 5, 7, 12])
@pytest.mark.parametrize("classes", [7, 3])
def test_predictions_match_a_calculation_by_hand(runtime: Runtime, classes: int, keep: int) -> None:
    result = evaluate(ImagesAsLogits(), two_batches(classes), 4, runtime, keep=keep)
    predictions = result.predictions
    assert predictions is not None
    width = min(keep, classes)
    logits = LOGITS[:4, :classes].double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = [sorted(range(classes), key=lambda number, row=row: -row[number])[:width] for row in logits]
    assert predictions.index.tolist() == [30, 10, 20, 0]
    assert predictions.label.tolist() == [0, 6 % classes, 2, 1]
    assert predictions.top.tolist() == order
    np.testing.assert_allclose(
        predictions.probability, np.take_along_axis(probabilities, np.array(order), 1), rtol=1e-6
    )
    assert {str(array.dtype) for array in (predictions.index, predictions.label, predictions.top)} == {"int64"}
    assert str(predictions.probability.dtype) == "float32"
    assert len(predictions) == 4
    assert predictions.top1() == result.top1
    # Keeping predictions does not change the measurements.
    plain = evaluate(ImagesAsLogits(), two_batches(classes), 4, runtime)
    assert plain.predictions is None
    assert (plain.loss, plain.top1, plain.top5) == (result.loss, result.top1, result.top5)


def test_predictions_are_not_in_the_metrics_line(runtime: Runtime) -> None:
    result = evaluate(ImagesAsLogits(), two_batches(7), 4, runtime, keep=5)
    values = result.to_dict()
    assert sorted(values) == ["bad", "loss", "seconds", "seen", "top1", "top5"]
    assert json.loads(json.dumps(values)) == values
    assert values["top5"] == 75.0


def digits_model() -> nn.Module:
    """Return a linear model that predicts many classes, with high and with low probabilities."""
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(0, 0.2, (10, 64))))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def digits_predictions(sizes: list[int], keeps: list[int]) -> list[Any]:
    """Return the predictions on this rank for each batch size and each number of classes to keep."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    data = open_data(DataConfig(name="digits"))
    subset = data.splits["test"]
    model = digits_model()
    results = []
    for size in sizes:
        stream = EvaluationStream(subset, Preprocessing(8, data.mean, data.std), runtime, batch_size=size, workers=0)
        for keep in keeps:
            predictions = evaluate(model, stream, len(subset), runtime, keep=keep).predictions
            assert predictions is not None
            arrays = (predictions.index, predictions.label, predictions.top, predictions.probability)
            results.append([size, keep, *(array.tolist() for array in arrays)])
    runtime.end()
    return results


def test_predictions_are_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    """With 359 images, rank 2 of 3 gets one batch of 7 of padding alone; all ranks but 0 do with batches of 400."""
    sizes, keeps = [7, 64, 400], [1, 3, 5, 12]
    data = open_data(DataConfig(name="digits"))
    subset = data.splits["test"]
    pixels = torch.from_numpy(subset.source.pixels[subset.indices]).float() / 255  # type: ignore[union-attr]
    with torch.no_grad():
        logits = digits_model()((pixels - data.mean[0]) / data.std[0]).double()
    order = logits.argsort(1, descending=True)
    probability = logits.softmax(1).gather(1, order).numpy()
    labels = subset.source.labels[subset.indices]
    assert len(set(order[:, 0].tolist())) > 5
    worlds = {1: [digits_predictions(sizes, keeps)]}
    worlds |= {n: run_world(n, digits_predictions, tmp_path / str(n), sizes, keeps) for n in (2, 3)}
    for world, ranks in worlds.items():
        for rank in ranks:
            assert [result[:2] for result in rank] == [[size, keep] for size in sizes for keep in keeps]
            for size, keep, index, label, top, probabilities in rank:
                assert index == subset.indices.tolist(), (world, size)
                assert label == labels.tolist(), (world, size)
                assert top == order[:, :keep].tolist(), (world, size)
                np.testing.assert_allclose(probabilities, probability[:, :keep], rtol=1e-5)

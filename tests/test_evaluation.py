"""Exact evaluation by hand; its equality over worlds and batch sizes is in test_loop.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from vit_dist.config import RunConfig
from vit_dist.evaluation import evaluate
from vit_dist.runtime import Runtime

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

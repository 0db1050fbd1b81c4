"""Losses: one value per slot, by hand in numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vit_dist.config import LossConfig
from vit_dist.losses import build_loss, cross_entropy
from vit_dist.values import UserError

LOGITS = np.random.default_rng(0).normal(0, 3, (6, 4))
TARGETS = np.array([0, 3, 1, 1, 2, 0])


def by_hand(smoothing: float) -> NDArray[np.float64]:
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    wanted = np.full((6, 4), smoothing / 4)
    wanted[np.arange(6), TARGETS] += 1 - smoothing
    values: NDArray[np.float64] = -(wanted * log_probabilities).sum(1)
    return values


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_one_value_per_slot(smoothing: float) -> None:
    logits, targets = torch.from_numpy(LOGITS), torch.from_numpy(TARGETS)
    found = cross_entropy(logits, targets, label_smoothing=smoothing)
    assert found.shape == (6,)
    np.testing.assert_allclose(found.numpy(), by_hand(smoothing), rtol=1e-12)
    built = build_loss(LossConfig(label_smoothing=smoothing))(logits, targets)
    assert torch.equal(built, found)


def test_without_smoothing_it_is_minus_the_log_of_the_right_classs_probability() -> None:
    found = cross_entropy(torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]]), torch.tensor([0, 1]))
    np.testing.assert_allclose(found.numpy(), [np.log(2), np.log(4)], rtol=1e-6)


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    for name, hint in (("cross_entrpy", " (did you mean cross_entropy?)"), ("zz", "; known: cross_entropy")):
        with pytest.raises(UserError) as error:
            build_loss(LossConfig(name=name))
        assert str(error.value) == f"loss.name: no loss {name}{hint}"


def test_a_function_of_the_users_is_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def gap(outputs, targets):\n    return outputs.sum(1) - targets\n"
    (tmp_path / "losses_of_mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "losses_of_mine", raising=False)
    loss = build_loss(LossConfig(name="losses_of_mine:gap"))
    assert loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])).tolist() == [2.0, 7.0]
    with pytest.raises(UserError) as error:
        build_loss(LossConfig(name="losses_of_mine:gpa"))
    assert str(error.value) == (
        "loss.name: losses_of_mine:gpa cannot be imported: module 'losses_of_mine' has no attribute 'gpa'; "
        "write it as package.module:function"
    )

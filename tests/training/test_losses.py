"""Losses: one value per slot, against NumPy; with a teacher, and with a user's function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.loss
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_dist.config.config import Config
from vit_dist.config.fields import LossConfig
from vit_dist.data.batch import Batch
from vit_dist.errors import UserError
from vit_dist.training.losses import Loss, bce, cross_entropy, hard_distillation, soft_distillation

Floats = NDArray[np.float64]

GENERATOR = np.random.default_rng(0)
LOGITS, TEACHERS = GENERATOR.normal(0, 3, (2, 6, 4))
NUMBERS = np.array([0, 3, 1, 1, 2, 0])
SOFT = GENERATOR.dirichlet(np.ones(4), 6)


def log_softmax(logits: Floats) -> Floats:
    values: Floats = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return values


def wanted(targets: NDArray[Any], smoothing: float) -> Floats:
    """Return the probabilities that the targets stand for, after label smoothing."""
    probabilities = np.eye(4)[targets] if targets.ndim == 1 else targets
    smoothed: Floats = (1 - smoothing) * probabilities + smoothing / 4
    return smoothed


def cross_entropies(targets: NDArray[Any], smoothing: float) -> Floats:
    values: Floats = -(wanted(targets, smoothing) * log_softmax(LOGITS)).sum(1)
    return values


def binary_cross_entropies(targets: NDArray[Any], smoothing: float) -> Floats:
    of_one, probabilities = 1 / (1 + np.exp(-LOGITS)), wanted(targets, smoothing)
    values: Floats = -(probabilities * np.log(of_one) + (1 - probabilities) * np.log(1 - of_one)).mean(1)
    return values


def batch(targets: Tensor, images: Tensor | None = None) -> Batch:
    slots = len(targets)
    seen = torch.zeros(slots, 1, 1, 1) if images is None else images
    return Batch(seen, targets, torch.ones(slots), torch.arange(slots), None, 0)


@pytest.mark.parametrize("targets", [NUMBERS, SOFT], ids=["numbers", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("name", "function", "by_hand"),
    [("cross_entropy", cross_entropy, cross_entropies), ("bce", bce, binary_cross_entropies)],
)
def test_loss_equals_the_formula_computed_by_hand(
    name: str, function: Any, by_hand: Any, targets: NDArray[Any], smoothing: float
) -> None:
    logits, tensor = torch.from_numpy(LOGITS), torch.from_numpy(targets)
    actual = function(logits, tensor, label_smoothing=smoothing)
    assert (actual.shape, actual.dtype) == ((6,), torch.float64)
    np.testing.assert_allclose(actual.numpy(), by_hand(targets, smoothing), rtol=1e-12)
    assert torch.equal(Loss(LossConfig(name=name, label_smoothing=smoothing))(logits, batch(tensor)), actual)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_bce_equals_timms(smoothing: float) -> None:
    logits, targets = torch.from_numpy(LOGITS), torch.from_numpy(NUMBERS)
    expected = timm.loss.BinaryCrossEntropy(smoothing)(logits, targets)
    torch.testing.assert_close(bce(logits, targets, label_smoothing=smoothing).mean(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        bce(logits, torch.from_numpy(SOFT)).mean(),
        timm.loss.BinaryCrossEntropy(0.0)(logits, torch.from_numpy(SOFT)),
        rtol=1e-12,
        atol=0,
    )


def test_known_values() -> None:
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])
    targets = torch.tensor([0, 1])
    np.testing.assert_allclose(cross_entropy(logits, targets).numpy(), [np.log(2), np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(bce(logits, targets).numpy(), [np.log(2), (np.log(4) + np.log(2)) / 2], rtol=1e-6)
    np.testing.assert_allclose(hard_distillation(logits, -logits).numpy(), [np.log(2), np.log(4)], rtol=1e-6)
    # ¼ and ¾ against ½ and ½.
    divergence = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(soft_distillation(logits[:1], logits[1:]).numpy(), [divergence], rtol=1e-6)


@pytest.mark.parametrize("function", [bce, cross_entropy, hard_distillation, soft_distillation])
def test_large_logits_do_not_overflow(function: Any) -> None:
    logits = torch.tensor([[900.0, -900.0], [-900.0, 900.0]], requires_grad=True)
    other = torch.tensor([1, 1]) if function in (bce, cross_entropy) else -logits.detach()
    values = function(logits, other)
    values.sum().backward()
    assert values.isfinite().all()
    assert values[0] >= 900
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_hard_distillation_is_cross_entropy_with_the_teachers_choice() -> None:
    actual = hard_distillation(torch.from_numpy(LOGITS), torch.from_numpy(TEACHERS))
    expected = -log_softmax(LOGITS)[np.arange(6), TEACHERS.argmax(1)]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


def divergences(temperature: float) -> Floats:
    student, teacher = log_softmax(LOGITS / temperature), log_softmax(TEACHERS / temperature)
    values: Floats = temperature**2 * (np.exp(teacher) * (teacher - student)).sum(1)
    return values


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_distillation_is_the_divergence_from_the_teacher(temperature: float) -> None:
    logits, teacher = torch.from_numpy(LOGITS), torch.from_numpy(TEACHERS)
    actual = soft_distillation(logits, teacher, temperature=temperature)
    np.testing.assert_allclose(actual.numpy(), divergences(temperature), rtol=1e-12)
    shifted = soft_distillation(logits, logits + 7, temperature=temperature)
    np.testing.assert_allclose(shifted.numpy(), np.zeros(6), atol=1e-12)


class Says(nn.Module):
    """A teacher whose logits are its images times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.weight


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_with_a_teacher_the_loss_is_a_weighted_mean_of_both(
    name: str, kind: Any, temperature: float, weight: float
) -> None:
    config = LossConfig(
        name=name, label_smoothing=0.1, distillation=kind, distillation_weight=weight, temperature=temperature
    )
    teacher = Says()
    logits = torch.from_numpy(LOGITS).requires_grad_()
    images = torch.from_numpy(TEACHERS)[:, None, None]
    actual = Loss(config, teacher)(logits, batch(torch.from_numpy(NUMBERS), images))
    of_targets = (cross_entropies if name == "cross_entropy" else binary_cross_entropies)(NUMBERS, 0.1)
    of_teacher = -log_softmax(LOGITS)[np.arange(6), TEACHERS.argmax(1)] if kind == "hard" else divergences(temperature)
    assert (actual.shape, actual.dtype) == ((6,), torch.float64)
    np.testing.assert_allclose(
        actual.detach().numpy(), (1 - weight) * of_targets + weight * of_teacher, rtol=1e-12, atol=1e-14
    )
    actual.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert teacher.weight.grad is None


def test_a_teachers_half_precision_is_widened() -> None:
    class Half(Says):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).bfloat16()

    logits, images = torch.from_numpy(LOGITS).float(), torch.from_numpy(TEACHERS).float()[:, None, None]
    loss = Loss(LossConfig(distillation="soft", distillation_weight=1.0), Half())
    actual = loss(logits, batch(torch.from_numpy(NUMBERS), images))
    assert actual.dtype == torch.float32
    expected = soft_distillation(logits, torch.from_numpy(TEACHERS).bfloat16().float())
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cross_entrpy", "no loss cross_entrpy (did you mean cross_entropy?)"),
        ("zz", "no loss zz; known: cross_entropy, bce, clip, siglip, package.module:function"),
    ],
)
def test_an_unknown_loss_is_refused(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        Config(loss=LossConfig(name=name))
    assert str(caught.value) == f"loss.name: {text}"


SOURCE = """
def gap(outputs, targets):
    return outputs.sum(1) - targets

def mean(outputs, targets):
    return gap(outputs, targets).mean()

def each(outputs, targets):
    return outputs - targets[:, None]
"""


@pytest.fixture
def of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a user's module into the working folder."""
    (tmp_path / "losses_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "losses_of_mine", raising=False)


OUTPUTS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])


@pytest.mark.usefixtures("of_mine")
def test_a_users_function_is_the_loss() -> None:
    slots = batch(torch.tensor([1, 0, 1]), images=torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])[:, None, None])
    assert Loss(LossConfig(name="losses_of_mine:gap"))(OUTPUTS, slots).tolist() == [2.0, 7.0, 0.0]
    taught = Loss(LossConfig(name="losses_of_mine:gap", distillation_weight=0.25), Says())(OUTPUTS, slots)
    of_teacher = np.log1p(np.exp([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(taught.numpy(), 0.75 * np.array([2, 7, 0]) + 0.25 * of_teacher, rtol=1e-6)


@pytest.mark.usefixtures("of_mine")
@pytest.mark.parametrize(("name", "shape"), [("mean", "[]"), ("each", "[3, 2]")])
def test_a_function_that_does_not_return_one_value_per_slot_is_refused(name: str, shape: str) -> None:
    with pytest.raises(UserError) as caught:
        Loss(LossConfig(name=f"losses_of_mine:{name}"))(OUTPUTS, batch(torch.tensor([1, 0, 1])))
    assert str(caught.value) == (
        f"loss.name: losses_of_mine:{name} must return one value per slot, shape [3], not {shape}"
    )


@pytest.mark.usefixtures("of_mine")
def test_an_import_path_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Loss(LossConfig(name="losses_of_mine:gpa"))
    assert str(caught.value) == (
        "loss.name: losses_of_mine:gpa cannot be imported: module 'losses_of_mine' has no attribute 'gpa'; "
        "write it as package.module:function"
    )
    with pytest.raises(UserError) as caught:
        Loss(LossConfig(name="losses_of_yours:gap"))
    assert str(caught.value) == (
        "loss.name: losses_of_yours:gap cannot be imported: No module named 'losses_of_yours'; "
        "write it as package.module:function"
    )


@pytest.mark.parametrize(("values", "actual"), [(1.5, "float"), (None, "NoneType"), (torch.zeros(3), "[3]")])
def test_a_loss_that_is_not_a_tensor_of_slots_is_refused(values: Any, actual: str) -> None:
    loss = Loss(LossConfig())
    loss.name, loss.target_loss = "mine:gap", lambda outputs, targets: values
    with pytest.raises(UserError) as error:
        loss(torch.zeros(2, 4), batch(torch.tensor([0, 1])))
    assert str(error.value) == f"loss.name: mine:gap must return one value per slot, shape [2], not {actual}"

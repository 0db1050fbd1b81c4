"""The average of the weights: its values against numpy, its exchange with the model, its state."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit_dist.models.weights import state_tensors
from vit_dist.optim.ema import EMA

DECAY = 0.28
# min(decay, n / (9 + n)) of updates 1 to 5.
DECAYS = [1 / 10, 2 / 11, 3 / 12, DECAY, DECAY]


class Odd(nn.Module):
    """A module with tied weights, a weight that is not contiguous, and buffers of every kind."""

    wide: Tensor
    shift: Tensor
    seen: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(3, 4)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(5, 2, generator=generator).t())
        self.register_buffer("shift", torch.randn(3, generator=generator))
        self.register_buffer("wide", torch.randn(2, generator=generator, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("table", torch.randn(2, generator=generator), persistent=False)


SAVED = ["first.bias", "first.weight", "second.bias", "seen", "shift", "turned", "wide"]


def moved(model: Odd, generator: torch.Generator) -> None:
    """Change the module as an update might."""
    with torch.no_grad():
        for tensor in [*model.parameters(), model.shift, model.wide, model.table]:
            tensor.add_(torch.randn(tensor.shape, generator=generator))
        model.seen.add_(3)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Return whether the tensors are equal to the bit, names and dtypes included."""
    return actual.keys() == expected.keys() and all(
        actual[name].dtype == expected[name].dtype and torch.equal(actual[name], expected[name]) for name in expected
    )


def after_five_updates() -> tuple[Odd, EMA]:
    model, generator = Odd(), torch.Generator().manual_seed(1)
    average = EMA(model, DECAY)
    for applied in range(1, 6):
        moved(model, generator)
        average.update(applied, torch.ones(()))
    return model, average


def test_the_ema_has_known_values_over_five_updates() -> None:
    model, generator = Odd(), torch.Generator().manual_seed(1)
    average = EMA(model, DECAY)
    expected = {name: tensor.numpy().astype(np.float64) for name, tensor in copies(model.state_dict()).items()}
    table = model.table.numpy().astype(np.float64)
    assert same(average.tensors(), state_tensors(model))
    for applied, decay in enumerate(DECAYS, 1):
        moved(model, generator)
        live = copies(model.state_dict())
        average.update(applied, torch.ones(()))
        assert same(model.state_dict(), live)
        actual = average.tensors()
        assert sorted(actual) == SAVED
        for name in set(SAVED) - {"seen"}:
            expected[name] = decay * expected[name] + (1 - decay) * live[name].numpy()
            assert actual[name].dtype == live[name].dtype
            np.testing.assert_allclose(actual[name].numpy(), expected[name], rtol=2e-6, atol=1e-6)
        # What is no float cannot be averaged: it is the model's.
        assert actual["seen"].item() == 7 + 3 * applied
        table = decay * table + (1 - decay) * model.table.numpy()
        with average.swapped():
            np.testing.assert_allclose(model.table.numpy(), table, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_the_ema_decay_is_warmed_up_to_its_configured_value(decay: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    for applied in (1, 9, 80, 81, 82, 100_000):
        with torch.no_grad():
            model.weight.fill_(0.0)
        average = EMA(model, decay)
        with torch.no_grad():
            model.weight.fill_(1.0)
        average.update(applied, torch.ones(()))
        kept = 1 - average.tensors()["weight"].item()
        assert kept == pytest.approx(min(decay, applied / (9 + applied)), rel=1e-6)


def test_a_skipped_update_changes_nothing() -> None:
    model, average = after_five_updates()
    before = copies(average.tensors())
    seen = model.seen.clone()
    moved(model, torch.Generator().manual_seed(2))
    model.seen.copy_(seen)
    average.update(6, torch.zeros(()))
    assert same(average.tensors(), before)
    average.update(6, torch.ones(()))
    assert not torch.equal(average.tensors()["turned"], before["turned"])


def test_swapped_exchanges_the_weights_and_restores_them_exactly() -> None:
    model, average = after_five_updates()
    parameters = list(model.parameters())
    places = [parameter.data_ptr() for parameter in parameters]
    own, averaged = copies(model.state_dict()), copies(average.tensors())
    table = model.table.clone()
    with average.swapped():
        inside = state_tensors(model)
        assert same(inside, averaged)
        assert same(average.tensors(), {name: own[name] for name in averaged})
        assert torch.equal(model.second.weight, averaged["first.weight"])
        assert model.second.weight is model.first.weight
        assert not torch.equal(model.table, table)
        assert {parameter.data_ptr() for parameter in parameters}.isdisjoint(places)
    assert same(model.state_dict(), own)
    assert same(average.tensors(), averaged)
    assert torch.equal(model.table, table)
    # An optimizer that holds the parameters still does.
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_swapped_restores_the_weights_if_the_block_raises() -> None:
    model, average = after_five_updates()
    own, averaged = copies(model.state_dict()), copies(average.tensors())

    def fail() -> None:
        with average.swapped():
            assert same(state_tensors(model), averaged)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert same(model.state_dict(), own)
    assert same(average.tensors(), averaged)


def test_swap_lasts_and_is_its_own_inverse() -> None:
    model, average = after_five_updates()
    own, averaged = copies(model.state_dict()), copies(average.tensors())
    average.swap()
    assert same(state_tensors(model), averaged)
    average.swap()
    assert same(model.state_dict(), own)


def test_tensors_have_checkpoint_names_and_load_restores_them(tmp_path: Path) -> None:
    model, average = after_five_updates()
    tensors = average.tensors()
    assert sorted(tensors) == sorted(state_tensors(model)) == SAVED
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    save_file(tensors, tmp_path / "ema.safetensors")
    other_model = copy.deepcopy(model)
    moved(other_model, torch.Generator().manual_seed(3))
    live = copies(other_model.state_dict())
    other = EMA(other_model, DECAY)
    other.load(load_file(tmp_path / "ema.safetensors"))
    assert same(other.tensors(), tensors)
    assert same(other_model.state_dict(), live)
    # The next update is the same, to the bit.
    other_model.load_state_dict(model.state_dict())
    for module, module_average in ((model, average), (other_model, other)):
        moved(module, torch.Generator().manual_seed(4))
        module_average.update(6, torch.ones(()))
    assert same(other.tensors(), average.tensors())

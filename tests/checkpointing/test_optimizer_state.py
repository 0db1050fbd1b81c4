"""A saved state of an optimizer is compared with what the optimizer keeps before it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.checkpointing.states import change_json, rehash, state_values
from vit_dist.checkpointing.checkpoint import Checkpoint, open_checkpoint
from vit_dist.checkpointing.writer import take_snapshot, write_snapshot
from vit_dist.config.fields import ModelConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.errors import ModelError, UserError
from vit_dist.models.build import build_model
from vit_dist.optim.optimizers import build_optimizer

Tensors = dict[str, Tensor]
BIAS, WEIGHT = "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.weight"


def build(name: str) -> tuple[nn.Module, Optimizer]:
    model = build_model(
        ModelConfig(patch_size=4, width=16, depth=1, heads=2), classes=3, channels=1, image_size=8, seed=0
    )
    return model, build_optimizer(OptimizerConfig(name=name, lr=0.02), model, 0.02)


def saved(folder: Path, name: str = "adamw", *, frozen: str = "") -> Path:
    """Save a checkpoint after two steps; of the parameter `frozen` there never is a gradient."""
    model, optimizer = build(name)
    for _ in range(2):
        for key, parameter in model.named_parameters():
            parameter.grad = None if key == frozen else torch.ones_like(parameter)
        optimizer.step()
    return write_snapshot(folder, take_snapshot(7, model, optimizer, state_values(7)))[0]


def change_tensors(path: Path, change: Callable[[Tensors], Tensors], name: str = "optimizer.safetensors") -> Checkpoint:
    """Replace the tensors of a file by what `change` makes of them, and open the checkpoint, whose manifest holds."""
    save_file(change(load_file(path / name)), path / name)
    rehash(path)
    return open_checkpoint(path)


def with_tensor(name: str, tensor: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensor}


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(names)}


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


FAULTS: list[tuple[str, Callable[[Tensors], Tensors], str]] = [
    ("adamw", with_tensor(f"{BIAS}/exp_avg", zeros(47)), f"{BIAS}/exp_avg is F32 [47], the optimizer's F32 [48]"),
    ("adamw", with_tensor(f"{BIAS}/exp_avg", zeros(0)), f"{BIAS}/exp_avg is F32 [0], the optimizer's F32 [48]"),
    ("adamw", with_tensor(f"{BIAS}/exp_avg_sq", torch.zeros(())), f"{BIAS}/exp_avg_sq is F32 [], the optimizer's F32 "),
    ("adamw", with_tensor(f"{BIAS}/step", zeros(2)), f"{BIAS}/step is F32 [2], the optimizer's F32 []"),
    ("adamw", with_tensor(f"{BIAS}/step", torch.tensor(2)), f"{BIAS}/step is I64 [], the optimizer's F32 []"),
    ("adamw", with_tensor(f"{BIAS}/exp_avg", zeros(48, dtype=torch.float16)), f"{BIAS}/exp_avg is F16 [48], the opt"),
    ("adamw", with_tensor(f"{BIAS}/exp_avg", zeros(48, dtype=torch.float8_e4m3fn)), f"{BIAS}/exp_avg is F8_E4M3 [48]"),
    ("adamw", with_tensor(f"{BIAS}/more", zeros(48)), f"{BIAS}/more is not in the optimizer"),
    ("adamw", with_tensor("more/exp_avg", zeros(48)), "more is not in the optimizer"),
    ("adamw", with_tensor("more", zeros(48)), " is not in the optimizer"),
    ("adamw", without(f"{BIAS}/exp_avg_sq"), f"{BIAS}/exp_avg_sq is missing"),
    ("adamw", without(f"{BIAS}/"), "holds the state of 19 parameters, of the 20 that state.json counts"),
    ("adamw", lambda tensors: {}, "holds nothing after 7 updates"),
    ("adam", with_tensor(f"{WEIGHT}/exp_avg", zeros(16, 48)), f"{WEIGHT}/exp_avg is F32 [16, 48], the "),
    ("sgd", with_tensor(f"{BIAS}/momentum_buffer", zeros(1)), f"{BIAS}/momentum_buffer is F32 [1], the "),
    ("muon", with_tensor(f"{WEIGHT}/momentum_buffer", zeros(48)), f"{WEIGHT}/momentum_buffer is F32 [48], the "),
    ("muon", with_tensor(f"{WEIGHT}/exp_avg", zeros(48, 16)), f"{WEIGHT}/exp_avg is not in the optimizer"),
    ("timm/lamb", with_tensor(f"{BIAS}/exp_avg", zeros(1)), f"{BIAS}/exp_avg is F32 [1], the optimizer's F32 [48]"),
    ("timm/adafactor", with_tensor(f"{WEIGHT}/exp_avg_sq", zeros(16)), f"{WEIGHT}/exp_avg_sq is F32 [16], the "),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_state_that_the_optimizer_does_not_keep_is_refused(number: int, tmp_path: Path) -> None:
    """Loaded, the first ones end the process: fused kernels trust the shapes of their state."""
    name, change, expected = FAULTS[number]
    checkpoint = change_tensors(saved(tmp_path, name), change)
    model, optimizer = build(name)
    for load in (checkpoint.load_optimizer, lambda o, m: checkpoint.check_fits(m, o)):
        with pytest.raises(UserError) as caught:
            load(optimizer, model)
        text = str(caught.value)
        assert text.startswith(f"{checkpoint.path / 'optimizer.safetensors'}: ")
        assert expected in text
        assert "\n" not in text
        assert not optimizer.state


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([{}], "state.json has counters of 1 groups, the optimizer 2"),
        ([{"lr": 1.0}, {}], "state.json has optimizer.groups.0.lr, which is no counter"),
        ([{}, {"params": 1.0}], "state.json has optimizer.groups.1.params, which is no counter"),
        ([{}, {"fused": 1}], "state.json has optimizer.groups.1.fused, which is no counter"),
        ([{}, {"betas": 1}], "state.json has optimizer.groups.1.betas, which is no counter"),
    ],
)
def test_only_counters_of_groups_are_taken_from_a_file(groups: object, expected: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    change_json(path, "state.json", lambda state: state | {"optimizer": state["optimizer"] | {"groups": groups}})
    model, optimizer = build("adamw")
    with pytest.raises(UserError) as caught:
        open_checkpoint(path).load_optimizer(optimizer, model)
    assert str(caught.value) == f"{path / 'optimizer.safetensors'}: {expected}"


def test_a_plateaus_rates_are_one_for_each_group(tmp_path: Path) -> None:
    path = saved(tmp_path)

    def follow(state: dict[str, Any]) -> dict[str, Any]:
        state["config"]["schedule"] |= {"name": "ReduceLROnPlateau", "args": {"metric": "loss"}}
        counters = {"last_epoch": 1, "best": 0.5, "num_bad_epochs": 0, "cooldown_counter": 0}
        return state | {"schedule": {"updates": 7, "rates": [0.1, 0.1, 0.1], "plateau": counters}}

    change_json(path, "state.json", follow)
    model, optimizer = build("adamw")
    with pytest.raises(UserError) as caught:
        open_checkpoint(path).check_fits(model, optimizer)
    assert str(caught.value) == f"{path / 'state.json'}: schedule.rates has 3 rates for 2 groups"


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "timm/lamb"])
def test_the_check_leaves_the_optimizer_as_it_was(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, name))
    model, optimizer = build(name)
    weights, before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    checkpoint.check_fits(model, optimizer)
    assert optimizer.state_dict() == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_that_never_had_a_gradient_has_no_state(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, frozen=BIAS))
    model, optimizer = build("adamw")
    checkpoint.load_optimizer(optimizer, model)
    assert len(optimizer.state) == 19
    assert checkpoint.state.optimizer.parameters == 19


def test_a_checkpoint_that_does_not_count_its_parameters_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path)

    def drop(state: dict[str, Any]) -> dict[str, Any]:
        del state["optimizer"]["parameters"]
        return state

    change_json(path, "state.json", drop)
    model, optimizer = build("adamw")
    open_checkpoint(path).load_optimizer(optimizer, model)
    assert len(optimizer.state) == 20


# Weights


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    for number, dtype in enumerate((torch.float16, torch.int32, torch.float64)):
        path = saved(tmp_path / str(number))
        tensors = load_file(path / "model.safetensors")
        checkpoint = change_tensors(path, with_tensor(BIAS, tensors[BIAS].to(dtype)), "model.safetensors")
        model, optimizer = build("adamw")
        name = {torch.float16: "F16", torch.int32: "I32", torch.float64: "F64"}[dtype]
        for load in (checkpoint.load_model, lambda m, c=checkpoint, o=optimizer: c.check_fits(m, o)):
            with pytest.raises(UserError) as caught:
                load(model)
            text = f"{path / 'model.safetensors'}: of another model: {BIAS} is of type {name}, the model's F32"
            assert str(caught.value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    path = saved(tmp_path)

    def spoil(tensors: Tensors) -> Tensors:
        tensors[BIAS][3] = value
        return tensors

    checkpoint = change_tensors(path, spoil, "model.safetensors")
    model, _ = build("adamw")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError) as caught:
        checkpoint.load_model(model)
    assert str(caught.value) == (
        f"{path / 'model.safetensors'}: holds values that are NaN or infinite ({BIAS}): its training diverged, use an "
        "earlier checkpoint"
    )
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())

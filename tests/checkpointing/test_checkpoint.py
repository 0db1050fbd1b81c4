"""The checkpoint format: complete or absent, plain safetensors and JSON, verified before use."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from tests.checkpointing.states import change_json, state_values
from tests.optim.test_optimizers import ACCEPTED
from vit_dist.checkpointing import checkpoint
from vit_dist.checkpointing.folder import (
    checkpoint_path,
    list_checkpoints,
    newest_valid,
    point_to,
    point_to_known,
    pointed_to,
    prune,
    tidy,
)
from vit_dist.checkpointing.writer import Buffers, take_snapshot, write_snapshot
from vit_dist.config.fields import ModelConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.errors import UserError
from vit_dist.models.build import build_model
from vit_dist.models.weights import load_weights, state_tensors
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import build_optimizer

STATE = state_values(7)
AVERAGED = state_values(7, ema=0.5)


def trained(seed: int = 0) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def save(
    folder: Path,
    position: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    average: EMA | None = None,
) -> tuple[Path, int]:
    """Save a checkpoint and return its path and size in bytes."""
    return write_snapshot(folder, take_snapshot(position, model, optimizer, state, average))


def saved(folder: Path, position: int = 7) -> Path:
    return save(folder, position, *trained(), state_values(position))[0]


def test_a_saved_checkpoint_loads_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    path, size = save(tmp_path, 7, model, optimizer, STATE)
    assert path == tmp_path / "update_00000007"
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {file.name for file in path.iterdir()} == files
    assert size == sum((path / name).stat().st_size for name in files - {"manifest.json"})
    opened, wrong = newest_valid(tmp_path)
    assert wrong == []
    assert opened is not None
    assert opened.position == 7
    other, other_optimizer = trained(seed=1)
    opened.load_model(other)
    opened.load_optimizer(other_optimizer, other)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for expected, actual in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert expected.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(expected[slot], actual[slot]) for slot in expected)


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with safe_open(first / "optimizer.safetensors", "pt") as file:
        assert sorted(file.keys())[0] == "0.bias/exp_avg"
        assert len(file.metadata() or {}) <= 1


def test_timm_loads_our_vits_weights(tmp_path: Path) -> None:
    ours = build_model(ModelConfig(), classes=10, channels=3, image_size=224, seed=0)
    path, _ = save(tmp_path, 1, ours, SGD(ours.parameters(), lr=0.1), STATE)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    theirs.load_state_dict(load_file(path / "model.safetensors"))
    assert torch.equal(theirs.blocks[3].attn.qkv.weight, ours.get_parameter("blocks.3.attn.qkv.weight"))


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model = tied()
    path, _ = save(tmp_path, 1, model, SGD(model.parameters(), lr=0.1), state_values(1))
    assert load_file(path / "model.safetensors").keys() == {"0.weight", "0.bias", "1.bias"}
    other = tied()
    load_weights(other, path / "model.safetensors")
    assert torch.equal(other[1].weight, model[0].weight)
    assert other[1].weight is other[0].weight


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_broken_file_is_named_and_the_checkpoint_before_it_used(name: str, tmp_path: Path) -> None:
    saved(tmp_path, 3)
    broken = saved(tmp_path, 5) / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    opened, wrong = newest_valid(tmp_path)
    assert opened is not None
    assert opened.position == 3
    assert wrong == [f"{broken}: its SHA-256 is not the manifest's"]
    broken.write_bytes(bytes(content[:-3]))
    assert checkpoint.why_broken(broken.parent) == f"{broken}: {len(content) - 3} bytes, not {len(content)}"
    broken.unlink()
    assert checkpoint.why_broken(broken.parent) == f"{broken}: missing"
    with pytest.raises(UserError, match=r"missing: this checkpoint cannot be used$"):
        checkpoint.open_checkpoint(broken.parent)


def test_a_checkpoint_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (saved(tmp_path, 5) / "manifest.json").unlink()
    (tmp_path / ".writing_update_00000009").mkdir()
    opened, wrong = newest_valid(tmp_path)
    assert opened is not None
    assert (opened.position, wrong) == (3, [])
    assert newest_valid(tmp_path / "nowhere") == (None, [])


def test_weights_of_another_model_are_refused_with_a_list(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    with pytest.raises(UserError) as caught:
        load_weights(nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(5, 2)), path)
    assert str(caught.value) == (
        f"{path}: of another model: 2.bias is missing; 2.weight is missing; 1.bias is not in the model and 3 more"
    )
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=f"^{path} is not a safetensors file: "):
        load_weights(trained()[0], path)


def test_optimizer_state_of_another_model_is_refused(tmp_path: Path) -> None:
    opened = checkpoint.open_checkpoint(saved(tmp_path))
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(UserError) as caught:
        opened.load_optimizer(AdamW(model.parameters(), fused=True), model)
    assert str(caught.value) == (
        f"{opened.path / 'optimizer.safetensors'}: 1.bias is not in the optimizer; 1.weight is not in the optimizer"
    )


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for position in (1, 2, 3, 4, 5):
        point_to(tmp_path, "last", saved(tmp_path, position))
    point_to_known(tmp_path, 5, 2)
    prune(tmp_path, 2, 5, 2, lambda path: True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "best",
        "last",
        "update_00000002",
        "update_00000004",
        "update_00000005",
    }
    assert pointed_to(tmp_path, "best") == tmp_path / "update_00000002"
    assert pointed_to(tmp_path, "last") == tmp_path / "update_00000005"
    (tmp_path / "best").unlink()
    (tmp_path / "best").write_text("update_00000004\n")
    assert pointed_to(tmp_path, "best") == tmp_path / "update_00000004"
    assert pointed_to(tmp_path, "other") is None


def test_prune_neither_counts_nor_removes_broken_and_later_checkpoints(tmp_path: Path) -> None:
    for position in (1, 2, 3, 4, 5, 8, 9):
        saved(tmp_path, position)
    broken = {checkpoint_path(tmp_path, position) for position in (2, 4)}
    prune(tmp_path, 2, 5, None, lambda path: path not in broken)
    assert [int(path.name[-2:]) for path in list_checkpoints(tmp_path)] == [2, 3, 4, 5, 8, 9]
    prune(tmp_path, 1, 3, None, lambda path: path not in broken)
    assert [int(path.name[-2:]) for path in list_checkpoints(tmp_path)] == [2, 3, 4, 5, 8, 9]


def test_what_a_killed_process_left_is_undone_or_removed(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1), saved(tmp_path, 2)
    first.rename(tmp_path / ".replaced_update_00000001")  # killed between the two renames
    (tmp_path / ".replaced_update_00000002").mkdir()  # killed after them
    for name in (".writing_update_00000003", ".removing_update_00000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    (tmp_path / ".writing_last").symlink_to("update_00000002")
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
    assert checkpoint.why_broken(first) is None


def test_a_checkpoint_replaces_another_of_its_position(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path, 7, model, optimizer, {"train_state": {"position": 7}, "evaluation": 1})
    path, _ = save(tmp_path, 7, model, optimizer, {"train_state": {"position": 7}, "evaluation": 2})
    assert json.loads((path / "state.json").read_text())["evaluation"] == 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_nan_in_state_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path, 1, *trained(), {"loss": float("nan")})
    assert list_checkpoints(tmp_path) == []


def test_a_snapshot_is_not_changed_by_later_updates(tmp_path: Path) -> None:
    model, optimizer, average = averaged()
    expected, _ = save(tmp_path / "expected", 7, model, optimizer, AVERAGED, average)
    buffers: Buffers = {}
    snapshot = take_snapshot(7, model, optimizer, AVERAGED, average).copied(buffers)
    steps(model, optimizer, range(4, 6))
    average.update(4, torch.ones(()))
    path, _ = write_snapshot(tmp_path / "later", snapshot)
    live, _ = save(tmp_path / "live", 7, model, optimizer, AVERAGED, average)
    for file in expected.glob("*.safetensors"):
        assert (path / file.name).read_bytes() == file.read_bytes()
        assert (live / file.name).read_bytes() != file.read_bytes()
    assert snapshot.state["format"] == 2


@pytest.mark.parametrize(("name", "known"), [("state.json", 2), ("manifest.json", 1)])
def test_a_later_format_is_refused_with_both_numbers(name: str, known: int, tmp_path: Path) -> None:
    saved(tmp_path, 3)
    path = saved(tmp_path, 5)
    assert json.loads((path / name).read_text())["format"] == known
    change_json(path, name, lambda content: content | {"format": known + 1})
    # The checkpoint before it is not used instead: the run would silently lose updates.
    for read in (lambda: checkpoint.open_checkpoint(path), lambda: newest_valid(tmp_path)):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == (
            f"{path / name}: format {known + 1}, and this version of vit_dist reads formats up to {known}: "
            "use the version that wrote it"
        )


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize("number", [0, -1, 2.0, "2", None, True])
def test_what_is_no_number_of_a_format_is_damage(name: str, number: object, tmp_path: Path) -> None:
    saved(tmp_path, 3)
    path = saved(tmp_path, 5)
    change_json(path, name, lambda content: content | {"format": number})
    opened, problems = newest_valid(tmp_path)
    assert opened is not None
    assert opened.position == 3
    assert problems == [f"{path / name}: format must be a whole number of 1 or more, not {json.dumps(number)}"]


# Optimizer state


def vit(seed: int = 0) -> nn.Module:
    config = ModelConfig(patch_size=4, width=16, depth=1, heads=2)
    return build_model(config, classes=3, channels=1, image_size=8, seed=seed)


def steps(model: nn.Module, optimizer: Optimizer, numbers: range) -> None:
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon", *(f"timm/{name}" for name in ACCEPTED)])
def test_every_optimizer_resumes_bit_identical(name: str, tmp_path: Path) -> None:
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.3, layer_decay=0.8)
    whole, model, later = vit(), vit(), vit(seed=1)
    assert not same(model, later)
    steps(whole, build_optimizer(config, whole, 0.02), range(6))
    optimizer = build_optimizer(config, model, 0.02)
    steps(model, optimizer, range(3))
    opened = checkpoint.open_checkpoint(save(tmp_path, 3, model, optimizer, state_values(3))[0])
    fresh = build_optimizer(config, later, 0.02)
    opened.load_model(later)
    opened.load_optimizer(fresh, later)
    for parameter, other in zip(model.parameters(), later.parameters(), strict=True):
        kept, came = optimizer.state[parameter], fresh.state[other]
        for slot, value in came.items():
            tensor = isinstance(value, torch.Tensor)
            assert torch.equal(value, kept[slot]) if tensor else value == kept[slot], slot
            assert type(value) is type(kept[slot])
            assert not tensor or value.dtype == kept[slot].dtype
        # timm's Muon also keeps whether a parameter is its own, which it works out again.
        assert {slot for slot in kept if kept[slot] is not None} - {"use_muon"} == came.keys()
    steps(later, fresh, range(3, 6))
    assert same(whole, later)


def test_rate_and_momentum_come_from_the_config_not_the_checkpoint(tmp_path: Path) -> None:
    model = vit()
    optimizer = build_optimizer(OptimizerConfig(name="sgd", lr=0.02), model, 0.02)
    opened = checkpoint.open_checkpoint(save(tmp_path, 0, model, optimizer, state_values(0))[0])
    other = build_optimizer(OptimizerConfig(name="sgd", lr=0.5, momentum=0.3, weight_decay=0.7), model, 0.5)
    opened.load_optimizer(other, model)
    assert [(group["lr"], group["momentum"]) for group in other.param_groups] == [(0.5, 0.3)] * 2
    assert [group["weight_decay"] for group in other.param_groups] == [0.0, 0.7]


class Counting(Optimizer):
    """An optimizer that keeps plain numbers instead of tensors, of parameters and groups, and steps by all of them."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "nesterov": True, "betas": (0.1, 0.2)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step; its size falls with the number of steps."""
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                kept = self.state[parameter]
                kept["seen"] = kept.get("seen", 0) + 1
                kept["mean"] = 0.9 * kept.get("mean", 0.0) + parameter.grad.mean().item() / 3
                kept["nothing"] = None
                parameter -= group["lr"] / group["k"] * (parameter.grad + kept["mean"]) / kept["seen"]


def test_plain_numbers_of_parameters_and_groups_are_saved_exactly(tmp_path: Path) -> None:
    def two(model: nn.Module) -> Counting:
        return Counting([{"params": list(layer.parameters()), "lr": 0.3} for layer in model.children()])

    def linears() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    whole, model, later = linears(), linears(), linears()
    steps(whole, two(whole), range(6))
    optimizer = two(model)
    steps(model, optimizer, range(3))
    path, _ = save(tmp_path, 3, model, optimizer, state_values(3))
    assert load_file(path / "optimizer.safetensors") == {}
    kept = json.loads((path / "state.json").read_text())["optimizer"]
    assert kept["groups"] == [{"k": 3}, {"k": 3}]
    assert kept["state"] == {
        f"{name}/{slot}": optimizer.state[parameter][slot]
        for name, parameter in model.named_parameters()
        for slot in ("seen", "mean")
    }
    assert "optimizer" not in STATE
    opened, fresh = checkpoint.open_checkpoint(path), two(later)
    opened.load_model(later)
    opened.load_optimizer(fresh, later)
    assert [group["k"] for group in fresh.param_groups] == [3, 3]
    steps(later, fresh, range(3, 6))
    assert same(whole, later)


# The average


def averaged(seed: int = 0) -> tuple[nn.Module, Optimizer, EMA]:
    model, optimizer = trained(seed)
    average = EMA(model, 0.5)
    for applied in (1, 2, 3):
        steps(model, optimizer, range(applied, applied + 1))
        average.update(applied, torch.ones(()))
    return model, optimizer, average


def test_the_average_is_saved_hashed_and_loaded(tmp_path: Path) -> None:
    model, optimizer, average = averaged()
    path, size = save(tmp_path, 7, model, optimizer, AVERAGED, average)
    files = {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
    entries = json.loads((path / "manifest.json").read_text())["files"]
    assert entries.keys() == files == {file.name for file in path.iterdir()} - {"manifest.json"}
    content = (path / "ema.safetensors").read_bytes()
    assert entries["ema.safetensors"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert size == sum((path / name).stat().st_size for name in files)
    raw, ema = load_file(path / "model.safetensors"), load_file(path / "ema.safetensors")
    assert raw.keys() == ema.keys() == model.state_dict().keys()
    assert all(torch.equal(ema[name], value) for name, value in average.tensors().items())
    assert not any(torch.equal(ema[name], raw[name]) for name in raw)

    other, _, into = averaged(seed=1)
    state_tensors = {name: value.clone() for name, value in other.state_dict().items()}
    checkpoint.open_checkpoint(path).load_average(into, other)
    assert all(torch.equal(into.tensors()[name], value) for name, value in ema.items())
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state_tensors.items())


@pytest.mark.parametrize("how", ["changed", "cut", "removed"])
def test_a_broken_average_breaks_the_checkpoint(how: str, tmp_path: Path) -> None:
    path, _ = save(tmp_path, 7, *averaged()[:2], AVERAGED, averaged()[2])
    ema = path / "ema.safetensors"
    content = ema.read_bytes()
    if how == "removed":
        ema.unlink()
    else:
        ema.write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    text = {
        "changed": "its SHA-256 is not the manifest's",
        "cut": f"{len(content) - 1} bytes, not {len(content)}",
        "removed": "missing",
    }
    assert newest_valid(tmp_path) == (None, [f"{ema}: {text[how]}"])
    with pytest.raises(UserError) as caught:
        checkpoint.open_checkpoint(path)
    assert str(caught.value) == f"{ema}: {text[how]}: this checkpoint cannot be used"


def test_a_missing_average_or_one_of_another_model_is_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path, 7, *trained(), STATE)
    model, _, average = averaged()
    before = average.tensors()
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(UserError) as caught:
        checkpoint.open_checkpoint(path).load_average(average, model)
    assert str(caught.value) == (f"{path / 'ema.safetensors'} does not exist")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    path, _ = save(tmp_path, 8, other, SGD(other.parameters()), state_values(8, ema=0.5), EMA(other, 0.5))
    with pytest.raises(UserError) as caught:
        checkpoint.open_checkpoint(path).load_average(average, model)
    assert str(caught.value) == (
        f"{path / 'ema.safetensors'}: of another model: 1.bias is [5], the model's [2]; "
        "1.weight is [5, 4], the model's [2, 4]"
    )
    assert all(torch.equal(average.tensors()[name], value) for name, value in before.items())


def test_the_average_of_tied_weights_and_buffers(tmp_path: Path) -> None:
    """Tied weights are saved once, under their first name; buffers too, except those outside the model's state."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("count", torch.tensor(0))
            self.register_buffer("fixed", torch.ones(2), persistent=False)

    model: Any = Tied()
    average = EMA(model, 0.5)
    with torch.no_grad():
        model.one.weight.add_(1)
        model.mean.add_(10)
        model.count.add_(3)
    average.update(1, torch.ones(()))
    path, _ = save(tmp_path, 1, model, SGD(model.parameters()), state_values(1, ema=0.5), average)
    ema = load_file(path / "ema.safetensors")
    assert ema.keys() == {"one.weight", "one.bias", "two.bias", "mean", "count"}
    # The first update's decay is 1/10.
    torch.testing.assert_close(ema["one.weight"], model.one.weight - 0.1)
    torch.testing.assert_close(ema["mean"], torch.full((2,), 9.0))
    assert ema["count"] == 3
    other: Any = Tied()
    into = EMA(other, 0.5)
    checkpoint.open_checkpoint(path).load_average(into, other)
    with into.swapped():
        assert torch.equal(other.two.weight, ema["one.weight"])
        assert other.two.weight is other.one.weight
        assert torch.equal(other.mean, ema["mean"])


def test_a_file_that_lacks_one_tensor_is_refused(tmp_path: Path) -> None:
    model = trained()[0]
    held = state_tensors(model)
    path = tmp_path / "weights.safetensors"
    save_file({name: held[name] for name in held if name != "1.bias"}, path)
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    assert str(caught.value) == f"{path}: of another model: 1.bias is missing"


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_weights_have_the_permissions_of_other_files(tmp_path: Path) -> None:
    """safetensors itself makes its files readable for the owner alone."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    before = os.umask(0o027)
    try:
        path, _ = save(tmp_path, 1, model, optimizer, state_values(1))
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o640"}

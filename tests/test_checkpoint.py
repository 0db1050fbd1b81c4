"""Checkpoints: whole or not there at all, plain safetensors and JSON, and nothing trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, safe_open
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vit_dist import checkpoint
from vit_dist.config import ModelConfig
from vit_dist.models.build import build_model
from vit_dist.values import UserError

STATE = {"train": {"position": 7}}


def trained(seed: int = 0) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def saved(folder: Path, position: int = 7) -> Path:
    return checkpoint.save(folder, position, *trained(), {"train": {"position": position}})[0]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    path, size = checkpoint.save(tmp_path, 7, model, optimizer, STATE)
    assert path == tmp_path / "update_00000007"
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {one.name for one in path.iterdir()} == files
    assert size == sum((path / name).stat().st_size for name in files - {"manifest.json"})
    found, wrong = checkpoint.find(tmp_path)
    assert wrong == []
    assert found is not None
    assert found.position == 7
    other, other_optimizer = trained(seed=1)
    found.load_model(other)
    found.load_optimizer(other_optimizer, other)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert one.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(one[slot], two[slot]) for slot in one)


def test_the_same_run_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    with safe_open(one / "optimizer.safetensors", "pt") as file:
        assert sorted(file.keys())[0] == "0.bias/exp_avg"
        assert len(file.metadata() or {}) <= 1


def test_our_vit_opens_in_timm(tmp_path: Path) -> None:
    ours = build_model(ModelConfig(), classes=10, channels=3, image_size=224, seed=0)
    path, _ = checkpoint.save(tmp_path, 1, ours, SGD(ours.parameters(), lr=0.1), STATE)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    theirs.load_state_dict(load_file(path / "model.safetensors"))
    assert torch.equal(theirs.blocks[3].attn.qkv.weight, ours.get_parameter("blocks.3.attn.qkv.weight"))


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model = tied()
    path, _ = checkpoint.save(tmp_path, 1, model, SGD(model.parameters(), lr=0.1), STATE)
    assert load_file(path / "model.safetensors").keys() == {"0.weight", "0.bias", "1.bias"}
    other = tied()
    checkpoint.load_weights(other, path / "model.safetensors")
    assert torch.equal(other[1].weight, model[0].weight)
    assert other[1].weight is other[0].weight


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_each_file_that_breaks_is_named_and_the_checkpoint_before_is_used(name: str, tmp_path: Path) -> None:
    saved(tmp_path, 3)
    broken = saved(tmp_path, 5) / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    found, wrong = checkpoint.find(tmp_path)
    assert found is not None
    assert found.position == 3
    assert wrong == [f"{broken}: its SHA-256 is not the manifest's"]
    broken.write_bytes(bytes(content[:-3]))
    assert checkpoint.problem(broken.parent) == f"{broken}: {len(content) - 3} bytes, not {len(content)}"
    broken.unlink()
    assert checkpoint.problem(broken.parent) == f"{broken}: missing"
    with pytest.raises(UserError, match=r"missing: this checkpoint cannot be used$"):
        checkpoint.open_checkpoint(broken.parent)


def test_without_its_manifest_a_checkpoint_does_not_exist(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (saved(tmp_path, 5) / "manifest.json").unlink()
    (tmp_path / ".writing_update_00000009").mkdir()
    found, wrong = checkpoint.find(tmp_path)
    assert found is not None
    assert (found.position, wrong) == (3, [])
    assert checkpoint.find(tmp_path / "nowhere") == (None, [])


def test_weights_of_another_model_are_listed(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    with pytest.raises(UserError) as caught:
        checkpoint.load_weights(nn.Sequential(nn.Linear(3, 5), nn.Flatten(), nn.Linear(5, 2)), path)
    assert str(caught.value) == (
        f"{path}: of another model: 2.bias is missing; 2.weight is missing; 1.bias is not in the model and 3 more"
    )
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=f"^{path}: not a safetensors file: "):
        checkpoint.load_weights(trained()[0], path)


def test_moments_of_another_optimizer_are_refused(tmp_path: Path) -> None:
    found = checkpoint.open_checkpoint(saved(tmp_path))
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(UserError, match=r"optimizer.safetensors: 1.bias is not in both it and the optimizer$"):
        found.load_optimizer(AdamW(model.parameters(), fused=True), model)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for position in (1, 2, 3, 4, 5):
        path = saved(tmp_path, position)
        checkpoint.link(tmp_path, "last", path)
        if position == 2:
            checkpoint.link(tmp_path, "best", path)
    (tmp_path / ".writing_update_00000006").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert {one.name for one in tmp_path.iterdir()} == {
        "best",
        "last",
        "update_00000002",
        "update_00000004",
        "update_00000005",
    }
    assert checkpoint.follow(tmp_path, "best") == tmp_path / "update_00000002"
    assert checkpoint.follow(tmp_path, "last") == tmp_path / "update_00000005"
    (tmp_path / "best").unlink()
    (tmp_path / "best").write_text("update_00000004\n")
    assert checkpoint.follow(tmp_path, "best") == tmp_path / "update_00000004"
    assert checkpoint.follow(tmp_path, "other") is None


def test_numbers_are_json_and_never_nan(tmp_path: Path) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(trained()[1], lambda update: 0.5)
    kept = dict(checkpoint.numbers(schedule.state_dict()))
    assert kept["last_epoch"] == 0
    assert kept["_last_lr"] == [0.05]
    assert "lr_lambdas" not in kept
    json.dumps(kept)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.save(tmp_path, 1, *trained(), {"loss": float("nan")})
    assert checkpoint.complete(tmp_path) == []

"""Optimizers: who is decayed, and the first steps against numpy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vit_dist.config import ModelConfig, OptimizerConfig
from vit_dist.models.build import build_model
from vit_dist.optimizers import build_optimizer, is_decayed, masks_its_step, parameter_groups

DECAYED = {
    "patch_embed.proj.weight",
    *(f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head.weight",
}
KEPT = {
    "cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.bias",
    *(f"blocks.{i}.{name}.bias" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    *(f"blocks.{i}.{name}.{kind}" for i in range(2) for name in ("norm1", "norm2") for kind in ("weight", "bias")),
}  # fmt: skip


def vit() -> nn.Module:
    config = ModelConfig(patch_size=4, width=8, depth=2, heads=2)
    return build_model(config, classes=3, channels=1, image_size=8, seed=0)


def named(config: OptimizerConfig, model: nn.Module) -> list[tuple[float, set[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(config, model)
    return [(group["weight_decay"], {names[id(parameter)] for parameter in group["params"]}) for group in groups]


def test_matrices_are_decayed_and_biases_norms_positions_and_tokens_are_not() -> None:
    assert {name for name, _ in vit().named_parameters()} == DECAYED | KEPT
    assert named(OptimizerConfig(weight_decay=0.3), vit()) == [(0.3, DECAYED), (0.0, KEPT)]
    assert {name for name, parameter in vit().named_parameters() if is_decayed(name, parameter)} == DECAYED


def test_decay_all_decays_all() -> None:
    assert named(OptimizerConfig(weight_decay=0.3, decay_all=True), vit()) == [(0.3, DECAYED | KEPT)]


def test_frozen_parameters_are_left_out() -> None:
    model = vit()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in ("head.weight", "head.bias")
    assert named(OptimizerConfig(), model) == [(0.05, {"head.weight"}), (0.0, {"head.bias"})]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "head.bias"
    assert named(OptimizerConfig(), model) == [(0.0, {"head.bias"})]


class Two(nn.Module):
    """One decayed matrix and one bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = np.random.default_rng(0)
        self.weight = nn.Parameter(torch.from_numpy(generator.normal(size=(3, 2))))
        self.bias = nn.Parameter(torch.from_numpy(generator.normal(size=3)))


def gradients() -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    return [{"weight": generator.normal(size=(3, 2)), "bias": generator.normal(size=3)} for _ in range(3)]


def stepped(config: OptimizerConfig) -> list[dict[str, Any]]:
    """Both parameters after each of three steps."""
    model = Two()
    optimizer = build_optimizer(config, model)
    path = []
    for gradient in gradients():
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradient[name])
        optimizer.step()
        path.append({name: parameter.detach().clone().numpy() for name, parameter in model.named_parameters()})
    return path


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_is_decoupled(decay_all: bool) -> None:
    lr, decay, (beta1, beta2) = 0.1, 0.3, (0.8, 0.95)
    config = OptimizerConfig(lr=lr, weight_decay=decay, betas=(beta1, beta2), decay_all=decay_all)
    found = stepped(config)
    for name, start in Two().named_parameters():
        p, m, v = start.detach().numpy().copy(), 0.0, 0.0
        for t, gradient in enumerate(gradients(), 1):
            g = gradient[name]
            if name == "weight" or decay_all:
                p = p - lr * decay * p
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            p = p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
            np.testing.assert_allclose(found[t - 1][name], p, rtol=1e-12)


def test_sgd_has_momentum_and_coupled_decay() -> None:
    lr, decay, momentum = 0.1, 0.3, 0.8
    found = stepped(OptimizerConfig(name="sgd", lr=lr, weight_decay=decay, momentum=momentum))
    for name, start in Two().named_parameters():
        p, buffer = start.detach().numpy().copy(), 0.0
        for t, gradient in enumerate(gradients()):
            buffer = momentum * buffer + gradient[name] + (decay * p if name == "weight" else 0)
            p = p - lr * buffer
            np.testing.assert_allclose(found[t][name], p, rtol=1e-12)


def test_adamw_masks_its_step_and_sgd_does_not() -> None:
    model = Two()
    optimizer: Any = build_optimizer(OptimizerConfig(), model)
    assert masks_its_step(optimizer)
    assert not masks_its_step(build_optimizer(OptimizerConfig(name="sgd"), Two()))
    assert not masks_its_step(torch.optim.AdamW(Two().parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert len(after) == 2
    for number, slots in before[1]["state"].items():
        assert all(torch.equal(after[number][slot], value) for slot, value in slots.items())

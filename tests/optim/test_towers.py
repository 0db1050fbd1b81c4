"""Optimizers over two towers: what decays, what muon takes, and layers that count in each tower by itself."""

from __future__ import annotations

import pytest

from vit_dist.config.fields import ModelConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.config.text_fields import TextConfig
from vit_dist.models.two_tower import TwoTower, build_two_tower
from vit_dist.optim.optimizers import MuonAndAdamW, build_optimizer, parameter_groups


def model() -> TwoTower:
    image = ModelConfig(patch_size=4, width=16, depth=2, heads=2)
    text = TextConfig(width=12, depth=3, heads=2, context_length=5, embed_dim=8)
    return build_two_tower(image, text, "siglip", vocabulary_size=10, channels=1, image_size=8, seed=0)


def test_matrices_and_the_token_table_decay_and_nothing_else_does() -> None:
    towers = model()
    names = {id(p): name for name, p in towers.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(OptimizerConfig(), towers)}
    decayed = groups["decayed"]
    assert {name for name in decayed if "blocks" not in name} == {
        *("image.patch_embed.proj.weight", "image.head.weight", "text.token_embed.weight", "text.head.weight"),
    }
    assert groups["not decayed"] >= {
        "logit_scale",
        "logit_bias",
        "image.pos_embed",
        "image.cls_token",
        "text.pos_embed",
    }


def test_muon_takes_the_hidden_matrices_of_both_towers() -> None:
    towers = model()
    optimizer = build_optimizer(OptimizerConfig(name="muon"), towers, 1e-3)
    assert isinstance(optimizer, MuonAndAdamW)
    names = {id(p): name for name, p in towers.named_parameters()}
    hidden = {names[id(p)] for group in optimizer._muon.param_groups for p in group["params"]}
    inside = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert hidden == {name for name in names.values() if name.endswith(inside)}
    assert len(hidden) == 4 * (2 + 3)


def test_layers_count_from_the_projection_of_their_own_tower() -> None:
    towers = model()
    groups = parameter_groups(OptimizerConfig(layer_decay=0.5), towers)
    scales = {id(p): group["scale"] for group in groups for p in group["params"]}
    actual = {name: scales[id(p)] for name, p in towers.named_parameters()}
    assert actual["logit_scale"] == actual["logit_bias"] == 1
    assert actual["image.head.weight"] == actual["text.head.weight"] == 1
    assert [actual[f"image.blocks.{i}.mlp.fc1.weight"] for i in range(2)] == pytest.approx([0.25, 0.5])
    assert [actual[f"text.blocks.{i}.mlp.fc1.weight"] for i in range(3)] == pytest.approx([0.125, 0.25, 0.5])
    assert actual["image.pos_embed"] == actual["image.patch_embed.proj.weight"] == pytest.approx(0.125)
    assert actual["text.pos_embed"] == actual["text.token_embed.weight"] == pytest.approx(0.0625)

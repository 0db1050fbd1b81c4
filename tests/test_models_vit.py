"""Our ViT: timm's numbers with timm's weights, its initialisation, drop-path, dropout and positions."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_dist.config import Config, ModelConfig
from vit_dist.models.build import build_model, parameter_count
from vit_dist.models.vit import PRESETS, Block, ViT, sincos

SMALL: dict[str, Any] = {"image_size": 12, "patch_size": 4, "channels": 2, "classes": 5, "width": 24, "depth": 3,
                         "heads": 3}  # fmt: skip


def vit(**changes: Any) -> ViT:
    """A small float64 model in which every parameter matters, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViT(**{**SMALL, **changes}).double().eval()
    scatter(model, 0)
    return model


def scatter(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_parameters_of_the_mnist_reference() -> None:
    model = build_model(Config.load("mnist_reference").model, classes=10, channels=1, image_size=28, seed=0)
    assert parameter_count(model) == 1_797_130


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vit_tiny", 5_717_416), ("vit_small", 22_050_664), ("vit_base", 86_567_656), ("vit_large", 304_326_632)],
)
def test_presets_are_timms(name: str, parameters: int) -> None:
    with torch.device("meta"):
        ours = build_model(ModelConfig(name=name), classes=1000, channels=3, image_size=224, seed=0)
        theirs = timm.create_model(f"{name}_patch16_224")
    assert parameter_count(ours) == parameter_count(theirs) == parameters
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert PRESETS[name]["heads"] == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(("mlp_ratio", "norm_eps"), [(4.0, 1e-6), (2.0, 1e-2)])
def test_logits_are_timms_with_its_weights_and_back(pool: str, mlp_ratio: float, norm_eps: float) -> None:
    form: dict[str, Any] = {"class_token": True} if pool == "token" else {"class_token": False, "global_pool": "avg"}
    theirs = VisionTransformer(
        img_size=12, patch_size=4, in_chans=2, num_classes=5, embed_dim=24, depth=3, num_heads=3, mlp_ratio=mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=norm_eps), **form,
    ).double().eval()  # fmt: skip
    scatter(theirs, 2)
    ours = vit(pool=pool, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
    with torch.no_grad():
        before, expected = ours(images()), theirs(images())
        ours.load_state_dict(theirs.state_dict(), strict=True)
        found = ours(images())
        assert (before - expected).norm() > 0.1 * expected.norm()
        assert (found - expected).norm() <= 1e-10 * expected.norm()
        other = vit(pool=pool, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        theirs.load_state_dict(other.state_dict(), strict=True)
        assert (theirs(images()) - before).norm() <= 1e-10 * before.norm()


def test_initial_weights_have_the_papers_spread() -> None:
    torch.manual_seed(0)
    model = ViT(image_size=32, patch_size=8, channels=3, classes=100, width=96, depth=2, heads=3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
            assert abs(module.weight.mean().item()) < 0.001, name
            assert module.bias.abs().max() == 0, name
        elif isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all(), name
            assert module.bias.eq(0).all(), name
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (3 * 8 * 8)), rel=0.03)
    assert model.patch_embed.proj.bias is not None
    assert model.patch_embed.proj.bias.abs().max() == 0
    assert isinstance(model.cls_token, nn.Parameter)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.shape == (1, 17, 96)


def test_drop_path_drops_that_branch_of_that_sample_and_scales_what_it_keeps() -> None:
    block = Block(24, 3, 48, 1e-6, 0.0, 0.0, 0.25, 0.0, False).double()
    scatter(block, 3)
    x = torch.randn(4, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    draws = torch.tensor([[0.1, 0.9], [0.9, 0.2499], [0.25, 0.999], [0.0, 0.0]], dtype=torch.float64)
    scales = [(0, 4 / 3), (4 / 3, 0), (4 / 3, 4 / 3), (0, 0)]
    with torch.no_grad():
        found = block(x, draws)
        for i, (attention, mlp) in enumerate(scales):
            one = x[i : i + 1]
            between = one + attention * block.attn(block.norm1(one))
            expected = between + mlp * block.mlp(block.norm2(between))
            torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[3], x[3])


def test_drop_path_rises_linearly_and_each_block_reads_its_own_draws() -> None:
    model = vit(depth=5, drop_path=0.5)
    assert model.drop_path_rates == pytest.approx([0, 0.125, 0.25, 0.375, 0.5], abs=1e-15)
    assert [block.rate for block in model.blocks] == model.drop_path_rates
    assert vit(depth=1, drop_path=0.5).drop_path_rates == [0.0]
    with torch.no_grad():
        everything_dropped = model(images(), torch.zeros(3, 5, 2, dtype=torch.float64))
        first_only = vit(depth=5)
        first_only.load_state_dict(model.state_dict())
        del first_only.blocks[1:]
        torch.testing.assert_close(everything_dropped, first_only(images()), rtol=1e-12, atol=1e-12)

        # The rates are 0, 1/8, 1/4, 3/8, 1/2: the second block and the last one's MLP are dropped.
        draws = torch.tensor([0.0, 0.1, 0.9, 0.9, 0.4], dtype=torch.float64)[None, :, None].repeat(3, 1, 2)
        draws[:, 4, 0] = 0.5
        scales = [(1, 1), (0, 0), (1 / 0.75, 1 / 0.75), (1 / 0.625, 1 / 0.625), (2, 0)]
        assert model.cls_token is not None
        x = torch.cat([model.cls_token.expand(3, -1, -1), model.patch_embed(images())], dim=1) + model.pos_embed
        blocks: Any = model.blocks
        for block, (attention, mlp) in zip(blocks, scales, strict=True):
            x = x + attention * block.attn(block.norm1(x))
            x = x + mlp * block.mlp(block.norm2(x))
        torch.testing.assert_close(model(images(), draws), model.head(model.norm(x)[:, 0]), rtol=1e-12, atol=1e-12)


def test_nothing_is_dropped_without_draws() -> None:
    model = vit(drop_path=0.9)
    plain = vit()
    with torch.no_grad():
        expected = plain(images())
        assert torch.equal(model.eval()(images()), expected)
        assert torch.equal(model.train()(images()), expected)


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"attention_dropout": 0.3}])
def test_dropout_acts_in_training_alone(changes: dict[str, float]) -> None:
    model = vit(**changes)
    expected = vit()(images())
    torch.testing.assert_close(model(images()), expected, rtol=1e-12, atol=1e-12)
    model.train()
    torch.manual_seed(0)
    first, second = model(images()), model(images())
    assert (first - expected).abs().min() > 0
    assert (first - second).abs().min() > 0
    torch.manual_seed(0)
    assert torch.equal(model(images()), first)


def test_dropout_acts_on_positions_projection_and_mlp() -> None:
    model = vit(dropout=0.3, attention_dropout=0.2)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    blocks = {f"blocks.{i}.{name}": 0.3 for i in range(3) for name in ("attn.proj_drop", "mlp.drop")}
    assert rates == {"pos_drop": 0.3, **blocks}
    assert [block.attn.attention_dropout for block in model.blocks] == [0.2] * 3


@pytest.mark.parametrize("class_token", [True, False])
def test_sincos_positions(class_token: bool) -> None:
    positions = sincos(3, 16, prefix=int(class_token))
    assert positions.shape == (1, 9 + class_token, 16)
    assert positions.dtype == torch.float32
    rows = positions[0].numpy()
    if class_token:
        assert np.abs(rows[0]).max() == 0
        rows = rows[1:]
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    for place, found in enumerate(rows):
        down, right = divmod(place, 3)
        waves = [f(side * frequency) for side in (right, down) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(found, np.concatenate(waves), rtol=0, atol=1e-7)
    assert len({tuple(row) for row in rows.round(6).tolist()}) == 9


def test_sincos_positions_are_no_parameters() -> None:
    model, learned = vit(position="sincos"), vit()
    assert "pos_embed" not in model.state_dict()
    assert learned.state_dict().keys() - model.state_dict().keys() == {"pos_embed"}
    assert parameter_count(learned) - parameter_count(model) == 10 * 24
    assert torch.equal(model.pos_embed, sincos(3, 24, prefix=1).double())


def test_mean_pool_has_no_token_and_reads_every_patch_alike() -> None:
    model = vit(pool="mean")
    assert model.cls_token is None
    assert vit().state_dict().keys() - model.state_dict().keys() == {"cls_token", "norm.weight", "norm.bias"}
    assert model.pos_embed.shape == (1, 9, 24)
    with torch.no_grad():
        model.pos_embed.zero_()
        upside_down = images().unflatten(2, (3, 4)).flip(2).flatten(2, 3)
        assert not torch.equal(upside_down, images())
        torch.testing.assert_close(model(upside_down), model(images()), rtol=1e-11, atol=1e-11)
        x = model.patch_embed(images())
        for block in model.blocks:
            x = block(x, None)
        torch.testing.assert_close(model(images()), model.head(model.fc_norm(x.mean(1))), rtol=1e-12, atol=1e-12)


def test_patches_are_the_convolution_row_by_row() -> None:
    embed = vit().patch_embed
    with torch.no_grad():
        found = embed(images())
        for place in range(9):
            top, left = 4 * (place // 3), 4 * (place % 3)
            patch = images()[:, :, top : top + 4, left : left + 4]
            expected = torch.einsum("bchw,dchw->bd", patch, embed.proj.weight) + embed.proj.bias
            torch.testing.assert_close(found[:, place], expected, rtol=1e-12, atol=1e-12)


def test_every_field_of_the_config_reaches_the_model() -> None:
    config = ModelConfig(
        name="vit_small",
        patch_size=4,
        width=32,
        depth=3,
        heads=4,
        mlp_ratio=3,
        pool="mean",
        position="sincos",
        norm_eps=0.125,
        dropout=0.1,
        attention_dropout=0.2,
        drop_path=0.4,
    )
    model = build_model(config, classes=7, channels=2, image_size=12, seed=0)
    assert isinstance(model, ViT)
    block: Any = model.blocks[2]
    assert (model.patch_embed.proj.weight.shape, model.head.weight.shape) == ((32, 2, 4, 4), (7, 32))
    assert (len(model.blocks), block.attn.heads, block.mlp.fc1.out_features, block.norm1.eps) == (3, 4, 96, 0.125)
    assert (model.cls_token, block.mlp.drop.p, block.attn.attention_dropout, block.rate) == (None, 0.1, 0.2, 0.4)
    assert not isinstance(model.pos_embed, nn.Parameter)
    preset = build_model(dataclasses.replace(config, width=None, depth=None, heads=None), classes=7, channels=2,
                         image_size=12, seed=0)  # fmt: skip
    assert isinstance(preset, ViT)
    first: Any = preset.blocks[0]
    assert (preset.head.in_features, len(preset.blocks), first.attn.heads) == (384, 12, 6)

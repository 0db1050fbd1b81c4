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
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.config.config import Config
from vit_dist.config.fields import ModelConfig
from vit_dist.models.blocks import LayerScale
from vit_dist.models.build import build_model
from vit_dist.models.forward import parameter_count
from vit_dist.models.positions import sincos
from vit_dist.models.vit import PRESETS, PatchEmbed, ViT

SMALL: dict[str, Any] = {"image_size": 12, "patch_size": 4, "channels": 2, "classes": 5, "width": 24, "depth": 3,
                         "heads": 3}  # fmt: skip
EXTRAS: list[dict[str, Any]] = [
    {"registers": 3},
    {"layer_scale": 0.1},
    {"qk_norm": True},
    {"registers": 2, "layer_scale": 0.5, "qk_norm": True, "norm_eps": 1e-2},
]
POOLS: list[dict[str, Any]] = [{}, {"pool": "mean"}, {"pool": "mean", "fc_norm": False}]


def vit(**changes: Any) -> ViT:
    """Build a small float64 model in which every parameter matters, in eval mode."""
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


def images(count: int = 3, side: int = 12) -> Tensor:
    return torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def timms(*, dynamic: bool = False, **changes: Any) -> VisionTransformer:
    """Build timm's equivalent of `vit(**changes)`, with other weights, in which every parameter matters."""
    mean = changes.get("pool") == "mean"
    model = VisionTransformer(
        img_size=12, patch_size=4, in_chans=2, num_classes=5, embed_dim=24, depth=3, num_heads=3,
        class_token=not mean, global_pool="avg" if mean else "token", fc_norm=mean and changes.get("fc_norm", True),
        reg_tokens=changes.get("registers", 0), init_values=changes.get("layer_scale"),
        qk_norm=changes.get("qk_norm", False), norm_layer=partial(nn.LayerNorm, eps=changes.get("norm_eps", 1e-6)),
        dynamic_img_size=dynamic,
    ).double().eval()  # fmt: skip
    scatter(model, 2)
    return model


def spread(values: Tensor, *, std: float, cut: float, rel: float = 0.02) -> None:
    """Check that values have mean 0 and this deviation, reach up to the cut, and not beyond it."""
    assert values.std().item() == pytest.approx(std, rel=rel)
    assert abs(values.mean().item()) < 4 * std / values.numel() ** 0.5
    assert 0.99 * cut < values.abs().max().item() <= cut


def test_parameters_of_the_mnist_reference() -> None:
    model = build_model(Config.load("mnist_reference").model, classes=10, channels=1, image_size=28, seed=0)
    assert parameter_count(model) == 1_797_130


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny", 5_717_416),
        ("vit_small", 22_050_664),
        ("vit_base", 86_567_656),
        ("vit_large", 304_326_632),
        ("vit_huge", 632_045_800),
    ],
)
def test_presets_equal_timms_models(name: str, parameters: int) -> None:
    patch_size = 14 if name == "vit_huge" else 16
    config = ModelConfig(name=name, patch_size=patch_size)
    with torch.device("meta"):
        ours = build_model(config, classes=1000, channels=3, image_size=224, seed=0)
        theirs = timm.create_model(f"{name}_patch{patch_size}_224", num_classes=1000)
    assert parameter_count(ours) == parameter_count(theirs) == parameters
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert PRESETS[name]["heads"] == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(("mlp_ratio", "norm_eps"), [(4.0, 1e-6), (2.0, 1e-2)])
def test_logits_equal_timms_with_weights_loaded_either_way(pool: str, mlp_ratio: float, norm_eps: float) -> None:
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
        actual = ours(images())
        assert (before - expected).norm() > 0.1 * expected.norm()
        assert (actual - expected).norm() <= 1e-10 * expected.norm()
        other = vit(pool=pool, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        theirs.load_state_dict(other.state_dict(), strict=True)
        assert (theirs(images()) - before).norm() <= 1e-10 * before.norm()


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("pool", POOLS)
def test_registers_layer_scale_and_qk_norm_equal_timms(pool: dict[str, Any], extra: dict[str, Any]) -> None:
    ours, theirs = vit(**pool, **extra), timms(**pool, **extra)
    names = {name: parameter.shape for name, parameter in ours.named_parameters()}
    assert names == {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert ("reg_token" in names) is ("registers" in extra)
    assert ("blocks.2.ls2.gamma" in names) is ("layer_scale" in extra)
    assert ("blocks.2.attn.k_norm.bias" in names) is ("qk_norm" in extra)
    with torch.no_grad():
        before, expected = ours(images()), theirs(images())
        assert (before - expected).norm() > 0.1 * expected.norm()
        weights = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert (ours(images()) - expected).norm() <= 1e-10 * expected.norm()
        theirs.load_state_dict(weights, strict=True)
        assert (theirs(images()) - before).norm() <= 1e-10 * before.norm()


def test_mean_pool_after_the_norm_equals_timms() -> None:
    model = vit(pool="mean", fc_norm=False)
    theirs = timms(pool="mean", fc_norm=False)
    assert isinstance(model.norm, nn.LayerNorm)
    assert isinstance(model.fc_norm, nn.Identity)
    theirs.load_state_dict(model.state_dict(), strict=True)
    behind = vit(pool="mean")
    behind.load_state_dict({name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: tensor
                            for name, tensor in model.state_dict().items()})  # fmt: skip
    with torch.no_grad():
        actual = model(images())
        assert (actual - theirs(images())).norm() <= 1e-10 * actual.norm()
        assert (actual - behind(images())).norm() > 0.01 * actual.norm()


@pytest.mark.parametrize("changes", [*POOLS, {"registers": 3}, {"pool": "mean", "registers": 3}])
@pytest.mark.parametrize("side", [8, 20])
def test_positions_are_resampled_for_other_image_sizes_as_timm_does(side: int, changes: dict[str, Any]) -> None:
    ours, theirs = vit(**changes), timms(dynamic=True, **changes)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        actual, expected = ours(images(side=side)), theirs(images(side=side))
        assert actual.shape == (3, 5)
        assert (actual - expected).norm() <= 1e-10 * expected.norm()
        # At its own side nothing is resampled.
        assert (ours(images()) - theirs(images())).norm() <= 1e-10 * expected.norm()


def test_sincos_positions_are_resampled_too() -> None:
    ours, theirs = vit(position="sincos"), timms(dynamic=True)
    theirs.load_state_dict({**ours.state_dict(), "pos_embed": ours.pos_embed}, strict=True)
    with torch.no_grad():
        actual, expected = ours(images(side=20)), theirs(images(side=20))
    assert (actual - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize(("patch_size", "stride"), [(6, 4), (7, 4), (4, 3), (3, 2), (9, 6), (5, 1)])
def test_overlapping_patches_equal_a_padded_convolution(patch_size: int, stride: int) -> None:
    embed = PatchEmbed(patch_size, stride, 2, 24).double()
    scatter(embed, 5)
    before = (patch_size - stride) // 2
    behind = patch_size - stride - before
    padded = F.pad(images(), [before, behind, before, behind])
    with torch.no_grad():
        expected = F.conv2d(padded, embed.proj.weight, embed.proj.bias, stride=stride)
        assert expected.shape == (3, 24, 12 // stride, 12 // stride)
        torch.testing.assert_close(embed(images()), expected.flatten(2).mT, rtol=1e-12, atol=1e-12)
        if before == behind:
            same = F.conv2d(images(), embed.proj.weight, embed.proj.bias, stride=stride, padding=before)
            assert torch.equal(same, expected)


def test_a_stride_equal_to_the_patch_size_changes_nothing() -> None:
    plain, strided = vit(), vit(patch_stride=4)
    assert torch.equal(strided(images()), plain(images()))
    embed = plain.patch_embed
    with torch.no_grad():
        unfolded = F.unfold(images(), 4, stride=4).mT
        expected = F.linear(unfolded, embed.proj.weight.flatten(1), embed.proj.bias)
        torch.testing.assert_close(embed(images()), expected, rtol=1e-12, atol=1e-12)


def test_a_vit_of_overlapping_patches_has_the_tokens_of_a_convolution() -> None:
    model = vit(patch_size=6, patch_stride=4, registers=2)
    assert model.patch_embed.proj.weight.shape == (24, 2, 6, 6)
    assert model.pos_embed.shape == (1, 3 + 9, 24)
    with torch.no_grad():
        patches = F.conv2d(images(), model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=4, padding=1)
        assert model.cls_token is not None
        assert model.reg_token is not None
        tokens = [token.expand(3, -1, -1) for token in (model.cls_token, model.reg_token)]
        x = torch.cat([*tokens, patches.flatten(2).mT], dim=1) + model.pos_embed
        for block in model.blocks:
            x = block(x, None)
        torch.testing.assert_close(model(images()), model.head(model.norm(x)[:, 0]), rtol=1e-12, atol=1e-12)
        assert model(images(side=20)).shape == (3, 5)


@pytest.mark.parametrize("pool", POOLS)
def test_pre_logits_adds_a_layer_before_the_head(pool: dict[str, Any]) -> None:
    model, plain = vit(**pool, pre_logits=True), vit(**pool)
    assert model.state_dict().keys() - plain.state_dict().keys() == {"pre_logits.0.weight", "pre_logits.0.bias"}
    assert parameter_count(model) - parameter_count(plain) == 24 * 24 + 24
    plain.load_state_dict(model.state_dict(), strict=False)
    layer: Any = model.pre_logits
    plain.add_module("head", nn.Identity())
    with torch.no_grad():
        expected = model.head(torch.tanh(F.linear(plain(images()), layer[0].weight, layer[0].bias)))
        torch.testing.assert_close(model(images()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("extra", [{}, *EXTRAS])
@pytest.mark.parametrize("pool", POOLS)
def test_layers_equal_timms_and_cover_every_parameter(pool: dict[str, Any], extra: dict[str, Any]) -> None:
    ours, theirs = vit(**pool, **extra), timms(**pool, **extra)
    layers = group_parameters(ours, ours.group_matcher(), reverse=True)
    assert layers == group_parameters(theirs, theirs.group_matcher(), reverse=True)
    assert layers.keys() == {name for name, _ in ours.named_parameters()}
    stem = {"cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, layer in layers.items() if layer == 0} == stem & layers.keys()
    assert ("reg_token" in layers) is ("registers" in extra)
    for name, layer in layers.items():
        if name.startswith("blocks."):
            assert layer == int(name.split(".")[1]) + 1


def test_initial_weights_have_the_standard_deviation_of_the_paper() -> None:
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


def test_initial_weights_of_every_kind_as_in_timm() -> None:
    torch.manual_seed(0)
    model = ViT(image_size=64, patch_size=8, channels=3, classes=500, width=192, depth=2, heads=3, registers=64,
                layer_scale=1e-4, qk_norm=True, pre_logits=True)  # fmt: skip
    seen = set()
    for name, parameter in model.named_parameters():
        values, kind = parameter.detach(), name.split(".")[-2] if "." in name else name
        if kind in ("ls1", "ls2"):
            assert values.eq(1e-4).all(), name
        elif "norm" in name:
            assert values.eq(1.0 if name.endswith("weight") else 0.0).all(), name
        elif name.endswith("bias"):
            assert values.eq(0).all(), name
        else:
            std = math.sqrt(2 / 192) if name == "patch_embed.proj.weight" else 0.02
            assert values.std().item() == pytest.approx(std, rel=0.15 if kind == "cls_token" else 0.02), name
            assert abs(values.mean().item()) < 4 * std / values.numel() ** 0.5, name
            # A normal, not cut at two deviations.
            assert values.abs().max().item() > 2.3 * std, name
        seen.add(kind)
    assert seen == {"cls_token", "reg_token", "pos_embed", "proj", "qkv", "q_norm", "k_norm", "norm1", "norm2", "norm",
                    "ls1", "ls2", "fc1", "fc2", "0", "head"}  # fmt: skip


def test_initial_weights_of_every_kind_as_in_jax() -> None:
    torch.manual_seed(0)
    model = ViT(image_size=64, patch_size=8, channels=3, classes=500, width=192, depth=2, heads=3, registers=2,
                layer_scale=0.1, qk_norm=True, pre_logits=True, init="jax")  # fmt: skip
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, module in linears.items():
        outward, inward = module.weight.shape
        if name == "head":
            assert module.weight.eq(0).all()
        elif not name.endswith("qkv"):
            bound = math.sqrt(6 / (inward + outward))
            spread(module.weight.detach(), std=bound / math.sqrt(3), cut=bound)
        if ".mlp." in name:
            assert module.bias.std().item() == pytest.approx(1e-6, rel=0.2), name
            assert 2e-6 < module.bias.abs().max().item() < 6e-6, name
        else:
            assert module.bias.eq(0).all(), name
    assert len(linears) == 2 * 4 + 2
    # LeCun's normal, cut where a normal that is cut there has the deviation 1/sqrt(fan in).
    projection = model.patch_embed.proj
    assert projection.bias is not None
    spread(projection.weight.detach(), std=192**-0.5, cut=2 * 192**-0.5 / 0.87962566)
    assert projection.bias.eq(0).all()
    assert model.cls_token is not None
    assert model.reg_token is not None
    assert model.cls_token.eq(0).all()
    assert model.reg_token.eq(0).all()
    assert model.pos_embed.std().item() == pytest.approx(192**-0.5, rel=0.02)
    assert model.pos_embed.abs().max().item() > 3 * 192**-0.5
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            assert part.weight.eq(1).all()
            assert part.bias.eq(0).all()
        elif isinstance(part, LayerScale):
            assert part.gamma.eq(0.1).all()


def test_drop_path_drops_the_drawn_branches_and_scales_the_others() -> None:
    model = vit(depth=2, drop_path=0.25).double()  # rates 0 and 0.25
    for number, block in enumerate(model.blocks):
        scatter(block, 3 + number)
    side = SMALL["image_size"]
    images = torch.randn(
        4, SMALL["channels"], side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    first, second = model.blocks
    seen: list[Tensor] = []
    handle = second.register_forward_pre_hook(lambda block, arguments: seen.append(arguments[0]))
    draws = torch.tensor([[0.1, 0.9], [0.9, 0.2499], [0.25, 0.999], [0.0, 0.0]])
    scales = [(0, 4 / 3), (4 / 3, 0), (4 / 3, 4 / 3), (0, 0)]
    with torch.no_grad():
        actual = model(images, torch.stack([torch.zeros(4, 2), draws], dim=1))
        handle.remove()
        x = seen[0]
        outputs = []
        for i, (attention, mlp) in enumerate(scales):
            sample = x[i : i + 1]
            between = sample + attention * second.attn(second.norm1(sample))
            outputs.append(between + mlp * second.mlp(second.norm2(between)))
        expected = model.forward_head(model.norm(torch.cat(outputs)))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        # A block whose rate is 0 drops nothing, whatever is drawn.
        assert torch.equal(first(x, torch.ones(2, 4, 1, 1)), first(x))


def test_drop_path_rises_linearly_and_each_block_reads_its_own_draws() -> None:
    model = vit(depth=5, drop_path=0.5)
    assert model.drop_path_rates == pytest.approx([0, 0.125, 0.25, 0.375, 0.5], abs=1e-15)
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
def test_dropout_acts_only_in_training(changes: dict[str, float]) -> None:
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
    for place, actual in enumerate(rows):
        down, right = divmod(place, 3)
        waves = [f(side * frequency) for side in (right, down) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(actual, np.concatenate(waves), rtol=0, atol=1e-7)
    assert len({tuple(row) for row in rows.round(6).tolist()}) == 9


def test_sincos_positions_are_not_parameters() -> None:
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


def test_patch_embedding_equals_a_convolution() -> None:
    embed = vit().patch_embed
    with torch.no_grad():
        actual = embed(images())
        for place in range(9):
            top, left = 4 * (place // 3), 4 * (place % 3)
            patch = images()[:, :, top : top + 4, left : left + 4]
            expected = torch.einsum("bchw,dchw->bd", patch, embed.proj.weight) + embed.proj.bias
            torch.testing.assert_close(actual[:, place], expected, rtol=1e-12, atol=1e-12)


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
        fc_norm=False,
        pre_logits=True,
        patch_stride=2,
        registers=5,
        layer_scale=0.25,
        qk_norm=True,
        init="jax",
    )
    model = build_model(config, classes=7, channels=2, image_size=12, seed=0)
    assert isinstance(model, ViT)
    block: Any = model.blocks[2]
    assert (model.patch_embed.proj.weight.shape, model.head.weight.shape) == ((32, 2, 4, 4), (7, 32))
    assert (len(model.blocks), block.attn.heads, block.mlp.fc1.out_features, block.norm1.eps) == (3, 4, 96, 0.125)
    assert (model.cls_token, block.mlp.drop.p, block.attn.attention_dropout) == (None, 0.1, 0.2)
    assert not isinstance(model.pos_embed, nn.Parameter)
    assert isinstance(model.norm, nn.LayerNorm)
    assert isinstance(model.fc_norm, nn.Identity)
    assert isinstance(model.pre_logits, nn.Sequential)
    assert isinstance(model.reg_token, nn.Parameter)
    assert (model.patch_embed.stride, model.pos_embed.shape, model.reg_token.shape) == (2, (1, 41, 32), (1, 5, 32))
    assert (block.ls1.gamma.tolist(), block.attn.q_norm.eps) == ([0.25] * 32, 0.125)
    assert model.head.weight.eq(0).all()
    preset = build_model(dataclasses.replace(config, width=None, depth=None, heads=None), classes=7, channels=2,
                         image_size=12, seed=0)  # fmt: skip
    assert isinstance(preset, ViT)
    first: Any = preset.blocks[0]
    assert (preset.head.in_features, len(preset.blocks), first.attn.heads) == (384, 12, 6)

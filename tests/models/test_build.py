"""Building models: seeds, timm, the user's own functions, errors, FLOPs."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_dist.config.fields import ModelConfig
from vit_dist.data.preprocessing import Preprocessing, timm_preprocessing
from vit_dist.errors import UserError
from vit_dist.models.build import build_model, checkpoint_blocks, drop_path_depth
from vit_dist.models.forward import forward_flops
from vit_dist.models.timm_models import imagenet_classes

TINY = ModelConfig(patch_size=2, width=16, depth=2, heads=2)
MODULE = """
from torch import nn

def build(classes, channels, image_size, hidden=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, hidden), nn.Linear(hidden, classes))

def number(classes, channels, image_size):
    return classes
"""


def build(config: ModelConfig, *, seed: int = 0, channels: int = 1, image_size: int = 8) -> nn.Module:
    return build_model(config, classes=5, channels=channels, image_size=image_size, seed=seed)


def refusal(config: ModelConfig, **sizes: int) -> str:
    with pytest.raises(UserError) as error:
        build(config, **sizes)
    return str(error.value)


def same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a user's module into the working folder and return its name."""
    (tmp_path / "models_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models_of_mine", raising=False)
    return "models_of_mine"


@pytest.mark.parametrize("name", ["vit_tiny", "timm/vit_tiny_patch16_224", "models_of_mine:build"])
def test_initial_weights_depend_on_the_seed_alone(name: str, own_module: str) -> None:
    small = {"patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2} if name.startswith("timm/") else {}
    config = TINY if name == "vit_tiny" else ModelConfig(name=name, args=small)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(100)
    assert same(build(config), first)
    other = build(config, seed=1)
    for name, parameter in other.named_parameters():
        if parameter.ndim >= 2:
            assert not torch.equal(parameter, first.state_dict()[name]), name


def test_weights_are_float32_on_the_cpu_in_training_mode() -> None:
    model = build(TINY)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert model.training


def test_a_timm_model_is_built_for_the_data() -> None:
    config = ModelConfig(name="timm/vit_tiny_patch16_224", dropout=0.1, drop_path=0.2,
                         args={"patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 3})  # fmt: skip
    model = build(config, channels=2, image_size=12)
    assert isinstance(model, VisionTransformer)
    assert model(torch.zeros(2, 2, 12, 12)).shape == (2, 5)
    assert model.patch_embed.proj.weight.shape == (24, 2, 4, 4)
    assert model.pos_embed.shape == (1, 10, 24)
    assert model.head_drop.p == 0.1
    assert model.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
    assert drop_path_depth(model) == 2  # that of the first block is 0


def test_a_convolutional_timm_model_takes_any_size() -> None:
    model = build(ModelConfig(name="timm/convnext_atto", args={"depths": (1, 1, 1, 1)}), channels=1, image_size=32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_unknown_models_are_refused_with_the_closest_names() -> None:
    known = "known: vit_tiny, vit_small, vit_base, vit_large, vit_huge, timm/NAME, package.module:function"
    assert refusal(ModelConfig(name="vit_tny")) == "model.name: no model vit_tny (did you mean vit_tiny?)"
    assert refusal(ModelConfig(name="zz")) == f"model.name: no model zz; {known}"
    message = refusal(ModelConfig(name="timm/vit_tny_patch16_224"))
    assert message.startswith(
        "model.name: timm has no model vit_tny_patch16_224: did you mean timm/vit_tiny_patch16_224, timm/"
    )
    assert refusal(ModelConfig(name="timm/zzz")) == "model.name: timm has no model zzz: see timm.list_models()"


def test_a_timm_model_that_cannot_be_built_says_why() -> None:
    assert refusal(ModelConfig(name="timm/vit_tiny_patch16_224", args={"bogus": 1})) == (
        "model.name: timm/vit_tiny_patch16_224 cannot be built for 8 pixels: "
        "VisionTransformer.__init__() got an unexpected keyword argument 'bogus'"
    )


def test_all_sizes_that_do_not_fit_are_reported_at_once() -> None:
    config = ModelConfig(patch_size=3, width=10, heads=4, position="sincos", depth=1)
    assert refusal(config).splitlines() == [
        "model.patch_size: 3 does not divide an image of 8 pixels: set model.patch_size 2 or data.image_size 9",
        "model.width: 10 is not divisible by 4 heads: set model.heads",
        "model.width: 10 must be divisible by 4 with model.position sincos",
    ]
    assert refusal(ModelConfig(patch_size=2, width=64)) == (
        "model.width: 64 is not divisible by 3 heads: set model.heads"
    )


@pytest.mark.parametrize("sizes", [(), (4, 16)])
def test_a_stride_that_does_not_divide_the_image_is_refused(sizes: tuple[int, ...]) -> None:
    config = ModelConfig(patch_size=4, patch_stride=3, width=16, depth=1, heads=2)
    with pytest.raises(UserError) as caught:
        build_model(config, classes=5, channels=1, image_size=8, seed=0, sizes=sizes)
    assert str(caught.value) == (
        "model.patch_stride: 3 does not divide an image of 8 pixels: set model.patch_stride 2 or data.image_size 9"
    )


def test_other_image_sizes_are_accepted() -> None:
    model = build_model(TINY, classes=5, channels=1, image_size=8, seed=0, sizes=[4, 16])
    assert same(model, build(TINY))
    assert model.training
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


def test_an_image_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        build_model(TINY, classes=5, channels=1, image_size=8, seed=0, sizes=[16, 7])
    assert str(caught.value) == (
        "augment.sizes: vit_tiny does not take 7 pixels: shape '[1, 1, 3, 2, 3, 2]' is invalid for input of size 49"
    )


def test_a_timm_vit_takes_other_image_sizes_on_request() -> None:
    config = ModelConfig(name="timm/vit_tiny_patch16_224",
                         args={"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2})  # fmt: skip
    plain: Any = build(config)
    model: Any = build_model(config, classes=5, channels=1, image_size=8, seed=0, sizes=[12, 16])
    assert (plain.dynamic_img_size, model.dynamic_img_size) == (False, True)
    assert same(model, plain)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(model(torch.ones(2, 1, 8, 8)), plain(torch.ones(2, 1, 8, 8)))
        assert model(torch.ones(2, 1, 16, 16)).shape == (2, 5)
    with pytest.raises(UserError) as caught:
        build_model(config, classes=5, channels=1, image_size=8, seed=0, sizes=[12, 10])
    assert str(caught.value) == (
        "augment.sizes: timm/vit_tiny_patch16_224 does not take 10 pixels: "
        "Input height (10) should be divisible by patch size (4)."
    )


def test_a_users_model_that_takes_only_one_image_size_is_refused(own_module: str) -> None:
    with pytest.raises(UserError, match=r"^augment.sizes: models_of_mine:build does not take 6 pixels: .*1x36 "):
        build_model(ModelConfig(name=f"{own_module}:build"), classes=5, channels=1, image_size=8, seed=0, sizes=[6])


def test_a_users_function_builds_the_model(own_module: str) -> None:
    model: Any = build(ModelConfig(name=f"{own_module}:build", args={"hidden": 7}), channels=2, image_size=4)
    assert (model[1].weight.shape, model[2].weight.shape) == ((7, 32), (5, 7))
    assert model(torch.zeros(3, 2, 4, 4)).shape == (3, 5)
    assert drop_path_depth(model) == 0
    assert refusal(ModelConfig(name=f"{own_module}:number")) == (
        "model.name: models_of_mine:number must return a torch.nn.Module, not int"
    )


def test_a_missing_function_is_refused(own_module: str) -> None:
    hint = "write it as package.module:function"
    assert refusal(ModelConfig(name="nosuch_module:build")) == (
        f"model.name: nosuch_module:build cannot be imported: No module named 'nosuch_module'; {hint}"
    )
    assert refusal(ModelConfig(name=f"{own_module}:biuld")) == (
        f"model.name: {own_module}:biuld cannot be imported: module '{own_module}' has no attribute 'biuld'; {hint}"
    )


def test_batch_norm_is_refused_by_name() -> None:
    assert refusal(ModelConfig(name="timm/resnet18"), channels=3, image_size=32) == (
        "model.name: BatchNorm (bn1) makes the result depend on how a batch is split over machines: "
        "use a model with LayerNorm or GroupNorm, or freeze its norms (timm's freeze_batch_norm_2d)"
    )


@pytest.mark.parametrize(("pool", "tokens"), [("token", 17), ("mean", 16)])
@pytest.mark.parametrize("depth", [1, 3])
def test_flops_agree_with_the_formula(pool: Any, tokens: int, depth: int) -> None:
    model = build(ModelConfig(patch_size=2, width=24, depth=depth, heads=3, mlp_ratio=2, pool=pool), channels=2)
    patches, width, hidden = 16, 24, 48
    linears = tokens * (width * 3 * width + width * width + 2 * width * hidden)
    attention = 2 * tokens * tokens * width
    expected = 2 * (patches * (2 * 2 * 2) * width + depth * (linears + attention) + width * 5)
    assert forward_flops(model, channels=2, image_size=8) == expected
    assert model.training


def test_drop_path_depth_is_zero_without_drop_path() -> None:
    assert drop_path_depth(build(TINY)) == 0
    assert drop_path_depth(build(ModelConfig(patch_size=2, width=16, depth=3, heads=2, drop_path=0.1))) == 3


def test_preprocessing_of_timm_models() -> None:
    half = (0.5, 0.5, 0.5)
    assert timm_preprocessing(ModelConfig(name="timm/vit_tiny_patch16_224")) == Preprocessing(224, half, half, 0.9)
    imagenet = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.9)
    assert timm_preprocessing(ModelConfig(name="timm/deit_tiny_patch16_224")) == imagenet
    assert timm_preprocessing(ModelConfig(name="vit_tiny")) is None
    assert timm_preprocessing(ModelConfig(name="models_of_mine:build")) is None


def test_a_timm_model_whose_patches_do_not_divide_the_image_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(name="timm/vit_tiny_patch16_224"), classes=3, channels=3, image_size=30, seed=0)
    assert str(caught.value) == ("data.image_size: timm/vit_tiny_patch16_224 has patches of 16 pixels: set 32, not 30")


def test_a_function_with_other_arguments_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model.name: json:dumps was called with classes, channels, image_size and"):
        build_model(ModelConfig(name="json:dumps"), classes=3, channels=3, image_size=32, seed=0)


def test_imagenet_classes_have_identifiers_and_names() -> None:
    identifiers, names = imagenet_classes("timm/vit_tiny_patch16_224", 1000)
    assert (len(identifiers), len(set(identifiers)), len(names)) == (1000, 1000, 1000)
    assert identifiers == sorted(identifiers)  # as folders of ImageNet are numbered
    assert (identifiers[0], names[0]) == ("n01440764", "tench")
    assert (identifiers[207], names[207]) == ("n02099601", "golden retriever")
    assert (identifiers[999], names[999]) == ("n15075141", "toilet tissue")
    identifiers, names = imagenet_classes("timm/vit_tiny_patch16_224.augreg_in21k", 21841)
    assert (len(set(identifiers)), len(names), names[0]) == (21841, 21841, "organism")


@pytest.mark.parametrize(("name", "classes"), [("timm/vit_tiny_patch16_224", 3), ("timm/x", 999), ("vit_tiny", 1000)])
def test_classes_of_other_data_are_numbers(name: str, classes: int) -> None:
    numbers = [str(number) for number in range(classes)]
    assert imagenet_classes(name, classes) == (numbers, numbers)


def test_an_untrained_model_may_have_batch_norm() -> None:
    config = ModelConfig(name="timm/test_resnet")
    model = build_model(config, classes=3, channels=3, image_size=32, seed=0, trained=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with pytest.raises(UserError, match=r"^model.name: BatchNorm \("):
        build_model(config, classes=3, channels=3, image_size=32, seed=0)


@pytest.mark.parametrize(
    ("model", "side", "line"),
    [
        (ModelConfig(width=65536, depth=1000, heads=64), 224, "model.width: the model's 51.5T parameters would take "),
        (
            ModelConfig(patch_size=1, width=65536, heads=64),
            16384,
            "model.width: the model's 18.2T parameters would take ",
        ),
        (
            ModelConfig(mlp_ratio=1000, width=65536, heads=64),
            224,
            "model.width: the model's 103T parameters would take ",
        ),
        (
            ModelConfig(name="timm/vit_tiny_patch16_224", args={"depth": 10**9}),
            32,
            "model.args.depth: must be at most ",
        ),
        (
            ModelConfig(name="timm/vit_tiny_patch16_224", args={"embed_dim": 10**400}),
            32,
            "model.args.embed_dim: must be ",
        ),
        (
            ModelConfig(name="timm/vit_tiny_patch16_224", args={"depth": 50, "embed_dim": 65520, "num_heads": 1}),
            32,
            "model.args: the model's 2.58T parameters would take ",
        ),
    ],
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(model: ModelConfig, side: int, line: str) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        build_model(model, classes=2, channels=3, image_size=side, seed=0)
    assert str(error.value).startswith(line)
    assert time.perf_counter() - start < 10  # seconds


@pytest.mark.parametrize("name", ["vit_tiny", "timm/vit_tiny_patch16_224"])
def test_blocks_that_are_computed_again_give_the_same_gradients(name: str) -> None:
    config = dataclasses.replace(TINY, name=name, drop_path=0.3 if name == "vit_tiny" else 0.0, dropout=0.2)
    if name != "vit_tiny":
        config = ModelConfig(
            name=name, args={"depth": 2, "embed_dim": 48, "num_heads": 2, "patch_size": 4}, dropout=0.2
        )
    gradients = []
    for again in (False, True):
        model = build(config, channels=3).train()
        if again:
            checkpoint_blocks(model)
        torch.manual_seed(3)
        inputs = [torch.randn(4, 3, 8, 8)] + ([torch.rand(4, 2, 2)] if name == "vit_tiny" else [])
        model(*inputs).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)
    assert sum(grad is not None for grad in gradients[1]) > 20


def test_a_model_without_blocks_cannot_compute_them_again() -> None:
    with pytest.raises(UserError, match=r"^model\.checkpoint_blocks: this model cannot: set it false$"):
        checkpoint_blocks(nn.Linear(2, 2))

"""A model of two towers: its embeddings, draws, sizes, initial weights, and towers that do not fit."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vit_dist.config.fields import ModelConfig
from vit_dist.config.text_fields import TextConfig
from vit_dist.errors import UserError
from vit_dist.models.build import drop_path_depth
from vit_dist.models.compile import blocks_of
from vit_dist.models.forward import forward_flops
from vit_dist.models.two_tower import TwoTower, build_two_tower

IMAGE = ModelConfig(patch_size=4, width=16, depth=2, heads=2)
TEXT = TextConfig(width=12, depth=3, heads=2, context_length=5, embed_dim=8)
TOKENS = torch.tensor([[3, 4, 9, 0, 0], [3, 7, 7, 9, 0]])


def build(image: ModelConfig = IMAGE, loss: str = "clip", seed: int = 0, side: int = 8, **text: Any) -> TwoTower:
    return build_two_tower(
        image, dataclasses.replace(TEXT, **text), loss, vocabulary_size=10, channels=1, image_size=side, seed=seed
    )


@pytest.mark.parametrize("name", ["vit_tiny", "timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_embeddings_have_unit_length_and_depend_on_the_seed(name: str) -> None:
    args = {"depth": 1} if "patch16" in name else {"depths": (1, 1, 1, 1)} if "convnext" in name else {}
    config, side = (IMAGE, 8) if name == "vit_tiny" else (ModelConfig(name=name, args=args), 32)
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    model, again, other = build(config, side=side), build(config, side=side), build(config, side=side, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    model.eval(), again.eval(), other.eval()
    image, text = model(images, TOKENS)
    for embedding in (image, text):
        assert embedding.shape == (2, 8)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
        assert abs(embedding[0] @ embedding[1]) < 1  # not all alike
    assert torch.equal(image, model.encode_image(images))
    assert torch.equal(text, model.encode_text(TOKENS))
    for mine, same, different in zip(model(images, TOKENS), again(images, TOKENS), other(images, TOKENS), strict=True):
        assert torch.equal(mine, same)
        assert not torch.allclose(mine, different)
    assert model(images, None)[1] is None
    assert model(None, TOKENS)[0] is None


def test_half_precision_is_left_before_the_length_is_taken() -> None:
    model = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model(torch.randn(2, 1, 8, 8), TOKENS)
    for embedding in (image, text):
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2), rtol=1e-6, atol=0)
    assert model.double()(torch.randn(2, 1, 8, 8).double(), TOKENS)[0].dtype == torch.float64


def test_each_tower_takes_its_own_draws() -> None:
    both = build(dataclasses.replace(IMAGE, drop_path=0.5), drop_path=0.5)
    texts = build(drop_path=0.5)
    assert [drop_path_depth(build()), drop_path_depth(texts), drop_path_depth(both)] == [0, 3, 5]
    draws, images = torch.ones(2, 5, 2), torch.randn(2, 1, 8, 8)
    draws[0, 1], draws[1, 4] = 0, 0  # the last block of the image tower, and of the text tower
    image, text = both(images, TOKENS, draws)
    kept = both(images, TOKENS, torch.ones(2, 5, 2))
    assert [torch.equal(image[i], kept[0][i]) for i in range(2)] == [False, True]
    assert [torch.equal(text[i], kept[1][i]) for i in range(2)] == [True, False]
    assert torch.equal(text, both.encode_text(TOKENS, draws[:, 2:]))
    assert torch.equal(image, both.encode_image(images, draws[:, :2]))
    same = build(seed=0)
    torch.testing.assert_close(texts(images, TOKENS, draws[:, 2:])[0], same(images, TOKENS)[0])


def test_the_projection_starts_as_clips_whatever_the_classifier_did() -> None:
    for config in (IMAGE, dataclasses.replace(IMAGE, init="jax"), dataclasses.replace(IMAGE, width=256, heads=4)):
        head = build(config, embed_dim=64).image.head
        assert isinstance(head, nn.Linear)
        assert head.weight.std().item() == pytest.approx(head.in_features**-0.5, rel=0.1)
        assert not head.bias.any()


@pytest.mark.parametrize(("loss", "scale", "bias"), [("clip", 1 / 0.07, None), ("siglip", 10, -10)])
def test_scale_and_bias_start_as_published(loss: str, scale: float, bias: float | None) -> None:
    model = build(loss=loss)
    torch.testing.assert_close(model.logit_scale.item(), math.log(scale), rtol=1e-6, atol=0)
    assert (None if model.logit_bias is None else model.logit_bias.item()) == bias
    assert ("logit_bias" in model.state_dict()) is (loss == "siglip")


def test_flops_and_blocks_are_those_of_both_towers() -> None:
    model = build()
    image = forward_flops(model.image, channels=1, image_size=8)
    width, tokens, depth = 12, 5, 3
    text = depth * (2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width) + 2 * width * 8
    assert forward_flops(model, channels=1, image_size=8) == image + text
    assert blocks_of(model) == [*model.image.blocks, *model.text.blocks]  # type: ignore[misc]


def test_an_image_tower_without_a_projection_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "towers_of_mine.py").write_text(
        "from torch import nn\n\n"
        "def features(classes, channels, image_size):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24))\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "towers_of_mine", raising=False)
    with pytest.raises(UserError) as error:
        build(ModelConfig(name="towers_of_mine:features"))
    assert str(error.value) == (
        "model.name: gives outputs of shape [1, 24] for one image: an image tower ends with a projection, and is built "
        "with classes=8, which is text.embed_dim"
    )

"""Drop paths of timm's models by key: the values by hand, any split of a batch, and models that cannot have them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vit_dist.config.fields import ModelConfig
from vit_dist.models.build import build_model, drop_path_depth
from vit_dist.models.keyed_drop_path import KeyedDropPath, key_drop_paths
from vit_dist.models.vit import ViT

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 2, "patch_size": 8}


def built(drop_path: float) -> nn.Module:
    config = ModelConfig(name="timm/vit_tiny_patch16_224", args=SMALL, drop_path=drop_path)
    return build_model(config, classes=5, channels=3, image_size=16, seed=0)


def test_a_model_of_timms_drops_what_ours_drops() -> None:
    theirs = built(0.5).train()
    assert drop_path_depth(theirs) == 2  # of the first block, the rate is 0
    ours = ViT(image_size=16, patch_size=8, channels=3, classes=5, width=48, depth=3, heads=2, drop_path=0.5).train()
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    images, draws = torch.randn(6, 3, 16, 16, generator=generator), torch.rand(6, 3, 2, generator=generator)
    torch.testing.assert_close(theirs(images, draws[:, 1:]), ours(images, draws), rtol=1e-4, atol=1e-5)
    parts = [theirs(images[part], draws[part, 1:]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    torch.testing.assert_close(torch.cat(parts), theirs(images, draws[:, 1:]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs(images, 1 - draws[:, 1:]), ours(images, draws), rtol=0.1)


def test_without_draws_it_draws_and_in_evaluation_nothing_is_dropped() -> None:
    model, plain = built(0.5), built(0.0)
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert drop_path_depth(plain) == 0
    with torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), plain.eval()(images))


class Folded(nn.Module):
    """Folds two halves of each image into the batch before its drop path."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_path = timm.layers.DropPath(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves: torch.Tensor = self.drop_path(torch.cat(images.chunk(2, dim=2)))
        return halves.flatten(1)


def test_a_model_whose_rows_are_not_the_batchs_keeps_timms() -> None:
    model = Folded()
    key_drop_paths(model, (3, 8, 8))
    assert isinstance(model.drop_path, timm.layers.DropPath)
    assert drop_path_depth(model) == 0
    assert model(torch.zeros(2, 3, 8, 8)).shape == (4, 96)
    with pytest.raises(TypeError):
        model(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 2))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "deit3_small_patch16_224"])
def test_other_families_take_draws(name: str) -> None:
    sizes = {} if name.startswith("convnext") else {"img_size": 56 if name.startswith("swin") else 32}
    model = timm.create_model(name, drop_path_rate=0.3, num_classes=4, **sizes)
    side = next(iter(sizes.values()), 32)
    key_drop_paths(model, (3, side, side))
    keyed = [module for module in model.modules() if isinstance(module, KeyedDropPath)]
    assert len(keyed) > 8
    assert not any(isinstance(module, timm.layers.DropPath) and module.drop_prob for module in model.modules())
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    kept, dropped = (torch.full((2, drop_path_depth(model), 2), value) for value in (1.0, 0.0))
    with torch.no_grad():
        assert torch.equal(model(images, kept), model(images, kept))
        assert not torch.allclose(model(images, kept), model(images, dropped))

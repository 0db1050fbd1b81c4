"""Blocks that are compiled: one graph for all, the same numbers and the same names."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from vit_dist.config.fields import ModelConfig
from vit_dist.errors import UserError
from vit_dist.models.build import build_model, drop_path_depth
from vit_dist.models.compile import blocks_of, compile_blocks, graphs, is_compiled, run_eagerly
from vit_dist.models.vit import ViT


def model(depth: int, drop_path: float = 0.0, dropout: float = 0.0) -> ViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ViT(
            image_size=16, patch_size=8, channels=3, classes=5, width=32, depth=depth, heads=2, drop_path=drop_path,
            dropout=dropout,
        )  # fmt: skip


def gradients(model: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    model(*inputs).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("depth", [12, 24])
def test_all_blocks_share_a_graph_and_give_the_gradients_of_those_that_are_not_compiled(depth: int) -> None:
    torch._dynamo.reset()
    eager = model(depth, drop_path=0.2, dropout=0.1)
    compiled = copy.deepcopy(eager)
    before = graphs()
    compile_blocks(compiled)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(4, 3, 16, 16, generator=generator), torch.rand(4, depth, 2, generator=generator)]
    for actual, expected in zip(gradients(compiled, inputs), gradients(eager, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert graphs() - before == 1
    assert list(compiled.state_dict()) == list(eager.state_dict())
    run_eagerly(compiled)
    assert all(torch.equal(a, b) for a, b in zip(gradients(compiled, inputs), gradients(eager, inputs), strict=True))


@pytest.mark.parametrize(("name", "graphs_expected"), [("vit_tiny_patch16_224", 2), ("deit3_small_patch16_224", 2)])
def test_timms_blocks_share_a_graph_with_drop_paths(name: str, graphs_expected: int) -> None:
    """Two graphs: the first block's rate is 0, which timm builds without drop paths."""
    torch._dynamo.reset()
    config = ModelConfig(name=f"timm/{name}", drop_path=0.2, args={"depth": 12, "embed_dim": 24, "num_heads": 2})
    eager = build_model(config, classes=5, channels=3, image_size=16, seed=0)
    compiled = build_model(config, classes=5, channels=3, image_size=16, seed=0)
    before = graphs()
    compile_blocks(compiled)
    assert is_compiled(compiled)
    assert not is_compiled(eager)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):  # the draws differ, the graphs do not
        draws = torch.rand(4, drop_path_depth(eager), 2, generator=generator)
        inputs = [torch.randn(4, 3, 16, 16, generator=generator), draws]
        for actual, expected in zip(gradients(compiled, inputs), gradients(eager, inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert graphs() - before == graphs_expected


def test_models_whose_blocks_would_not_share_a_graph_are_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.compile: blocks needs a model whose \.blocks are all of one kind"):
        blocks_of(nn.Linear(2, 2))
    name = "vit_tiny_patch16_224"
    assert len(blocks_of(timm.create_model(name, depth=3))) == 3
    with pytest.raises(UserError, match=r"^train\.compile: this model's drop path has a rate of its own in each block"):
        blocks_of(timm.create_model(name, depth=3, drop_path_rate=0.1))

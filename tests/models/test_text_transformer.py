"""The text tower: what its tokens see, how it pools, its sizes and initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_dist.config.text_fields import TEXT_PRESETS
from vit_dist.models.build import checkpoint_blocks, drop_path_depth
from vit_dist.models.text_transformer import TextTransformer

# Three texts, ends included, of a row of 6; a 0 inside a text is a token, as CLIP's "!" is.
TOKENS = torch.tensor([[5, 3, 9, 0, 0, 0], [7, 0, 4, 2, 9, 0], [1, 2, 3, 4, 5, 9]])
LENGTHS = (3, 5, 6)


def tower(**more: Any) -> TextTransformer:
    sizes = {"vocabulary_size": 12, "context_length": 6, "outputs": 7, "width": 8, "depth": 3, "heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextTransformer(**{**sizes, **more}).double().eval()


def alone(model: TextTransformer, tokens: Tensor) -> Tensor:
    """Return the output for a text without padding, from the parts of the tower."""
    x = model.token_embed(tokens) + model.pos_embed[: len(tokens)]
    for block in model.blocks:
        normed = block.norm1(x)
        q, k, v = block.attn.qkv(normed).view(len(tokens), 3, 2, 4).permute(1, 2, 0, 3)
        seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        scores = (q @ k.transpose(1, 2) / 2).masked_fill(~(seen.tril() if model.causal else seen), -torch.inf)
        x = x + block.attn.proj((scores.softmax(2) @ v).transpose(0, 1).reshape(len(tokens), 8))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    x = F.layer_norm(x, (8,), eps=1e-5)
    output: Tensor = model.head(x[-1] if model.pool == "end" else x.mean(0))
    return output


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["end", "mean"])
def test_a_text_gives_the_same_with_and_without_padding(causal: bool, pool: str) -> None:
    model = tower(causal=causal, pool=pool)
    outputs = model(TOKENS)
    for row, length, output in zip(TOKENS, LENGTHS, outputs, strict=True):
        torch.testing.assert_close(output, alone(model, row[:length]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(TOKENS[:, :5])[:2], outputs[:2], rtol=1e-12, atol=1e-12)
    if pool == "mean":  # what tokens see decides it; of the end token alone they see all in any case
        assert not torch.allclose(outputs, tower(causal=not causal, pool=pool)(TOKENS))


def test_drop_paths_follow_the_draws_and_kept_branches_are_scaled() -> None:
    model, plain = tower(drop_path=0.5), tower()
    assert model.drop_path_rates == [0, 0.25, 0.5]
    assert (drop_path_depth(model), drop_path_depth(plain)) == (3, 0)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    draws = torch.ones(3, 3, 2)
    draws[1, 2] = 0.4
    dropped = model(TOKENS, draws)
    for block in plain.blocks[1:]:
        block.attn.proj.weight.data /= 0.75 if block is plain.blocks[1] else 0.5
        block.mlp.fc2.weight.data /= 0.75 if block is plain.blocks[1] else 0.5
    torch.testing.assert_close(dropped[[0, 2]], plain(TOKENS)[[0, 2]], rtol=1e-6, atol=1e-6)
    for part in (plain.blocks[2].attn.proj, plain.blocks[2].mlp.fc2):
        part.weight.data.zero_()
    torch.testing.assert_close(dropped[1], plain(TOKENS)[1], rtol=1e-6, atol=1e-6)


def test_checkpointed_blocks_give_the_same_gradients_with_dropout_too() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = tower(causal=False, dropout=0.3, drop_path=0.5).train()
        if checkpointed:
            checkpoint_blocks(model)
        torch.manual_seed(1)
        model(TOKENS, torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(2))).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_initial_weights_are_clips() -> None:
    model = TextTransformer(vocabulary_size=4000, context_length=77, outputs=96, width=192, depth=4, heads=3)
    block = model.blocks[2]
    expected = {
        model.token_embed.weight: 0.02,
        model.pos_embed: 0.01,
        block.attn.qkv.weight: 192**-0.5,
        block.attn.proj.weight: (2 * 192 * 4) ** -0.5,
        block.mlp.fc1.weight: (2 * 192) ** -0.5,
        block.mlp.fc2.weight: (2 * 192 * 4) ** -0.5,
        model.head.weight: 192**-0.5,
    }
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


# 40.44, 63.43 and 123.65 million, as open_clip lists the text towers of ViT-S, B and L (49,408 tokens, 77 places).
@pytest.mark.parametrize(
    ("name", "embed_dim", "parameters"),
    [("text_small", 384, 40_444_032), ("text_base", 512, 63_428_096), ("text_large", 768, 123_650_304)],
)
def test_sizes_are_the_published_ones(name: str, embed_dim: int, parameters: int) -> None:
    with torch.device("meta"):
        model = TextTransformer(vocabulary_size=49408, context_length=77, outputs=embed_dim, **TEXT_PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters

"""The transformer's blocks in pure torch, for images and for texts, and keyed drop paths over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def rising(drop_path: float, depth: int) -> list[float]:
    """Return the drop-path rate of each block: `drop_path` for the last, rising linearly from 0 at the first."""
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


def rate_tensor(rates: list[float]) -> Tensor | None:
    """Return rates and what is not dropped, [2, depth, 1]; None if nothing is dropped.

    A tensor, as all that differs between blocks: compiled, they share one graph.
    """
    return torch.tensor([rates, [1 - rate for rate in rates]])[..., None] if any(rates) else None


def branch_scales(draws: Tensor | None, rates: Tensor | None) -> Tensor | None:
    """Return what branches are multiplied by, [depth, 2, batch, 1, 1]: 0 if a sample's draw is below the block's rate.

    draws: in 0..1, [batch, depth, 2]. rates: of `rate_tensor`. None, for 1, if either is.
    """
    if draws is None or rates is None:
        return None
    scales = (draws >= rates[0]).to(rates.dtype) / rates[1]
    return scales.permute(1, 2, 0).contiguous()[..., None, None]  # a branch's lie together: half the time of strides


def run_blocks(
    blocks: nn.ModuleList, x: Tensor, scales: Tensor | None, mask: Tensor | None = None, *, checkpointed: bool
) -> Tensor:
    """Return x [batch, tokens, width] after all blocks.

    scales: of `branch_scales`. mask: of the tokens that may be seen. checkpointed: keep only the blocks' inputs for
    the backward pass.
    """
    for i, block in enumerate(blocks):
        inputs = (x, None if scales is None else scales[i], *([] if mask is None else [mask]))
        if checkpointed and torch.is_grad_enabled():
            x = checkpoint(block, *inputs, use_reentrant=False)
        else:
            x = block(*inputs)
    return x


class Norm(nn.LayerNorm):
    """LayerNorm that keeps the type of its input, which autocast would widen to float32 on a GPU.

    Its statistics are float32 all the same. Input of the weights' own type is normed as by LayerNorm.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class LayerScale(nn.Module):
    """Multiplication by a learned value per channel (Touvron et al., "CaiT", 2021)."""

    def __init__(self, width: int, first: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), first))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), each branch of a sample times its scale."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        dropout: float,
        attention_dropout: float,
        layer_scale: float,
        qk_norm: bool,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = Norm(width, eps=eps)
        self.attn = Attention(width, heads, dropout, attention_dropout, eps if qk_norm else None, causal)
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = Norm(width, eps=eps)
        self.mlp = MLP(width, hidden, dropout)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x: Tensor, scales: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: [batch, tokens, width]; scales: of the branches, [2, batch, 1, 1]; None for 1. mask: as in `Attention`."""
        # The sum keeps the type of x: a branch that a float32 scale has widened is rounded once, after it is added.
        x = (x + _scaled(self.ls1(self.attn(self.norm1(x), mask)), scales, 0)).to(x.dtype)
        return (x + _scaled(self.ls2(self.mlp(self.norm2(x))), scales, 1)).to(x.dtype)


def _scaled(x: Tensor, scales: Tensor | None, branch: int) -> Tensor:
    return x if scales is None else x * scales[branch].to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width]."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        norm_eps: float | None,
        causal: bool = False,
    ) -> None:
        """norm_eps: epsilon of the norms of queries and keys; None for none. causal: no token sees those after it."""
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (
            nn.Identity() if norm_eps is None else nn.LayerNorm(width // heads, eps=norm_eps) for _ in range(2)
        )
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: True where a token may be seen, [batch, 1, 1, tokens], or None for all; not with causal."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        rate = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=self.causal)
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        projected: Tensor = self.proj_drop(self.proj(x))
        return projected


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out

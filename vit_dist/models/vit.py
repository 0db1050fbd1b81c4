"""The Vision Transformer in pure torch; it knows nothing of data, devices or distribution.

Parameters carry timm's names, so timm's weights load here, and ours in timm, with `load_state_dict`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRESETS = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
}


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021), pre-norm.

    image_size, patch_size: sides in pixels, the second divides the first. width is divisible by heads,
    and by 4 with position="sincos". pool: "token" (class token) or "mean" (of the patches, no token).
    dropout acts on positions, attention's projection and MLP; attention_dropout on attention's weights;
    drop_path is the rate of the last block, rising linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        classes: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        pool: str = "token",
        position: str = "learned",
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.drop_path_rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.patch_embed = PatchEmbed(patch_size, channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if pool == "token" else None
        tokens = self.grid**2 + (pool == "token")
        if position == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        else:
            self.register_buffer("pos_embed", sincos(self.grid, width, class_token=pool == "token"), persistent=False)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, int(width * mlp_ratio), norm_eps, dropout, attention_dropout, rate)
            for rate in self.drop_path_rates
        )
        # timm puts the last norm before the class token is read, but behind the mean of the patches.
        self.norm = nn.LayerNorm(width, eps=norm_eps) if pool == "token" else nn.Identity()
        self.fc_norm = nn.LayerNorm(width, eps=norm_eps) if pool == "mean" else nn.Identity()
        self.head = nn.Linear(width, classes)
        self.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers, from the input on, by timm's convention: what layer-wise rates go by."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def reset_parameters(self) -> None:
        """Truncated normal 0.02 linears, zero biases, Kaiming patch projection, normal 0.02 positions and token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        for parameter in (self.cls_token, self.pos_embed):
            if isinstance(parameter, nn.Parameter):
                nn.init.normal_(parameter, std=0.02)

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, image_size, image_size].

        drop_path: draws in 0..1, [batch, depth, 2], one for each sample and residual branch; without it
        nothing is dropped.
        """
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.pos_drop(x + self.pos_embed)
        for i, block in enumerate(self.blocks):
            x = block(x, None if drop_path is None else drop_path[:, i])
        x = self.norm(x)
        x = x[:, 0] if self.cls_token is not None else x.mean(dim=1)
        logits: Tensor = self.head(self.fc_norm(x))
        return logits


class PatchEmbed(nn.Module):
    """Images [batch, channels, side, side] → tokens [batch, patches, width], row by row."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        p = self.proj.kernel_size[0]
        # The convolution as a product of matrices: patches do not overlap.
        patches = images.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, (height // p) * (width // p), channels * p * p)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); a sample's branch is dropped where its draw is below `rate`."""

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, dropout: float, attention_dropout: float, rate: float
    ) -> None:
        super().__init__()
        self.rate = rate
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, dropout, attention_dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, dropout)

    def forward(self, x: Tensor, draws: Tensor | None) -> Tensor:
        """x: [batch, tokens, width]; draws: [batch, 2] in 0..1, or None."""
        x = x + self._kept(self.attn(self.norm1(x)), draws, 0)
        return x + self._kept(self.mlp(self.norm2(x)), draws, 1)

    def _kept(self, x: Tensor, draws: Tensor | None, branch: int) -> Tensor:
        if draws is None or self.rate == 0:
            return x
        keep = (draws[:, branch] >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * keep[:, None, None]


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width]."""

    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).reshape(batch, tokens, width)
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


def sincos(grid: int, width: int, *, class_token: bool) -> Tensor:
    """Fixed two-dimensional positions [1, tokens, width] (Chen et al., "MoCo v3", 2021); the class token's is 0."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = wave[:, None].expand(grid, grid, -1)
    columns = wave[None].expand(grid, grid, -1)
    positions = torch.cat([columns, rows], dim=2).reshape(1, grid * grid, width)
    if class_token:
        positions = torch.cat([torch.zeros(1, 1, width, dtype=positions.dtype), positions], dim=1)
    return positions.float()

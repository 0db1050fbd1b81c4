"""The Vision Transformer in pure torch; it knows nothing of data, devices or distribution.

Parameters carry timm's names, so timm's weights load here, and ours in timm, with `load_state_dict`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit_dist.models.blocks import Block, Norm, branch_scales, rate_tensor, rising, run_blocks
from vit_dist.models.positions import resampled, sincos
from vit_dist.models.residual import in_bf16

PRESETS = {
    "vit_tiny": {"width": 192, "depth": 12, "heads": 3},
    "vit_small": {"width": 384, "depth": 12, "heads": 6},
    "vit_base": {"width": 768, "depth": 12, "heads": 12},
    "vit_large": {"width": 1024, "depth": 24, "heads": 16},
    "vit_huge": {"width": 1280, "depth": 32, "heads": 16},
}


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021), pre-norm.

    image_size, patch_size: sides in pixels. patch_stride (default: patch_size) divides image_size; if it is less than
    patch_size, patches overlap and the border is padded. width is divisible by heads, and by 4 with
    position="sincos". pool: "token" (class token) or "mean" (over the patches, without a class token); with "mean" the
    last norm follows the pooling, or precedes it without fc_norm. pre_logits: a linear layer and tanh before the head.
    registers: extra tokens that nothing reads (Darcet et al., 2024). layer_scale: initial value of each branch's
    learned scale (Touvron et al., "CaiT", 2021), 0 for none. qk_norm: LayerNorm of queries and keys (Dehghani et al.,
    2023). dropout applies to positions, attention's projection and MLP; attention_dropout to attention's weights;
    drop_path is the rate of the last block, rising linearly from 0 at the first. init: see `reset_parameters`.
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
        fc_norm: bool = True,
        pre_logits: bool = False,
        patch_stride: int | None = None,
        registers: int = 0,
        layer_scale: float = 0.0,
        qk_norm: bool = False,
        init: str = "timm",
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = False  # whether only the blocks' inputs are kept for the backward pass
        self.bf16_residual = False  # whether blocks hand bfloat16 to each other under bf16 autocast, not float32
        self._rates: Tensor | None
        stride = patch_stride or patch_size
        self.grid = image_size // stride
        self.prefix = (pool == "token") + registers
        self.drop_path_rates = rising(drop_path, depth)
        self.register_buffer("_rates", rate_tensor(self.drop_path_rates), persistent=False)
        self.patch_embed = PatchEmbed(patch_size, stride, channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if pool == "token" else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        if position == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2 + self.prefix, width))
        else:
            self.register_buffer("pos_embed", sincos(self.grid, width, prefix=self.prefix), persistent=False)
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, int(width * mlp_ratio), norm_eps, dropout, attention_dropout, layer_scale, qk_norm)
            for _ in range(depth)
        )
        # timm puts the last norm before the class token is read, but after the mean over the patches.
        after_pool = pool == "mean" and fc_norm
        self.norm = nn.Identity() if after_pool else Norm(width, eps=norm_eps)
        self.fc_norm = Norm(width, eps=norm_eps) if after_pool else nn.Identity()
        self.pre_logits = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if pre_logits else nn.Identity()
        self.head = nn.Linear(width, classes)
        self.init = init
        self.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers from the input on, by timm's convention; layer-wise learning rates use them."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def reset_parameters(self) -> None:
        """Initialize the weights; biases are 0 unless stated otherwise.

        timm: linears truncated normal 0.02, patch projection Kaiming, tokens and positions normal 0.02.
        jax (big_vision): linears Xavier uniform, MLP biases normal 1e-6, patch projection LeCun normal, tokens 0,
        positions normal 1/√width, head 0.
        """
        jax = self.init == "jax"
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if jax:
                    # In big_vision queries, keys and values are three matrices, each with its own fan-out.
                    for part in module.weight.data.chunk(3 if name.endswith("qkv") else 1):
                        nn.init.xavier_uniform_(part)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if jax and ".mlp." in name:
                    nn.init.normal_(module.bias, std=1e-6)
                else:
                    nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        if jax:
            # jax scales truncated normals to keep their standard deviation: 0.8796 is that of one cut at two sigma.
            spread = projection.weight[0].numel() ** -0.5 / 0.87962566103423978
            nn.init.trunc_normal_(projection.weight, std=spread, a=-2 * spread, b=2 * spread)
            nn.init.zeros_(self.head.weight)
        else:
            nn.init.kaiming_normal_(projection.weight)
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        for parameter in (self.cls_token, self.reg_token):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.0 if jax else 0.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=self.pos_embed.shape[2] ** -0.5 if jax else 0.02)

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Return logits [batch, classes] of images [batch, channels, side, side].

        For a side other than image_size, positions are resampled. drop_path: draws in 0..1, [batch, depth, 2], one
        for each sample and residual branch; without it nothing is dropped.
        """
        return self.forward_head(self.forward_features(images, drop_path))

    def forward_features(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Return the last block's tokens [batch, tokens, width], normed, as timm's models do; see `forward`."""
        x = self.patch_embed(images)
        for token in (self.reg_token, self.cls_token):
            if token is not None:
                x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)
        x = self.pos_drop(x + resampled(self.pos_embed, self.prefix, self.grid, x.shape[1]))
        if self.bf16_residual:
            x = in_bf16(x)
        x = run_blocks(self.blocks, x, branch_scales(drop_path, self._rates), checkpointed=self.checkpoint_blocks)
        tokens: Tensor = self.norm(x)
        return tokens

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [batch, classes] of tokens; pre_logits: what the head reads, [batch, width], instead."""
        x = tokens[:, 0] if self.cls_token is not None else tokens[:, self.prefix :].mean(dim=1)
        features: Tensor = self.pre_logits(self.fc_norm(x))
        logits: Tensor = features if pre_logits else self.head(features)
        return logits


class PatchEmbed(nn.Module):
    """Images [batch, channels, side, side] → tokens [batch, (side / stride)², width], row by row."""

    def __init__(self, patch_size: int, stride: int, channels: int, width: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(channels, width, patch_size, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        # The convolution as a matrix product.
        batch, channels, height, width = images.shape
        p, stride = self.proj.kernel_size[0], self.stride
        if p == stride:
            patches = images.reshape(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
            patches = patches.reshape(batch, (height // p) * (width // p), channels * p * p)
        else:
            before = (p - stride) // 2
            padded = F.pad(images, [before, p - stride - before] * 2)
            patches = F.unfold(padded, p, stride=stride).transpose(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

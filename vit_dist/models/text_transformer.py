"""The text tower in pure torch: tokens → features, as CLIP's text transformer has them, or bidirectional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.models.blocks import Block, branch_scales, rate_tensor, rising, run_blocks

_EPS = 1e-5  # of the norms, as in CLIP


class TextTransformer(nn.Module):
    """Pre-norm transformer over tokens (Radford et al., "CLIP", 2021), its width divisible by heads.

    vocabulary_size: number of tokens, of which 0 is padding. context_length: of the captions. outputs: size of the
    projection. causal: each token sees those before it; else all of its caption but padding. pool: "end" (the last
    token that is not padding) or "mean" (of all that are not). dropout applies to positions, attention's projection and
    MLP; drop_path is the rate of the last block, rising linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        context_length: int,
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        causal: bool = True,
        pool: str = "end",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = False  # whether only the blocks' inputs are kept for the backward pass
        self.causal, self.pool, self.context_length = causal, pool, context_length
        self._rates: Tensor | None
        self.drop_path_rates = rising(drop_path, depth)
        self.register_buffer("_rates", rate_tensor(self.drop_path_rates), persistent=False)
        self.token_embed = nn.Embedding(vocabulary_size, width)
        self.pos_embed = nn.Parameter(torch.empty(context_length, width))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, 4 * width, _EPS, dropout, 0.0, 0.0, False, causal) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, outputs, bias=False)
        self.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers from the input on, by timm's convention; layer-wise learning rates use them."""
        return {"stem": r"^token_embed|pos_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def reset_parameters(self) -> None:
        """Initialize the weights as CLIP does: normal, narrower with width and depth; biases 0."""
        depth, width = len(self.blocks), self.pos_embed.shape[1]
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.head.weight, std=width**-0.5)
        stds = {"qkv": width**-0.5, "proj": (2 * width * depth) ** -0.5, "fc1": (2 * width) ** -0.5}
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds.get(name.rsplit(".", 1)[-1], stds["proj"]))
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Return the projection [batch, outputs] of tokens [batch, context_length], int64, padded with 0.

        drop_path: draws in 0..1, [batch, depth, 2], one for each text and residual branch; without it nothing is
        dropped.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        last = (places * (tokens != 0)).amax(1)
        real = places <= last[:, None]
        x = self.pos_drop(self.token_embed(tokens) + self.pos_embed[: tokens.shape[1]])
        mask = None if self.causal else real[:, None, None]  # padding comes after all that a causal token sees
        x = self.norm(
            run_blocks(self.blocks, x, branch_scales(drop_path, self._rates), mask, checkpointed=self.checkpoint_blocks)
        )
        if self.pool == "end":
            pooled = x[torch.arange(len(x), device=x.device), last]
        else:
            pooled = (x * real[..., None]).sum(1) / (last[:, None] + 1)
        features: Tensor = self.head(pooled)
        return features

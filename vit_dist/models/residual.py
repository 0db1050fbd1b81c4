"""The residual stream in bfloat16 under autocast: half the bytes between blocks, and of what their norms keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.errors import UserError
from vit_dist.models.blocks import Norm

_REFUSED = "model.residual: bf16 is for our ViT and timm's plain ones, and this is another model: set fp32"


def in_bf16(x: Tensor) -> Tensor:
    """Return tokens in bfloat16 if bf16 autocast is on, else as they are."""
    kind = x.device.type
    on = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return x.to(torch.bfloat16) if on else x


def timm_bf16_residual(model: nn.Module) -> None:
    """Let the blocks of timm's VisionTransformer hand bfloat16 to each other under bf16 autocast, as ours can.

    Names of parameters stay. Raises UserError for other models, and those whose blocks are built otherwise.
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer) or any(type(block) is not Block for block in model.blocks):
        raise UserError(_REFUSED)
    norms = [(block, name) for block in model.blocks for name in ("norm1", "norm2")]
    for parent, name in [*norms, (model, "norm"), (model, "fc_norm")]:
        norm = getattr(parent, name)
        if isinstance(norm, nn.LayerNorm):
            setattr(parent, name, _keeping_type(norm))
        elif not isinstance(norm, nn.Identity):
            raise UserError(_REFUSED)
    for block in model.blocks:
        for name in ("ls1", "ls2"):
            getattr(block, name).register_forward_hook(_as_input)
    model.norm_pre.register_forward_hook(_narrowed)


def _keeping_type(norm: nn.LayerNorm) -> Norm:
    """Return a norm with the parameters of another one. Raises UserError if it has none."""
    if norm.weight is None or norm.bias is None:
        raise UserError(_REFUSED)
    same = Norm(norm.normalized_shape, eps=norm.eps)
    same.weight, same.bias = norm.weight, norm.bias
    return same.train(norm.training)


def _as_input(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Give a branch in bfloat16 back the type that a float32 scale has widened."""
    return output.to(torch.bfloat16) if inputs[0].dtype == torch.bfloat16 else output


def _narrowed(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return in_bf16(output)

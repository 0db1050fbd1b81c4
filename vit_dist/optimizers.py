"""Parameter groups and the optimizer over them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vit_dist.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer over `parameter_groups`. AdamW is torch's fused one, on CPU and GPU."""
    groups = parameter_groups(config, model)
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def parameter_groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, decayed and not: biases, norms, positions and tokens are not, unless `decay_all`."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (decayed if config.decay_all or is_decayed(name, parameter) else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay makes sense: for matrices and kernels, not for biases, norms, positions and tokens."""
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim >= 2 and "pos_embed" not in last and "token" not in last


def masks_its_step(optimizer: Optimizer) -> bool:
    """Whether the step leaves everything as it was where `optimizer.found_inf` is 1, without a wait for the device."""
    return isinstance(optimizer, AdamW) and bool(optimizer.defaults["fused"])

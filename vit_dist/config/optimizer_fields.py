"""The fields of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Union

from vit_dist.config.option import option


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its learning rate and its weight decay."""

    name: str = option("adamw", "adamw, adam, sgd, muon (AdamW for embeddings, biases, norms and the head), timm/NAME")
    lr: float = option(1e-3, "peak learning rate, before scaling by optimizer.scale", above=0)
    scale: Literal["none", "linear", "sqrt"] = option(
        "none", "scaling of lr with batch.global_size / scale_base: none, linear or square root"
    )
    scale_base: int = option(256, "global batch size that lr is meant for, unless scale is none", above=0)
    weight_decay: float = option(0.05, "weight decay; decoupled in adamw, muon and many of timm's", at_least=0)
    decay_all: bool = option(False, "decay all parameters; false: not biases, norms, position embeddings and tokens")
    layer_decay: float = option(
        1.0, "layer-wise learning rate decay: factor from each layer to the one before it; 1: none", above=0, at_most=1
    )
    overrides: dict[str, Any] = option(
        {}, "lr and weight_decay of the parameters whose name matches a regular expression, as {head: {lr: 1e-4}}"
    )
    betas: tuple[float, ...] = option(
        (), "betas; empty: the optimizer's defaults, (0.9, 0.999) for adamw", at_least=0, below=1
    )
    momentum: Union[float, None] = option(None, "momentum of sgd and muon; empty: 0.9 and 0.95", at_least=0, at_most=1)
    clip_norm: float = option(
        1.0, "gradient clipping: largest norm of an update's gradient; 0: no clipping", at_least=0
    )
    args: dict[str, Any] = option({}, "further keyword arguments of the optimizer, such as eps or nesterov")

"""Parameter groups and the optimizer over them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vit_dist.config.catalog import is_timm, timm_name
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.config.values import coerce
from vit_dist.errors import UserError, nearest, one_line
from vit_dist.sizing.towers import towers_of

_OWN_FIELDS = ("lr", "weight_decay", "betas", "momentum")
_NOT_TO_SET = ("params", "fused")


def peak_lr(config: OptimizerConfig, global_size: int) -> float:
    """Return the peak rate: lr, scaled by the size of the global batch or its root if set (Goyal et al., 2017)."""
    ratio = global_size / config.scale_base
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.scale]


def build_optimizer(config: OptimizerConfig, model: nn.Module, lr: float) -> Optimizer:
    """Build the optimizer over `parameter_groups` at peak rate `lr`; Adam and AdamW are torch's fused ones.

    Raises UserError for arguments that it does not take, and for state that a checkpoint cannot hold.
    """
    if is_timm(config.name):
        _probe(config)
    groups = parameter_groups(config, model)
    optimizer = _built(config, groups, lr, _hidden_matrices(model) if config.name == "muon" else set())
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    return optimizer


def parameter_groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Return groups of equal weight decay and `scale` (the rate's part of the peak), each with a readable `name`.

    Biases, norms, positions, tokens and the names in the model's no_weight_decay() are not decayed, unless
    `decay_all`; those in its never_decayed() are not in any case. layer_decay (Bao et al., "BEiT", 2022) uses the
    model's group_matcher(), as timm does.
    Raises UserError if a pattern of overrides matches nothing, or two match one parameter.
    """
    spared = set(getattr(model, "no_weight_decay", set)())
    never = set(getattr(model, "never_decayed", set)())
    scales = _layer_scales(config, model)
    groups: dict[str, dict[str, Any]] = {}
    matched = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = config.decay_all or (is_decayed(name, parameter) and not {name, name.rsplit(".", 1)[-1]} & spared)
        decay = config.weight_decay if decayed and name not in never else 0.0
        scale, layer = scales.get(name, (1.0, ""))
        title = f", {layer}" if layer else ""
        patterns = [pattern for pattern in config.overrides if re.search(pattern, name)]
        if len(patterns) > 1:
            raise UserError(f"optimizer.overrides: {name} matches {' and '.join(patterns)}: make one narrower")
        for pattern in patterns:
            matched.add(pattern)
            override = config.overrides[pattern]
            decay = coerce(override.get("weight_decay", decay), float)
            if "lr" in override:
                scale = coerce(override["lr"], float) / config.lr
            title += f", {pattern}"
        title = ("decayed" if decay else "not decayed") + title
        group = groups.setdefault(title, {"params": [], "weight_decay": decay, "scale": scale, "name": title})
        group["params"].append(parameter)
    if not groups:
        raise UserError("model: nothing in it is trained: every parameter is frozen")
    for pattern in config.overrides:
        if pattern not in matched:
            raise UserError(f"optimizer.overrides.{pattern}: matches no parameter; names are as in {name}")
    return list(groups.values())


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether to decay a parameter: matrices and kernels, but not biases, norms, positions and tokens."""
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim >= 2 and "pos_embed" not in last and "token" not in last


def masks_its_step(optimizer: Optimizer) -> bool:
    """Return whether a step changes nothing if `optimizer.found_inf` is 1, without a wait for the device."""
    return isinstance(optimizer, (Adam, AdamW)) and bool(optimizer.defaults["fused"])


class MuonAndAdamW(Optimizer):
    """torch's Muon (Jordan et al., 2024) on hidden matrices, AdamW on the rest, as one optimizer.

    Muon's steps are scaled to the size of AdamW's (Liu et al., "Muon is Scalable", 2025), so one rate serves both.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], muon: dict[str, Any], adamw: dict[str, Any]
    ) -> None:
        self._muon = torch.optim.Muon(matrices, **muon)
        self._adamw = AdamW(others, **adamw) if others else None
        self._matrices = len(self._muon.param_groups)
        super().__init__([*self._muon.param_groups, *(self._adamw.param_groups if self._adamw else [])], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both; their groups and state are this optimizer's own, also after a load."""
        for inner, groups in (
            (self._muon, self.param_groups[: self._matrices]),
            (self._adamw, self.param_groups[self._matrices :]),
        ):
            if inner is not None:
                inner.param_groups, inner.state = groups, self.state
                inner.step()  # type: ignore[no-untyped-call]


def _built(config: OptimizerConfig, groups: list[dict[str, Any]], lr: float, matrices: set[int]) -> Optimizer:
    """Build the named optimizer over groups. matrices: ids of the hidden matrices, for muon. Raises UserError."""
    name, args = config.name, config.args
    betas = {"betas": config.betas} if config.betas else {}
    momentum = {"momentum": config.momentum} if config.momentum is not None else {}
    classes: dict[str, Any] = {"adamw": AdamW, "adam": Adam, "sgd": SGD, "muon": torch.optim.Muon}
    _refuse_arguments(args, classes.get(name))
    hidden, others = _split(groups, matrices) if name == "muon" else ([], [])
    optimizer: Optimizer
    try:
        if name in ("adamw", "adam"):
            optimizer = classes[name](groups, lr=lr, fused=True, **betas, **args)
        elif name == "sgd":
            optimizer = SGD(groups, lr=lr, **{"momentum": 0.9, **momentum, **args})
        elif name == "muon":
            muon = {"adjust_lr_fn": "match_rms_adamw", **momentum, **args}
            optimizer = MuonAndAdamW(hidden, others, {"lr": lr, **muon}, {"lr": lr, **betas, "fused": True})
        else:
            from timm.optim import create_optimizer_v2

            optimizer = create_optimizer_v2(groups, timm_name(name), lr, **momentum, **betas, **args)
    except (TypeError, ValueError, IndexError, AssertionError, ImportError, RuntimeError) as error:
        raise UserError(f"optimizer.name: {name} cannot be built: {one_line(error)}") from None
    return optimizer


def _split(groups: list[dict[str, Any]], matrices: set[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split groups into those of the parameters in `matrices` and of all others. Raises UserError without any."""
    hidden, others = (
        [{**group, "params": [p for p in group["params"] if (id(p) in matrices) is wanted]} for group in groups]
        for wanted in (True, False)
    )
    hidden = [group for group in hidden if group["params"]]
    if not hidden:
        raise UserError("optimizer.name: muon finds no hidden matrix to train in this model: use adamw")
    return hidden, [group for group in others if group["params"]]


def _refuse_arguments(args: Mapping[str, Any], cls: type[Optimizer] | None) -> None:
    """Refuse arguments that have a field of their own or that the optimizer does not take. Raises UserError."""
    known = inspect.signature(cls).parameters if cls else ()
    takes = [name for name in known if name not in (*_OWN_FIELDS, *_NOT_TO_SET)]
    for name in args:
        if name in _OWN_FIELDS:
            raise UserError(f"optimizer.args.{name}: set optimizer.{name} instead")
        if name in _NOT_TO_SET:
            raise UserError(f"optimizer.args.{name}: is not to be set: leave it out")
        if cls and name not in takes:
            raise UserError(f"optimizer.args.{name}: {cls.__name__} takes no {name}{nearest(name, takes)}")


def _probe(config: OptimizerConfig) -> None:
    """Try two steps of timm's optimizer. Raises UserError if it fails or keeps state that no checkpoint holds."""
    from timm.optim import list_optimizers

    name, known = timm_name(config.name), list_optimizers()
    if name not in known:
        raise UserError(f"optimizer.name: timm has no optimizer {name}{nearest(name, known)}")
    with torch.random.fork_rng(devices=[]):
        parameters = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
        groups = [{"params": [parameter], "weight_decay": config.weight_decay} for parameter in parameters]
        optimizer = _built(config, groups, 1e-3, set())
        try:
            for _ in range(2):
                for parameter in parameters:
                    parameter.grad = torch.ones_like(parameter)
                optimizer.step()
        except Exception as error:  # of any kind: a step may need what an update does not have, such as a closure
            raise UserError(f"optimizer.name: {config.name} does not run here: {one_line(error)}") from None
    for owner, slots in optimizer.state.items():
        for slot, value in slots.items() if isinstance(owner, Tensor) else [(owner, {})]:
            if value is not None and not isinstance(value, (Tensor, int, float)):
                raise UserError(
                    f"optimizer.name: {config.name} keeps a {type(value).__name__} ({slot}) between steps, which no "
                    "checkpoint holds: a resume would not be exact; use another"
                )


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the weights of linear layers, except the last one and any called head…: they make logits.

    Of a model of two towers, those of each.
    """
    if towers := towers_of(model):
        return set().union(*(_hidden_matrices(tower) for tower in towers.values()))
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {id(module.weight) for name, module in linears[:-1] if not name.startswith("head")}


def _layer_scales(config: OptimizerConfig, model: nn.Module) -> dict[str, tuple[float, str]]:
    """Return (part of the peak rate, name of the layer) by parameter name; empty without layer_decay."""
    if config.layer_decay == 1:
        return {}
    if towers := towers_of(model):
        return {
            f"{prefix}.{name}": (scale, f"{prefix} {layer}")
            for prefix, tower in towers.items()
            for name, (scale, layer) in _layer_scales(config, tower).items()
        }
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError("optimizer.layer_decay: the model must say what its layers are, by timm's group_matcher()")
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: (config.layer_decay ** (last - layer), f"layer {layer}") for name, layer in layers.items()}

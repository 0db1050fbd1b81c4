"""Optimizers: who is decayed and at which rate, and the first steps against numpy, or against timm's own."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vit_dist.config.config import Config
from vit_dist.config.fields import ModelConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.errors import UserError
from vit_dist.models.build import build_model
from vit_dist.models.forward import parameter_count
from vit_dist.optim.optimizers import build_optimizer, is_decayed, masks_its_step, parameter_groups, peak_lr

DECAYED = {
    "patch_embed.proj.weight",
    *(f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head.weight",
}
KEPT = {
    "cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias", "head.bias",
    *(f"blocks.{i}.{name}.bias" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    *(f"blocks.{i}.{name}.{kind}" for i in range(2) for name in ("norm1", "norm2") for kind in ("weight", "bias")),
}  # fmt: skip

CLOSURE = "does not run here: element 0 of tensors does not require grad and does not have a grad_fn"
LIST = "keeps a list (Q) between steps, which no checkpoint holds: a resume would not be exact; use another"
# Of timm's, by how their names begin: what is said instead of building them, behind "optimizer.name: timm/NAME ".
REFUSED = {
    "adahessian": CLOSURE,
    "bnb": "cannot be built: CUDA required for bitsandbytes optimizers",
    "fused": "cannot be built: CUDA required for APEX optimizers",
    "kron": LIST,
}
ACCEPTED = [name for name in list_optimizers() if not name.startswith(tuple(REFUSED))]


def vit(**more: Any) -> nn.Module:
    config = ModelConfig(**{"patch_size": 4, "width": 16, "depth": 2, "heads": 2, **more})
    return build_model(config, classes=3, channels=1, image_size=8, seed=0)


def named(config: OptimizerConfig, model: nn.Module) -> list[tuple[float, set[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(config, model)
    return [(group["weight_decay"], {names[id(parameter)] for parameter in group["params"]}) for group in groups]


def by_name(groups: list[dict[str, Any]], model: nn.Module, *fields: str) -> dict[str, tuple[Any, ...]]:
    """Return the fields of the one group that each parameter is in."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    actual = [
        (names[id(parameter)], tuple(group[field] for field in fields))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(dict(actual)) == len(actual)
    return dict(actual)


def rates(config: OptimizerConfig, model: nn.Module, lr: float) -> dict[str, tuple[float, float]]:
    """Return (rate, weight decay) of each parameter, as the optimizer has them."""
    groups = build_optimizer(config, model, lr).param_groups
    return {name: (rate, decay) for name, (rate, decay) in by_name(groups, model, "lr", "weight_decay").items()}


def refusal(config: OptimizerConfig, model: nn.Module | None = None) -> str:
    with pytest.raises(UserError) as caught:
        build_optimizer(config, model or vit(), config.lr)
    return str(caught.value)


# Groups


def test_only_matrices_and_kernels_are_decayed() -> None:
    assert {name for name, _ in vit().named_parameters()} == DECAYED | KEPT
    assert named(OptimizerConfig(weight_decay=0.3), vit()) == [(0.0, KEPT), (0.3, DECAYED)]
    assert {name for name, parameter in vit().named_parameters() if is_decayed(name, parameter)} == DECAYED
    assert [group["name"] for group in parameter_groups(OptimizerConfig(), vit())] == ["not decayed", "decayed"]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon", "timm/lamb"])
def test_decay_all_decays_every_parameter(name: str) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.3, decay_all=True)
    assert named(config, vit()) == [(0.3, DECAYED | KEPT)]
    assert rates(config, vit(), 0.5) == dict.fromkeys(DECAYED | KEPT, (0.5, 0.3))


TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {"img_size": 32},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 2)},
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 2)},
    "test_convnext": {},
}
SPARED = {
    "test_vit": {"cls_token", "pos_embed"},
    "swin_tiny_patch4_window7_224": {"layers.1.blocks.1.attn.relative_position_bias_table"},
    "swinv2_tiny_window8_256": {"layers.1.blocks.1.attn.logit_scale", "layers.1.blocks.1.attn.cpb_mlp.0.weight"},
    "test_convnext": {"stages.1.blocks.0.gamma", "stem.1.weight"},
}


def timms(name: str) -> Any:
    arguments = {"num_heads": (1, 2)} if name.startswith("swin") else {}
    return timm.create_model(name, num_classes=3, **TIMM[name], **arguments)


def unlisted(model: Any) -> set[str]:
    """Return the names that a timm model excludes from weight decay."""
    return set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()


@pytest.mark.parametrize("name", list(TIMM))
def test_timm_models_have_the_decayed_parameters_of_timm(name: str) -> None:
    model = timms(name)
    actual = by_name(parameter_groups(OptimizerConfig(weight_decay=0.3), model), model, "weight_decay")
    timms_own = param_groups_weight_decay(model, 0.3, no_weight_decay_list=unlisted(model))
    assert actual == by_name(timms_own, model, "weight_decay")
    assert {actual[parameter] for parameter in SPARED[name]} == {(0.0,)}
    assert (0.3,) in actual.values()


def test_frozen_parameters_are_left_out() -> None:
    model = vit()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in ("head.weight", "head.bias")
    assert named(OptimizerConfig(), model) == [(0.05, {"head.weight"}), (0.0, {"head.bias"})]
    assert rates(OptimizerConfig(layer_decay=0.5), model, 0.8) == {"head.weight": (0.8, 0.05), "head.bias": (0.8, 0.0)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "head.bias"
    assert named(OptimizerConfig(), model) == [(0.0, {"head.bias"})]
    model.requires_grad_(False)
    assert refusal(OptimizerConfig(), model) == "model: nothing in it is trained: every parameter is frozen"


@pytest.mark.parametrize(
    ("scale", "base", "size", "peak"),
    [
        ("none", 256, 1024, 0.5),
        ("linear", 256, 1024, 2.0),
        ("linear", 512, 128, 0.125),
        ("sqrt", 256, 1024, 1.0),
        ("sqrt", 512, 128, 0.25),
        ("linear", 256, 256, 0.5),
    ],
)
def test_the_peak_rate_scales_with_the_global_batch(scale: Any, base: int, size: int, peak: float) -> None:
    assert peak_lr(OptimizerConfig(lr=0.5, scale=scale, scale_base=base), size) == peak


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_the_rate_of_each_layer_is_a_fixed_part_of_the_next_layers(pool: str) -> None:
    model = vit(pool=pool)
    actual = rates(OptimizerConfig(lr=7.0, weight_decay=0.3, layer_decay=0.5), model, 0.8)
    layers = {"blocks.0": 0.2, "blocks.1": 0.4, "norm": 0.4, "fc_norm": 0.8, "head": 0.8}
    for name, (rate, decay) in actual.items():
        layer = next((layer_name for layer_name in layers if name.startswith(f"{layer_name}.")), "stem")
        assert (rate, decay) == (layers.get(layer, 0.1), 0.3 if name in DECAYED else 0.0), name
    assert actual.keys() == {name for name, _ in model.named_parameters()}
    names = [group["name"] for group in parameter_groups(OptimizerConfig(layer_decay=0.5), model)]
    assert names == [f"{kind}, layer {i}" for i in range(3) for kind in ("not decayed", "decayed")] + (
        ["decayed, layer 3", "not decayed, layer 3"]
        if pool == "token"
        else ["not decayed, layer 3", "decayed, layer 3"]
    )


@pytest.mark.parametrize("name", ["ours", *TIMM])
def test_layer_wise_rates_equal_timms(name: str) -> None:
    model = vit(depth=3) if name == "ours" else timms(name)
    spared = {"cls_token", "pos_embed"} if name == "ours" else unlisted(model)
    timms_own = param_groups_layer_decay(model, 0.3, no_weight_decay_list=spared, layer_decay=0.7)
    expected = by_name(timms_own, model, "lr_scale", "weight_decay")
    actual = rates(OptimizerConfig(weight_decay=0.3, layer_decay=0.7), model, 0.8)
    assert actual == {parameter: (0.8 * scale, decay) for parameter, (scale, decay) in expected.items()}
    assert len({scale for scale, _ in expected.values()}) >= 4


def test_layer_wise_rates_of_our_vit_equal_those_of_timms_equivalent() -> None:
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    config = OptimizerConfig(layer_decay=0.7)
    assert rates(config, vit(), 0.8) == rates(config, theirs, 0.8)


def test_steps_use_layer_wise_rates() -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    config = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0, layer_decay=0.5)
    optimizer = build_optimizer(config, model, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    parts = {"pos_embed": 0.125, "blocks.0.mlp.fc1.weight": 0.25, "blocks.1.norm1.bias": 0.5, "head.weight": 1.0}
    for name, part in parts.items():
        torch.testing.assert_close(before[name] - model.state_dict()[name], torch.full_like(before[name], 0.5 * part))


def test_layer_decay_needs_a_group_matcher() -> None:
    assert refusal(OptimizerConfig(layer_decay=0.9), nn.Linear(2, 2)) == (
        "optimizer.layer_decay: the model must say what its layers are, by timm's group_matcher()"
    )


OVERRIDDEN = {
    "a rate": ({"lr": 0.3}, {"head.weight": (0.6, 0.05), "head.bias": (0.6, 0.0)}),
    "a rate as YAML may read it": ({"lr": "3e-1"}, {"head.weight": (0.6, 0.05), "head.bias": (0.6, 0.0)}),
    "no rate at all": ({"lr": 0}, {"head.weight": (0.0, 0.05), "head.bias": (0.0, 0.0)}),
    "a decay": ({"weight_decay": 0.7}, {"head.weight": (0.2, 0.7), "head.bias": (0.2, 0.7)}),
    "both": ({"lr": 0.3, "weight_decay": 0}, {"head.weight": (0.6, 0.0), "head.bias": (0.6, 0.0)}),
}


@pytest.mark.parametrize("name", ["adamw", "muon", "timm/adan"])
@pytest.mark.parametrize("case", list(OVERRIDDEN))
def test_overrides_apply_to_the_parameters_that_match(case: str, name: str) -> None:
    """The rate of an override belongs to the same batch size as optimizer.lr and is scaled with it: here doubled."""
    override, expected = OVERRIDDEN[case]
    config = OptimizerConfig(name=name, lr=0.1, overrides={"^head": override}, scale="linear", scale_base=32)
    others = {
        parameter: (0.2, 0.05 if parameter in DECAYED else 0.0) for parameter in (DECAYED | KEPT) - expected.keys()
    }
    actual = rates(config, vit(), peak_lr(config, 64))
    assert actual.keys() == DECAYED | KEPT
    for parameter, values in {**others, **expected}.items():
        assert actual[parameter] == pytest.approx(values, rel=1e-15), parameter


def test_the_rate_of_an_override_takes_precedence_over_layer_decay() -> None:
    overrides = {r"blocks\.0\.attn": {"lr": 0.3}, "norm2": {"weight_decay": 0.7}}
    config = OptimizerConfig(lr=0.1, layer_decay=0.5, overrides=overrides)
    actual = rates(config, vit(), 0.1)
    assert actual["blocks.0.attn.qkv.weight"] == pytest.approx((0.3, 0.05), rel=1e-15)
    assert actual["blocks.0.attn.proj.bias"] == pytest.approx((0.3, 0.0), rel=1e-15)
    assert actual["blocks.0.norm2.weight"] == (0.025, 0.7)
    assert actual["blocks.1.norm2.weight"] == (0.05, 0.7)
    assert actual["blocks.0.mlp.fc1.weight"] == (0.025, 0.05)


def test_invalid_overrides_are_refused() -> None:
    both = OptimizerConfig(overrides={"head": {"lr": 0.3}, "bias": {"weight_decay": 0.1}})
    assert refusal(both) == "optimizer.overrides: head.bias matches head and bias: make one narrower"
    nothing = OptimizerConfig(overrides={"head": {"lr": 0.3}, "^bloks": {"lr": 0.1}})
    assert refusal(nothing) == "optimizer.overrides.^bloks: matches no parameter; names are as in head.bias"
    model = vit()
    model.get_parameter("cls_token").requires_grad = False
    frozen = OptimizerConfig(overrides={"cls_token": {"lr": 0.3}})
    assert refusal(frozen, model) == "optimizer.overrides.cls_token: matches no parameter; names are as in head.bias"


def test_the_published_exercise_decays_all_of_it() -> None:
    config = Config.load("mnist_reference")
    model = build_model(config.model, classes=10, channels=1, image_size=28, seed=0)
    optimizer = build_optimizer(config.optimizer, model, peak_lr(config.optimizer, config.batch.global_size))
    assert type(optimizer) is AdamW
    [group] = optimizer.param_groups
    assert sum(parameter.numel() for parameter in group["params"]) == parameter_count(model) == 1_797_130
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in model.parameters()}
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (1e-3, 1e-4, (0.9, 0.999), 1e-8)


# First steps


class Two(nn.Module):
    """A model of one decayed matrix and one bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = np.random.default_rng(0)
        self.weight = nn.Parameter(torch.from_numpy(generator.normal(size=(3, 2))))
        self.bias = nn.Parameter(torch.from_numpy(generator.normal(size=3)))


def gradients(model: nn.Module) -> list[dict[str, NDArray[np.float64]]]:
    generator = np.random.default_rng(1)
    return [{name: generator.normal(size=p.shape) for name, p in model.named_parameters()} for _ in range(3)]


def stepped(optimizer: Optimizer, model: nn.Module) -> list[dict[str, Tensor]]:
    """Return all parameters after each of three steps."""
    path = []
    for gradient in gradients(model):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradient[name]).to(parameter.dtype)
        optimizer.step()
        path.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return path


def built(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Tensor]]:
    return stepped(build_optimizer(config, model, config.lr), model)


class Moments:
    """Adam (Kingma and Ba, 2015) on a single parameter."""

    def __init__(self, lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.t, self.m, self.v = 0, 0.0, 0.0

    def step(self, g: Any) -> Any:
        beta1, beta2 = self.betas
        self.t += 1
        self.m, self.v = beta1 * self.m + (1 - beta1) * g, beta2 * self.v + (1 - beta2) * g * g
        return self.lr * (self.m / (1 - beta1**self.t)) / (np.sqrt(self.v / (1 - beta2**self.t)) + self.eps)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("args", [{}, {"eps": 1e-2}])
def test_adamw_decouples_weight_decay_and_adam_does_not(name: str, decay_all: bool, args: dict[str, float]) -> None:
    lr, decay = 0.1, 0.3
    config = OptimizerConfig(
        name=name, lr=lr, weight_decay=decay, betas=(0.8, 0.95), decay_all=decay_all, args=dict(args)
    )
    actual = built(config, Two())
    for parameter, start in Two().named_parameters():
        p, moments = start.detach().numpy().copy(), Moments(lr, (0.8, 0.95), **args)
        of_decay = decay if parameter == "weight" or decay_all else 0.0
        for t, gradient in enumerate(gradients(Two())):
            if name == "adamw":
                p = p - lr * of_decay * p
                p = p - moments.step(gradient[parameter])
            else:
                p = p - moments.step(gradient[parameter] + of_decay * p)
            np.testing.assert_allclose(actual[t][parameter], p, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.8, None, 0.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_and_coupled_decay(momentum: float | None, nesterov: bool) -> None:
    if nesterov and momentum == 0:
        config = OptimizerConfig(name="sgd", momentum=0.0, args={"nesterov": True})
        assert refusal(config, Two()) == (
            "optimizer.name: sgd cannot be built: Nesterov momentum requires a momentum and zero dampening"
        )
        return
    lr, decay, mu = 0.1, 0.3, 0.9 if momentum is None else momentum
    args = {"nesterov": True} if nesterov else {}
    actual = built(OptimizerConfig(name="sgd", lr=lr, weight_decay=decay, momentum=momentum, args=args), Two())
    for name, start in Two().named_parameters():
        p = start.detach().numpy().copy()
        buffer = np.zeros_like(p)
        for t, gradient in enumerate(gradients(Two())):
            g = gradient[name] + (decay * p if name == "weight" else 0)
            buffer = mu * buffer + g
            p = p - lr * (g + mu * buffer if nesterov else buffer)
            np.testing.assert_allclose(actual[t][name], p, rtol=1e-12)


def bfloat16(matrix: Any) -> NDArray[np.float64]:
    """Round to bfloat16, as torch's Muon rounds each product of its iteration."""
    rounded: NDArray[np.float64] = torch.from_numpy(np.array(matrix)).bfloat16().double().numpy()
    return rounded


def orthogonalised(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make five Newton-Schulz steps towards the nearest orthogonal matrix, by the quintic of Jordan et al. (2024)."""
    if len(matrix) > len(matrix.T):
        return orthogonalised(matrix.T).T
    x = bfloat16(matrix)
    x = bfloat16(x / bfloat16(np.linalg.norm(x)))
    for _ in range(5):
        gram = bfloat16(x @ x.T)
        x = bfloat16(3.4445 * x + bfloat16(-4.7750 * gram + 2.0315 * gram @ gram) @ x)
    return x


def hidden() -> nn.Module:
    """A model of a tall and a wide hidden matrix, a last one that makes the logits, and a bias of each."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("momentum", [None, 0.5])
@pytest.mark.parametrize("args", [{}, {"nesterov": False}, {"adjust_lr_fn": "original"}])
def test_muon_orthogonalises_hidden_matrices_and_leaves_the_others_to_adamw(
    momentum: float | None, args: dict[str, Any]
) -> None:
    lr, decay, mu = 0.1, 0.3, 0.95 if momentum is None else momentum
    config = OptimizerConfig(
        name="muon", lr=lr, weight_decay=decay, momentum=momentum, betas=(0.8, 0.95), args=dict(args)
    )
    actual = built(config, hidden())
    for name, start in hidden().named_parameters():
        p, moments = start.detach().numpy().copy(), Moments(lr, (0.8, 0.95))
        average = np.zeros_like(p)
        for t, gradient in enumerate(gradients(hidden())):
            g = gradient[name]
            if name in ("0.weight", "1.weight"):
                average = mu * average + (1 - mu) * g
                wanted = mu * average + (1 - mu) * g if args.get("nesterov", True) else average
                size = math.sqrt(max(1, p.shape[0] / p.shape[1])) if args.get("adjust_lr_fn") else 0.2 * math.sqrt(7)
                p = p - lr * decay * p - lr * size * orthogonalised(wanted)
                # Another CPU may round a bfloat16 to its neighbour.
                np.testing.assert_allclose(actual[t][name], p, rtol=0, atol=(t + 1) * lr * size * 0.02)
            else:
                p = p - lr * (decay if name == "2.weight" else 0.0) * p
                p = p - moments.step(g)
                np.testing.assert_allclose(actual[t][name], p, rtol=1e-12)


def test_muon_splits_the_groups_into_matrices_and_others() -> None:
    model = vit()
    optimizer: Any = build_optimizer(OptimizerConfig(name="muon", weight_decay=0.3), model, 0.5)
    apart = by_name(optimizer.param_groups, model, "name")
    assert apart.keys() == DECAYED | KEPT
    stepped(optimizer, model)
    slots = {name: set(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    matrices = DECAYED - {"patch_embed.proj.weight", "head.weight"}
    assert {name for name, kept in slots.items() if kept == {"momentum_buffer"}} == matrices
    assert {name for name, kept in slots.items() if kept == {"step", "exp_avg", "exp_avg_sq"}} == (
        DECAYED | KEPT
    ) - matrices


# timm's


def by_hand(model: nn.Module) -> list[dict[str, Any]]:
    parameters = dict(model.named_parameters())
    return [
        {"params": [parameter for name, parameter in parameters.items() if name in wanted], "weight_decay": decay}
        for wanted, decay in ((KEPT, 0.0), (DECAYED, 0.3))
    ]


@pytest.mark.parametrize("name", ACCEPTED)
def test_timm_optimizers_step_as_in_timm(name: str) -> None:
    ours, theirs = vit(), vit()
    optimizer = create_optimizer_v2(by_hand(theirs), name, lr=0.02)
    actual = built(OptimizerConfig(name=f"timm/{name}", lr=0.02, weight_decay=0.3), ours)
    for weights, expected in zip(actual, stepped(optimizer, theirs), strict=True):
        assert all(torch.equal(weights[parameter], expected[parameter]) for parameter in expected)
    assert not torch.equal(actual[-1]["head.weight"], vit().get_parameter("head.weight"))


@pytest.mark.parametrize("name", [name for name in list_optimizers() if name not in ACCEPTED])
def test_timm_optimizers_that_cannot_work_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = next(text for start, text in REFUSED.items() if name.startswith(start))
    with pytest.warns(UserWarning, match="opt_einsum") if name.startswith("kron") else contextlib.nullcontext():
        assert refusal(OptimizerConfig(name=f"timm/{name}")) == f"optimizer.name: timm/{name} {reason}"


@pytest.mark.parametrize(
    ("name", "settings", "arguments"),
    [
        ("sgd", {"momentum": 0.5}, {"momentum": 0.5}),
        ("lars", {"momentum": 0.5}, {"momentum": 0.5}),
        ("adan", {"betas": (0.9, 0.8, 0.7)}, {"betas": (0.9, 0.8, 0.7)}),
        ("adopt", {"betas": (0.5, 0.6)}, {"betas": (0.5, 0.6)}),
        ("lamb", {"args": {"eps": 1e-3, "trust_clip": True}}, {"eps": 1e-3, "trust_clip": True}),
    ],
)
def test_fields_and_arguments_reach_timms(name: str, settings: dict[str, Any], arguments: dict[str, Any]) -> None:
    ours, theirs, plain = vit(), vit(), vit()
    actual = built(OptimizerConfig(name=f"timm/{name}", lr=0.02, weight_decay=0.3, **settings), ours)
    expected = stepped(create_optimizer_v2(by_hand(theirs), name, lr=0.02, **arguments), theirs)
    without = stepped(create_optimizer_v2(by_hand(plain), name, lr=0.02), plain)
    assert all(torch.equal(actual[-1][parameter], expected[-1][parameter]) for parameter in expected[-1])
    assert not torch.equal(without[-1]["head.weight"], expected[-1]["head.weight"])


def test_probing_a_timm_optimizer_has_no_side_effects() -> None:
    model = vit()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    optimizer = build_optimizer(OptimizerConfig(name="timm/lamb"), model, 0.1)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


# Arguments


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon", "timm/lamb"])
@pytest.mark.parametrize("field", ["lr", "weight_decay", "betas", "momentum"])
def test_arguments_with_a_field_of_their_own_are_refused(name: str, field: str) -> None:
    config = OptimizerConfig(name=name, args={field: 0.5})
    assert refusal(config) == f"optimizer.args.{field}: set optimizer.{field} instead"


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("adamw", {"esp": 1}, "optimizer.args.esp: AdamW takes no esp (did you mean eps?)"),
        ("adam", {"amsgard": True}, "optimizer.args.amsgard: Adam takes no amsgard (did you mean amsgrad?)"),
        ("sgd", {"nestrov": True}, "optimizer.args.nestrov: SGD takes no nestrov (did you mean nesterov?)"),
        ("muon", {"nssteps": 3}, "optimizer.args.nssteps: Muon takes no nssteps (did you mean ns_steps?)"),
        ("adamw", {"eps": -1}, "optimizer.name: adamw cannot be built: Invalid epsilon value: -1"),
        ("muon", {"adjust_lr_fn": "no"}, "optimizer.name: muon cannot be built: Adjust learning rate function no is "
         "not supported"),
        ("timm/lamb", {"esp": 1}, "optimizer.name: timm/lamb cannot be built: Lamb.__init__() got an unexpected "
         "keyword argument 'esp'"),
        ("timm/lmb", {}, "optimizer.name: timm has no optimizer lmb (did you mean lamb?)"),
    ],
)  # fmt: skip
def test_arguments_that_an_optimizer_does_not_take_are_refused(name: str, args: dict[str, Any], text: str) -> None:
    assert refusal(OptimizerConfig(name=name, args=args)) == text


# Updates that are not finite


@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("args", [{}, {"amsgrad": True}])
def test_a_masked_step_changes_nothing(name: str, args: dict[str, bool]) -> None:
    def broken(optimizer: Any, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        optimizer.found_inf = torch.zeros(())

    def good(optimizer: Any, model: nn.Module, t: int) -> None:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients(model)[t][name])
        optimizer.found_inf = torch.zeros(())
        optimizer.step()

    model, whole = Two(), Two()
    config = OptimizerConfig(name=name, lr=0.1, args=dict(args))
    optimizer, other = build_optimizer(config, model, 0.1), build_optimizer(config, whole, 0.1)
    assert masks_its_step(optimizer)
    broken(optimizer, model)
    for t in range(3):
        good(optimizer, model, t)
        broken(optimizer, model)
        good(other, whole, t)
        assert all(torch.equal(whole.state_dict()[name], value) for name, value in model.state_dict().items())
        for parameter, expected_parameter in zip(model.parameters(), whole.parameters(), strict=True):
            actual, expected = optimizer.state[parameter], other.state[expected_parameter]
            assert actual.keys() == expected.keys() >= {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(actual[slot], expected[slot]) for slot in expected)
            assert actual["step"] == t + 1


@pytest.mark.parametrize("name", ["sgd", "muon", "timm/adamw", "timm/adam", "timm/lamb", "timm/sgd"])
def test_other_optimizers_do_not_mask_their_step(name: str) -> None:
    assert not masks_its_step(build_optimizer(OptimizerConfig(name=name), vit(), 0.1))


def test_unfused_optimizers_do_not_mask_their_step() -> None:
    parameters = list(Two().parameters())
    for optimizer in (AdamW(parameters), Adam(parameters), SGD(parameters), AdamW(parameters, foreach=True)):
        assert not masks_its_step(optimizer)
    assert masks_its_step(Adam(parameters, fused=True))


def test_muon_leaves_every_head_to_adamw() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 3), "head_dist": nn.Linear(4, 3)})
    optimizer = build_optimizer(OptimizerConfig(name="muon"), model, 0.1)
    inner = [[id(p) for group in groups for p in group["params"]] for groups in (optimizer.param_groups[:1],)]
    assert inner == [[id(model["body"].weight)]]


def test_refused_optimizers_give_a_one_line_error() -> None:
    assert refusal(OptimizerConfig(name="muon"), nn.Linear(4, 3)) == (
        "optimizer.name: muon finds no hidden matrix to train in this model: use adamw"
    )
    assert refusal(OptimizerConfig(args={"fused": False})) == "optimizer.args.fused: is not to be set: leave it out"
    assert refusal(OptimizerConfig(name="timm/adopt", betas=(0.9,))).startswith(
        "optimizer.name: timm/adopt cannot be built: "
    )
    assert refusal(OptimizerConfig(overrides={"x": {"lr": 1}}), nn.Identity()) == (
        "model: nothing in it is trained: every parameter is frozen"
    )


def test_group_names_include_their_overrides() -> None:
    groups = parameter_groups(OptimizerConfig(overrides={"bias": {"weight_decay": 0.3}}), vit())
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "not decayed": 0.0,
        "decayed": 0.05,
        "decayed, bias": 0.3,
    }

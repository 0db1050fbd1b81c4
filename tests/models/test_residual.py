"""The residual stream in bfloat16: its type, its gradients, what it works with, and which models are refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit_dist import UserError
from vit_dist.config.fields import ModelConfig
from vit_dist.models.build import bf16_residual, build_model, checkpoint_blocks, drop_path_depth
from vit_dist.models.compile import graphs

OURS: dict[str, Any] = {"patch_size": 4, "width": 32, "depth": 9, "heads": 2}
TIMM: dict[str, Any] = {"name": "timm/deit3_small_patch16_224", "args": {"embed_dim": 32, "depth": 3, "num_heads": 2}}
EVERYTHING = {"drop_path": 0.2, "layer_scale": 0.5, "qk_norm": True, "pool": "mean"}


def build(residual: str, **model: Any) -> nn.Module:
    side = 32 if "name" in model else 16
    config = ModelConfig(residual=residual, **(model if "name" in model else {**OURS, **model}))  # type: ignore[arg-type]
    return build_model(config, classes=5, channels=3, image_size=side, seed=0)


def inputs(model: nn.Module, side: int, slots: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    depth = drop_path_depth(model)
    images = torch.randn(slots, 3, side, side, generator=generator)
    return [images, *([torch.rand(slots, depth, 2, generator=generator)] if depth else [])]


def blocks(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model.blocks, (nn.ModuleList, nn.Sequential))
    return list(model.blocks)


def gradient(
    model: nn.Module, precision: torch.dtype | None, *, look: bool = True, device: str = "cpu"
) -> tuple[Tensor, set[torch.dtype]]:
    """Return the gradient of all parameters, and, if blocks are looked at, the types that they hand to each other."""
    types: set[torch.dtype] = set()
    looked_at = blocks(model) if look else []
    handles = [block.register_forward_hook(lambda _m, _i, out: types.add(out.dtype)) for block in looked_at]
    model.to(device).zero_grad()
    on = contextlib.nullcontext() if precision is None else torch.autocast(device, precision)
    with on:
        outputs = model(*(each.to(device) for each in inputs(model, 32 if hasattr(model, "norm_pre") else 16)))
    nn.functional.cross_entropy(outputs.float().cpu(), torch.tensor([0, 1, 2, 3])).backward()
    for handle in handles:
        handle.remove()
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    ), types


@pytest.mark.parametrize(
    "model", [{}, EVERYTHING, TIMM, {**TIMM, "drop_path": 0.2}], ids=["ours", "ours, everything", "timm", "timm drop"]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_blocks_hand_on_bfloat16_and_gradients_stay_within_its_rounding(model: dict[str, Any], device: str) -> None:
    exact, types = gradient(build("fp32", **model), None, device=device)
    assert types == {torch.float32}
    plain, types = gradient(build("fp32", **model), torch.bfloat16, device=device)
    assert types == {torch.float32}
    narrow, types = gradient(build("bf16", **model), torch.bfloat16, device=device)
    assert types == {torch.bfloat16}
    # Two sums a block, each rounded to 8 bits on the way there and on the way back.
    rounding = 2**-9 * (2 * 2 * len(blocks(build("fp32", **model)))) ** 0.5
    assert 0 < (narrow - plain).norm() / exact.norm() < 2 * rounding
    assert (narrow - exact).norm() / exact.norm() < (plain - exact).norm() / exact.norm() + 2 * rounding


@pytest.mark.parametrize("model", [EVERYTHING, TIMM], ids=["ours", "timm"])
@pytest.mark.parametrize("precision", [None, torch.float16], ids=["fp32", "fp16"])
def test_in_other_precisions_nothing_changes(model: dict[str, Any], precision: torch.dtype | None) -> None:
    expected, _ = gradient(build("fp32", **model), precision)
    actual, types = gradient(build("bf16", **model), precision)
    assert torch.equal(actual, expected)
    assert types == {torch.float32}


@pytest.mark.parametrize("model", [EVERYTHING, TIMM], ids=["ours", "timm"])
def test_checkpointed_blocks_give_the_same_gradient_and_names_stay(model: dict[str, Any]) -> None:
    narrow, checkpointed = build("bf16", **model), build("bf16", **model)
    checkpoint_blocks(checkpointed)
    assert torch.equal(gradient(checkpointed, torch.bfloat16)[0], gradient(narrow, torch.bfloat16)[0])
    assert list(narrow.state_dict()) == list(build("fp32", **model).state_dict())


@pytest.mark.parametrize("model", [EVERYTHING, TIMM], ids=["ours", "timm"])
def test_compiled_blocks_share_one_graph_as_they_do_in_float32(model: dict[str, Any]) -> None:
    counts = []
    for residual in ("fp32", "bf16"):
        torch._dynamo.reset()
        before = graphs()
        module = build(residual, **model)
        for block in blocks(module):
            block.compile(dynamic=False, fullgraph=True, backend="eager")  # graphs alone: inductor takes a minute
        gradient(module, torch.bfloat16, look=False)
        counts.append(graphs() - before)
    assert counts == [1, 1]


def test_it_can_be_set_on_a_model_that_was_given() -> None:
    model = build("fp32")
    bf16_residual(model)
    assert gradient(model, torch.bfloat16)[1] == {torch.bfloat16}


@pytest.mark.parametrize("name", ["timm/beit_base_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_models_whose_residual_stream_is_not_known_are_refused(name: str) -> None:
    config = ModelConfig(name=name, residual="bf16", args={"embed_dim": 48})
    refused = r"^model\.residual: bf16 is for our ViT and timm's plain ones, and this is another model: set fp32$"
    with pytest.raises(UserError, match=refused):
        build_model(config, classes=5, channels=3, image_size=224, seed=0)

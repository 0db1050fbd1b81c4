"""The memory estimate: weights, gradients and optimizer exactly, activations against torch's allocator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, ModelConfig, TrainConfig
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.models.build import build_model, checkpoint_blocks, drop_path_depth
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.sizing.memory import Memory, estimate

SIDE, CLASSES = 16, 10
VIT: dict[str, Any] = {"patch_size": 4, "width": 48, "depth": 3, "heads": 3}


def vit(**model: Any) -> tuple[ModelConfig, nn.Module]:
    config = ModelConfig(**{**VIT, **model})
    return config, build_model(config, classes=CLASSES, channels=1, image_size=SIDE, seed=0)


def estimated(
    model: nn.Module, micro_size: int = 8, precision: str = "fp32", ema: float = 0.0, **optimizer: Any
) -> Memory:
    config = Config(
        batch=BatchConfig(micro_size=micro_size), optimizer=OptimizerConfig(**optimizer), train=TrainConfig(ema=ema)
    )
    built = build_optimizer(config.optimizer, model, config.optimizer.lr)
    return estimate(model, built, config, (1, SIDE, SIDE), drop_path_depth(model), precision)


def values(model: nn.Module) -> int:
    """Return the numbers of values of the ViT above, from its sizes."""
    width, depth, tokens = 48, 3, 17
    block = 2 * 2 * width + (3 + 1 + 4 + 4) * width**2 + (3 + 1 + 4 + 1) * width
    count = (16 + 1) * width + width + tokens * width + depth * block + 2 * width + (width + 1) * CLASSES
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    return count


@pytest.mark.parametrize(
    ("optimizer", "moments", "counts_steps"),
    [
        ({"name": "adamw"}, 2, True),
        ({"name": "sgd"}, 1, False),
        ({"name": "sgd", "momentum": 0.0}, 0, False),
        ({"name": "timm/lion"}, 1, False),
    ],
    ids=["adamw", "sgd", "sgd without momentum", "timm/lion"],
)
def test_weights_gradients_and_optimizer_are_exact(optimizer: dict[str, Any], moments: int, counts_steps: bool) -> None:
    _, model = vit()
    tensors, size = len(list(model.parameters())), 4 * values(model)
    memory = estimated(model, **optimizer)
    assert (memory.weights, memory.gradients, memory.average) == (size, size, 0)
    assert memory.optimizer == moments * size + (4 * tensors if counts_steps else 0)
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.activations


def test_the_average_is_one_more_copy_of_the_weights() -> None:
    _, model = vit()
    plain, averaged = estimated(model), estimated(model, ema=0.99)
    assert averaged.average == averaged.weights == 4 * values(model)
    assert averaged.total == plain.total + averaged.weights


def test_buffers_count_as_weights_and_frozen_weights_have_no_gradients() -> None:
    _, model = vit(position="sincos")
    positions = 4 * 17 * 48
    memory = estimated(model, name="sgd")
    assert (memory.weights, memory.gradients, memory.optimizer) == (
        4 * values(vit()[1]),
        4 * values(vit()[1]) - positions,
        4 * values(vit()[1]) - positions,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    frozen, head = estimated(model, name="sgd"), 4 * 49 * CLASSES
    assert (frozen.weights, frozen.gradients, frozen.optimizer) == (memory.weights, head, head)
    assert frozen.activations < memory.activations / 10


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_linear_in_the_slots(precision: str) -> None:
    _, model = vit(drop_path=0.1)
    by_size = {size: estimated(model, size, precision).activations for size in (2, 4, 6, 64, 512)}
    slot = (by_size[4] - by_size[2]) // 2
    assert slot > 0
    assert by_size == {size: by_size[2] + (size - 2) * slot for size in by_size}


def kept_after_forward(model: nn.Module, micro_size: int, precision: str) -> int:
    """Return the bytes that torch's allocator still holds after a forward pass and its loss."""
    depth = drop_path_depth(model)
    inputs = [torch.zeros(micro_size, 1, SIDE, SIDE)] + ([torch.rand(micro_size, depth, 2)] if depth else [])
    targets = torch.zeros(micro_size, dtype=torch.int64)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = F.cross_entropy(model(*inputs).float(), targets)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [{}, {"drop_path": 0.2, "pool": "mean"}, {"dropout": 0.1, "mlp_ratio": 2.0, "position": "sincos"}],
    ids=["plain", "drop_path", "dropout"],
)
def test_activations_equal_what_the_allocator_keeps(model: dict[str, Any], precision: str) -> None:
    _, module = vit(**model)
    memory = estimated(module, 32, precision).activations
    assert memory == pytest.approx(kept_after_forward(module.train(), 32, precision), rel=0.05)


def test_checkpointed_blocks_keep_their_inputs_and_one_block_at_a_time() -> None:
    deep, less_deep = (estimated(vit(depth=depth)[1], 32).activations for depth in (8, 7))
    _, module = vit(depth=8)
    checkpoint_blocks(module)
    memory = estimated(module, 32).activations
    expected = kept_after_forward(module.train(), 32, "fp32") + deep - less_deep
    tokens = 4 * 32 * 17 * 48  # bytes of what one block hands to the next
    assert memory == pytest.approx(expected, abs=2 * tokens)
    assert memory < 0.25 * deep


def test_a_residual_stream_in_bfloat16_keeps_half_the_bytes_between_blocks() -> None:
    wide, narrow = (
        estimated(vit(residual=residual, depth=8)[1], 32, "bf16").activations for residual in ("fp32", "bf16")
    )
    tokens = 32 * 17 * 48
    assert wide - narrow == pytest.approx(2 * 8 * 2 * tokens, rel=0.05)  # two sums a block, two bytes less each
    assert narrow == pytest.approx(kept_after_forward(vit(residual="bf16", depth=8)[1].train(), 32, "bf16"), rel=0.05)
    checkpointed = [vit(residual=residual, depth=8)[1] for residual in ("fp32", "bf16")]
    for module in checkpointed:
        checkpoint_blocks(module)
    wide, narrow = (estimated(module, 32, "bf16").activations for module in checkpointed)
    # The blocks' inputs and one block's second sum; for the last norm's input its output, which the head reads in part.
    assert wide - narrow == pytest.approx((8 + 1) * 2 * tokens, rel=0.05)


def test_activations_are_close_to_a_count_by_hand() -> None:
    width, depth, tokens, hidden, slots = 48, 3, 17, 4 * 48, 32
    # A block keeps two residual sums and the outputs of both norms, q, k and v, the outputs of attention and its
    # softmax, and both sides of GELU.
    block = tokens * (2 * width + 2 * width + 3 * width + width + 3 + 4 + 2 * hidden)
    by_hand = 4 * slots * (depth * block + 2 * tokens * width)
    assert estimated(vit()[1], slots).activations == pytest.approx(by_hand, rel=0.1)

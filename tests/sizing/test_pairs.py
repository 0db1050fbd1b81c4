"""The memory of two towers: activations of both against torch's allocator, and what pairs take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vit_dist.config.config import Config
from vit_dist.models.build import checkpoint_blocks, drop_path_depth
from vit_dist.models.two_tower import TwoTower, build_two_tower
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.sizing.memory import Memory, estimate, pair_bytes

CONFIG = Config.from_dict(
    {
        "model": {"patch_size": 4, "width": 48, "depth": 3, "heads": 3, "drop_path": 0.1},
        "text": {"width": 32, "depth": 2, "heads": 2, "embed_dim": 24, "context_length": 12, "causal": False},
        "loss": {"name": "clip"},
        "batch": {"micro_size": 32},
    }
)


def towers() -> TwoTower:
    return build_two_tower(
        CONFIG.model, CONFIG.text, "clip", vocabulary_size=50, channels=1, image_size=16, seed=0
    ).train()


def estimated(model: TwoTower) -> Memory:
    optimizer = build_optimizer(CONFIG.optimizer, model, 1e-3)
    return estimate(model, optimizer, CONFIG, (1, 16, 16), drop_path_depth(model), "fp32")


def kept(model: TwoTower) -> int:
    """Return the bytes that torch's allocator still holds after a forward pass of 32 pairs and its loss."""
    inputs = torch.zeros(32, 1, 16, 16), torch.ones(32, 12, dtype=torch.int64), torch.rand(32, 3, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        image, text = model(*inputs)
        loss: Tensor = image.logsumexp(1).sum() + text.logsumexp(1).sum()
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


def test_activations_are_those_of_both_towers() -> None:
    assert estimated(towers()).activations == pytest.approx(kept(towers()), rel=0.05)


def test_with_checkpointed_blocks_one_block_of_each_tower_is_computed_again() -> None:
    model = towers()
    checkpoint_blocks(model)
    assert 1.2 * kept(model) < estimated(model).activations < 0.7 * kept(towers())


def test_pairs_take_their_inputs_and_embeddings_and_a_block_of_logits_at_most() -> None:
    def of(own: int, everyone: int) -> int:
        return pair_bytes(own, everyone, 512, (3, 224, 224), 77, 2**20)

    inputs, vector = 4 * 3 * 224**2 + 8 * 77, 2 * 4 * 512
    assert of(2048, 4096) - of(1024, 4096) == 1024 * (inputs + 6 * vector)
    assert of(2048, 8192) - of(2048, 4096) == 4096 * 3 * vector
    assert of(8, 8) == 8 * (inputs + 9 * vector) + 5 * 4 * 64

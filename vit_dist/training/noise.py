"""Micro-batches of noise, to measure a model by."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from vit_dist.data.batch import Batch
from vit_dist.models.build import drop_path_depth
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import Components


def noise_batch(components: Components, runtime: Runtime, slots: int, side: int, distinct: int) -> Batch:
    """Return a micro-batch of noise on the device, with targets as in training; the same at each call.

    side: of the images, in pixels. distinct: how many images differ; the others repeat them.
    """
    config, classes = components.config, len(components.data.classes)
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(min(slots, distinct), components.data.channels, side, side, generator=generator)
    depth = drop_path_depth(components.model)
    draws = torch.rand(slots, depth, 2, generator=generator) if depth else None
    targets = torch.arange(slots) % classes
    if config.augment.mixup or config.augment.cutmix:
        targets = F.one_hot(targets, classes).float()
    tokens = None
    if components.tokenizer is not None:
        shape = slots, config.text.context_length
        tokens = torch.randint(1, components.tokenizer.vocabulary_size, shape, generator=generator)
    return Batch(
        images=runtime.to_device(few).repeat(math.ceil(slots / len(few)), 1, 1, 1)[:slots].contiguous(),
        targets=runtime.to_device(targets),
        weights=torch.ones(slots, device=runtime.device),
        ids=torch.arange(slots),
        drop_path=None if draws is None else runtime.to_device(draws),
        seed=0,
        tokens=None if tokens is None else runtime.to_device(tokens),
    )

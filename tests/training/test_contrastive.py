"""The exact update of two towers, in one process and in several, against one big batch made by hand."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests.processes import run_world
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, ModelConfig, RunConfig
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import Stream
from vit_dist.models.build import drop_path_depth
from vit_dist.models.contrastive_loss import ContrastiveLoss
from vit_dist.models.two_tower import TwoTower, build_two_tower
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.keys import Purpose, key, keys, uniform
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.contrastive import ContrastiveUpdater

GLOBAL, SAMPLES, VOCABULARY, LENGTH = 21, 30, 40, 6
MICRO_SIZES = (2, 4, 8, 32)
# Each loss with each way of duplicates; the last with samples that weigh more or less, or nothing.
LOSSES = (("clip", "positives", False), ("clip", "mask", False), ("siglip", "positives", False),
          ("siglip", "mask", True), ("clip", "positives", True))  # fmt: skip
DROPS = {"drop_path": 0.5, "dropout": 0.2}
IMAGE = ModelConfig(patch_size=4, width=16, depth=2, heads=2, **DROPS)  # type: ignore[arg-type]


def config(micro_size: int, loss: str = "clip", duplicates: str = "positives", **sections: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"device": "cpu", "threads": 1},
        "model": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, **DROPS},
        "text": {"width": 16, "depth": 3, "heads": 2, "context_length": LENGTH, "embed_dim": 8, **DROPS},
        "batch": {"global_size": GLOBAL, "micro_size": micro_size},
        "loss": {"name": loss, "duplicates": duplicates},
        "schedule": {"warmup": "2 updates"},
        "train": {"duration": "60 updates"},
    }
    for name, fields in sections.items():
        values[name] = {**values.get(name, {}), **fields}
    return Config.from_dict(values)


def build(settings: Config) -> TwoTower:
    return build_two_tower(
        settings.model,
        settings.text,
        settings.loss.name,
        vocabulary_size=VOCABULARY,
        channels=1,
        image_size=12,
        seed=0,
    )


def source() -> MemorySource:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (SAMPLES, 1, 12, 12), dtype=np.uint8)
    return MemorySource(pixels, generator.integers(0, 5, SAMPLES))


def captions() -> tuple[Tensor, Tensor]:
    """Return (tokens, ids) of the samples' captions, of which some are equal; their lengths differ."""
    generator = np.random.default_rng(1)
    distinct = generator.integers(1, VOCABULARY, (12, LENGTH))
    distinct[np.arange(LENGTH) >= generator.integers(2, LENGTH + 1, 12)[:, None]] = 0
    ids = generator.integers(0, 12, SAMPLES)
    return torch.from_numpy(distinct[ids]), torch.from_numpy(ids * 7 - 3)


def sample_weights() -> np.ndarray:
    """Return weights of the samples, some of them 0."""
    return np.random.default_rng(7).integers(0, 5, SAMPLES).astype(np.float32) / 3


class Captioned:
    """A stream whose batches have captions."""

    def __init__(self, plan: Plan, runtime: Runtime, model: TwoTower, dtype: torch.dtype = torch.float32) -> None:
        self.stream = Stream(
            all_of(source()),
            plan,
            Preprocessing(12, (0.5,), (0.25,)),
            AugmentConfig(),
            runtime,
            workers=0,
            drop_path_depth=drop_path_depth(model),
        )
        self.dtype = dtype

    def window(self, position: int) -> Iterator[Batch]:
        tokens, ids = captions()
        for batch in self.stream.window(position):
            images = batch.images.to(self.dtype)
            yield dataclasses.replace(batch, images=images, tokens=tokens[batch.ids], caption_ids=ids[batch.ids])


def updater_of(
    model: TwoTower, settings: Config, plan: Plan, runtime: Runtime, state: TrainState | None = None
) -> ContrastiveUpdater:
    prepared = runtime.prepare(model)
    lr = settings.optimizer.lr
    optimizer = build_optimizer(settings.optimizer, model, lr)
    return ContrastiveUpdater(
        prepared,
        ContrastiveLoss(settings.loss),  # type: ignore[arg-type]
        optimizer,
        Schedule(settings.schedule, optimizer, plan, lr),
        state or TrainState(),
        runtime,
        clip_norm=settings.optimizer.clip_norm,
    )


def gradients_of_all_splits(folder: str) -> list[int]:
    """Save this rank's gradient of global batch 1 (which crosses an epoch's end) for every split and loss."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    for number, micro_size in itertools.product(range(len(LOSSES)), MICRO_SIZES):
        loss, duplicates, weighted = LOSSES[number]
        settings = config(micro_size, loss, duplicates)
        plan = Plan.from_config(settings, SAMPLES, runtime.world_size, weights=sample_weights() if weighted else None)
        model = build(settings).double()
        updater = updater_of(model, settings, plan, runtime)
        stream = Captioned(plan, runtime, model, torch.float64)
        values = updater.accumulate(stream.window(1), plan.micro_batches_per_rank, plan.weight(1))
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        total, _, weight = updater.take_sums()
        gradients["loss"] = torch.tensor(total / plan.weight(1), dtype=torch.float64)
        save_file(gradients, Path(folder) / f"{number}_{micro_size}_{runtime.rank}.safetensors")
        assert [len(each) for each in values] == [micro_size] * plan.micro_batches_per_rank
        assert weight == pytest.approx(plan.weight(1), rel=1e-6)
    runtime.end()
    return []


@cache
def reference(number: int, micro_size: int) -> dict[str, Tensor]:
    """Return autograd's loss and gradients of samples 21 … 41 of the stream, all in one graph."""
    loss, duplicates, weighted = LOSSES[number]
    settings = config(micro_size, loss, duplicates)
    whole = Plan.from_config(settings, SAMPLES, 1)
    slots = [whole.slots(1, micro_batch) for micro_batch in range(whole.micro_batches)]
    model = build(settings).double()
    images, texts = [], []
    for micro_batch, part in enumerate(slots):
        # Dropout draws for each micro-batch, fillers included; the loss below sees none of these.
        # test_ops.py compares `normalise` with NumPy; it rounds to float32.
        pixels = normalise(torch.from_numpy(source().pixels[part.index]), 12, torch.tensor([0.5]), torch.tensor([0.25]))
        draws = torch.from_numpy(uniform(keys(0, Purpose.DROP_PATH, part.epoch, part.index), 5, 2))
        torch.default_generator.manual_seed(key(0, Purpose.FORWARD, 1, micro_batch) >> 1)
        image, text = model(pixels.double(), captions()[0][part.index], draws)
        assert image is not None
        assert text is not None
        images.append(image)
        texts.append(text)
    index = np.concatenate([part.index for part in slots])[:GLOBAL]
    image, text = torch.cat(images)[:GLOBAL], torch.cat(texts)[:GLOBAL]
    weights = torch.from_numpy(sample_weights()[index]).double() if weighted else torch.ones(GLOBAL).double()
    kept = weights > 0
    assert not weighted or not kept.all()
    mean = by_hand(model, image[kept], text[kept], captions()[1][index][kept], weights[kept], loss, duplicates)
    mean.backward()  # type: ignore[no-untyped-call]
    return {"loss": mean.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def by_hand(
    model: TwoTower, image: Tensor, text: Tensor, ids: Tensor, weights: Tensor, loss: str, duplicates: str
) -> Tensor:
    """Return the mean loss, a row and a pair at a time."""
    equal = [[j for j in range(len(ids)) if ids[j] == ids[i]] for i in range(len(ids))]
    assert max(map(len, equal)) >= 3
    logits = model.logit_scale.exp() * image @ text.T
    if model.logit_bias is not None:
        logits = logits + model.logit_bias
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(ids)):
        wanted = equal[i] if duplicates == "positives" else [i]
        seen = [j for j in range(len(ids)) if j in wanted or j not in equal[i]]
        for row in (logits[i], logits[:, i]):
            if loss == "clip":
                of_row = sum(-row[seen].log_softmax(0)[seen.index(j)] for j in wanted) / len(wanted)
            else:
                of_row = sum(-F.logsigmoid(row[j] if j in wanted else -row[j]) for j in seen)  # type: ignore[assignment]
            total = total + weights[i] * of_row / 2
    return total / weights.sum()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_gradient_equals_that_of_one_big_batch_for_any_split(world: int, tmp_path: Path) -> None:
    run_world(world, gradients_of_all_splits, tmp_path, str(tmp_path))
    for number, micro_size in itertools.product(range(len(LOSSES)), MICRO_SIZES):
        expected = reference(number, micro_size)
        assert ("logit_bias" in expected) is (LOSSES[number][0] == "siglip")
        for rank in range(world):
            actual = load_file(tmp_path / f"{number}_{micro_size}_{rank}.safetensors")
            assert actual.keys() == expected.keys()
            for name, value in expected.items():
                difference = (actual[name] - value).norm() / value.norm()
                assert difference < 1e-12, (LOSSES[number], micro_size, rank, name)

"""The exact update of two towers, in one process and in several, against one big batch made by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
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
from torch.utils._python_dispatch import TorchDispatchMode

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
from vit_dist.models import contrastive_loss
from vit_dist.models.build import checkpoint_blocks, drop_path_depth
from vit_dist.models.contrastive_loss import ContrastiveLoss, Pairs
from vit_dist.models.pretrained import freeze
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


def sixty_updates(folder: str) -> dict[str, Any]:
    """Make 60 updates in float32; return their losses and what was counted, in the last two of them too."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    settings = config(4, optimizer={"lr": 1e-3})
    plan = Plan.from_config(settings, SAMPLES, runtime.world_size)
    model = build(settings)
    updater = updater_of(model, settings, plan, runtime)
    stream, losses = Captioned(plan, runtime, model), []

    def update(position: int) -> None:
        updater.update(stream.window(position), plan.micro_batches_per_rank, plan.weight(position))
        loss, correct, weight = updater.take_sums()
        assert np.isnan(correct)  # no accuracy is measured in training
        assert weight == plan.weight(position)
        losses.append(loss / weight)

    for position in range(58):
        update(position)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for position in (58, 59):
            update(position)
    updater.finish_previous()
    calls = {event.key: event.count for event in profile.key_averages()}
    _, buckets = runtime.all_reduce_cost(updater.model)
    runtime.end()
    return {
        "losses": losses,
        "applied": [updater.state.position, updater.state.applied_updates, updater.schedule.updates],
        # Two all-reduces of `take_sums` are this test's own.
        "reduced": calls.get("gloo:all_reduce", 0) - (2 if runtime.world_size > 1 else 0),
        "gathered": sum(count for key, count in calls.items() if key.startswith("gloo:") and "gather" in key),
        "buckets": buckets,
        "window": plan.micro_batches_per_rank,
    }


def test_sixty_updates_have_the_same_losses_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    (alone,) = run_world(1, sixty_updates, tmp_path / "1", "")
    first, second = run_world(2, sixty_updates, tmp_path / "2", "")
    assert first == second
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    assert alone["losses"][-1] < alone["losses"][0]
    assert alone["applied"] == first["applied"] == [60, 60, 60]
    assert (alone["window"], first["window"]) == (6, 3)
    # In two updates of three micro-batches: gradients once each; embeddings, and then sums of exponentials.
    assert (first["reduced"], first["gathered"]) == (2 * first["buckets"], 4)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def gradients(model: TwoTower, settings: Config, runtime: Runtime, scaled: float = 1.0) -> dict[str, Tensor]:
    """Return the gradients of global batch 1 in float64."""
    plan = Plan.from_config(settings, SAMPLES, 1)
    updater = updater_of(model.double(), settings, plan, runtime)
    updater.accumulate(
        Captioned(plan, runtime, model, torch.float64).window(1), plan.micro_batches_per_rank, plan.weight(1)
    )
    return {name: p.grad / scaled for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-12, atol=1e-15, msg=name)


def test_blocks_that_are_computed_again_give_the_same_gradient(runtime: Runtime) -> None:
    plain, checkpointed = build(config(8)), build(config(8))
    checkpoint_blocks(checkpointed)
    assert_equal(gradients(checkpointed, config(8), runtime), gradients(plain, config(8), runtime))


@pytest.mark.parametrize("locked", ["image", "text"])
def test_a_frozen_tower_is_as_at_inference_and_the_other_has_its_gradient(runtime: Runtime, locked: str) -> None:
    settings = config(8, model={**DROPS, "freeze": [rf"^{locked}\."]})
    model, other = build(settings), build(settings)
    freeze(model, settings.model)
    model.train()
    calls: list[int] = []
    tower = model.named_towers()[locked]
    tower.register_forward_hook(lambda *_: calls.append(1))
    assert not any(module.training for module in tower.modules())
    actual = gradients(model, settings, runtime)
    assert len(calls) == 3  # once for each micro-batch, without a second pass
    other.train()
    other.named_towers()[locked].eval()  # and then its draws are not used
    assert_equal(actual, {n: g for n, g in gradients(other, settings, runtime).items() if not n.startswith(locked)})


def test_fp16s_scaler_changes_nothing_but_the_scale(runtime: Runtime) -> None:
    expected = gradients(build(config(8)), config(8), runtime)
    runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    assert_equal(gradients(build(config(8)), config(8), runtime, scaled=2.0**8), expected)


def test_an_update_with_an_image_that_is_not_finite_is_skipped_but_not_for_a_filler(runtime: Runtime) -> None:
    settings = config(8, "siglip", optimizer={"lr": 0.01})
    plan = Plan.from_config(settings, SAMPLES, 1)
    model = build(settings)
    updater = updater_of(model, settings, plan, runtime)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def window(position: int, slot: int, value: float) -> list[Batch]:
        batches = list(Captioned(plan, runtime, model).window(position))
        batches[2].images[slot] = value
        return batches

    assert plan.fillers == 3
    updater.update(window(0, 4, torch.nan), 3, plan.weight(0))
    updater.finish_previous()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (updater.state.position, updater.state.applied_updates, updater.schedule.updates) == (1, 0, 0)
    assert updater.take_sums()[2] == 0
    losses = updater.accumulate(window(0, 7, 1e3), 3, plan.weight(0))
    assert torch.stack(losses).isfinite().all()
    updater.optimizer.zero_grad()
    updater.update(window(0, 7, 1e3), 3, plan.weight(0))
    updater.finish_previous()
    assert (updater.state.applied_updates, updater.schedule.updates) == (1, 1)


def test_the_scale_stays_below_100_and_neither_it_nor_the_bias_decays(runtime: Runtime) -> None:
    settings = config(32, "siglip", optimizer={"lr": 1.0, "decay_all": True, "weight_decay": 0.5, "betas": [0, 0.9]})
    plan = Plan.from_config(settings, SAMPLES, 1)
    model = build(settings)
    assert model.logit_bias is not None
    torch.testing.assert_close(model.logit_scale.exp().item(), 10.0)
    assert model.logit_bias.item() == -10
    updater = updater_of(model, settings, plan, runtime)
    decays = {id(p): group["weight_decay"] for group in updater.optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if not decays[id(p)]} == {"logit_scale", "logit_bias"}
    model.logit_scale.grad = torch.tensor(-1.0)
    model.logit_scale.data.fill_(4.6)
    updater.apply()
    assert model.logit_scale.item() == pytest.approx(math.log(100), abs=1e-6)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and each.untyped_storage().nbytes() >= each.numel() * each.element_size():
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_no_tensor_grows_with_the_square_of_the_global_batch(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contrastive_loss.BLOCKS, "cpu", 2**14)
    generator = torch.Generator().manual_seed(0)
    for pairs, largest in ((64, 64 * 64), (512, 2**14), (2048, 2**14)):
        image, text = (F.normalize(torch.randn(pairs, 4, generator=generator), dim=1) for _ in range(2))
        ids = torch.arange(pairs)
        bias = torch.tensor(-10.0) if loss == "siglip" else None
        with Largest() as seen:
            ContrastiveLoss(config(8, loss).loss).derivatives(
                Pairs(image, text, torch.ones(pairs), ids), ids, torch.tensor(10.0), bias, lambda own: own
            )
        assert seen.elements == largest

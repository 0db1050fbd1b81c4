"""The exact update, in one process and in several."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.processes import run_world
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.config.fields import (
    AugmentConfig,
    BatchConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import Stream
from vit_dist.models.build import build_model
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.keys import Purpose, keys, uniform
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.losses import Loss, cross_entropy
from vit_dist.training.update import DivergedError, Updater

GLOBAL, SAMPLES, DEPTH = 21, 30, 3
MICRO_SIZES = (2, 4, 8, 32)
MODEL = ModelConfig(patch_size=4, width=16, depth=DEPTH, heads=2, drop_path=0.5)


def config(micro_size: int, **optimizer: Any) -> Config:
    return Config(
        run=RunConfig(device="cpu", threads=1),
        model=MODEL,
        batch=BatchConfig(global_size=GLOBAL, micro_size=micro_size),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(**optimizer),
        schedule=ScheduleConfig(warmup="2 updates"),
        train=TrainConfig(duration="60 updates"),
    )


def model() -> nn.Module:
    return build_model(MODEL, classes=5, channels=1, image_size=12, seed=0).double()


def source() -> MemorySource:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (SAMPLES, 1, 12, 12), dtype=np.uint8)
    return MemorySource(pixels, generator.integers(0, 5, SAMPLES))


def stream(plan: Plan, runtime: Runtime) -> Stream:
    preprocessing = Preprocessing(12, (0.5,), (0.25,))
    return Stream(
        all_of(source()),
        plan,
        preprocessing,
        AugmentConfig(shift=1, flip=0.5),
        runtime,
        workers=0,
        drop_path_depth=DEPTH,
    )


def in_float64(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=batch.images.double())


def build_updater(
    module: nn.Module,
    settings: Config,
    plan: Plan,
    runtime: Runtime,
    average: EMA | None = None,
    max_bad_updates: int = 20,
) -> Updater:
    prepared = runtime.prepare(module)
    lr = settings.optimizer.lr
    optimizer = build_optimizer(settings.optimizer, module, lr)
    schedule = Schedule(settings.schedule, optimizer, plan, lr)
    return Updater(
        prepared,
        Loss(settings.loss),
        optimizer,
        schedule,
        TrainState(),
        runtime,
        clip_norm=settings.optimizer.clip_norm,
        max_bad_updates=max_bad_updates,
        average=average,
    )


def sample_weights() -> np.ndarray:
    """Return weights of the samples, some of them 0."""
    return np.random.default_rng(7).integers(0, 5, SAMPLES).astype(np.float32) / 3


def gradients_of_all_splits(folder: str, weighted: bool) -> list[int]:
    """Save this rank's gradient of global batch 1 (which crosses an epoch's end) for every micro-batch size."""
    weights = sample_weights() if weighted else None
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    sizes = []
    for micro_size in MICRO_SIZES:
        settings = config(micro_size)
        plan = Plan.from_config(settings, SAMPLES, runtime.world_size, weights=weights)
        module = model()
        updater = build_updater(module, settings, plan, runtime)
        window = [in_float64(batch) for batch in stream(plan, runtime).window(1)]
        sizes.append(len(window))
        updater.accumulate(window, plan.micro_batches_per_rank, plan.weight(1))
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        save_file(gradients, Path(folder) / f"{micro_size}_{runtime.rank}.safetensors")
        assert updater.take_sums()[2] == pytest.approx(plan.weight(1), rel=1e-6)
        assert weighted or plan.weight(1) == GLOBAL
    runtime.end()
    return sizes


def reference_gradients(weighted: bool) -> dict[str, torch.Tensor]:
    """Return autograd's gradients of the (weighted) mean loss of samples 21 … 41 of the stream, as one batch."""
    plan = Plan.from_config(config(GLOBAL + 1), SAMPLES, 1)
    slots = plan.slots(1, 0)
    ids, epochs = slots.index[:GLOBAL], slots.epoch[:GLOBAL]
    assert set(epochs) == {0, 1}
    pixels = source().pixels[ids].astype(np.float64)
    moves = np.floor(uniform(keys(0, Purpose.SHIFT, epochs, ids), 2) * 3).astype(int) - 1
    mirrored = uniform(keys(0, Purpose.FLIP, epochs, ids)) < 0.5
    for i, (down, right) in enumerate(moves):
        padded = np.pad(pixels[i, 0], 1)
        moved = padded[1 - down : 13 - down, 1 - right : 13 - right]
        pixels[i, 0] = moved[:, ::-1] if mirrored[i] else moved
    # test_ops.py compares `normalise` with NumPy; it rounds to float32.
    images = normalise(
        torch.from_numpy(pixels.astype(np.uint8)), 12, torch.tensor([0.5]), torch.tensor([0.25])
    ).double()
    draws = torch.from_numpy(uniform(keys(0, Purpose.DROP_PATH, epochs, ids), DEPTH, 2))
    module = model()
    losses = cross_entropy(module(images, draws), torch.from_numpy(source().labels[ids]), label_smoothing=0.1)
    weights = torch.from_numpy(sample_weights()[ids]).double() if weighted else torch.ones(GLOBAL).double()
    assert not weighted or (weights == 0).any()
    ((losses * weights).sum() / weights.sum()).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("world", "weighted"), [(1, False), (2, False), (3, False), (1, True), (3, True)])
def test_the_gradient_equals_that_of_one_big_batch_for_any_split(world: int, weighted: bool, tmp_path: Path) -> None:
    windows = run_world(world, gradients_of_all_splits, tmp_path, str(tmp_path), weighted)
    expected = reference_gradients(weighted)
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for number, micro_size in enumerate(MICRO_SIZES):
        micro_batches = -(-GLOBAL // micro_size)
        for rank in range(world):
            assert windows[rank][number] == -(-micro_batches // world)
            actual = load_file(tmp_path / f"{micro_size}_{rank}.safetensors")
            assert actual.keys() == expected.keys()
            difference = torch.cat([(actual[name] - expected[name]).flatten() for name in expected]).norm()
            assert difference / norm < 1e-12, (micro_size, rank)


def all_reduces(folder: str) -> dict[str, int]:
    """Count gloo's all-reduces in 4 updates of 3 micro-batches per rank, after DDP has rebuilt its buckets."""
    settings = dataclasses.replace(config(4), model=dataclasses.replace(MODEL, width=128, depth=6, patch_size=2))
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    plan = Plan.from_config(settings, SAMPLES, runtime.world_size)
    module = build_model(settings.model, classes=5, channels=1, image_size=12, seed=0)
    updater = build_updater(module, settings, plan, runtime)
    images = Stream(
        all_of(source()),
        plan,
        Preprocessing(12, (0.5,), (0.25,)),
        AugmentConfig(),
        runtime,
        workers=0,
        drop_path_depth=6,
    )
    for position in range(2):
        updater.update(images.window(position), plan.micro_batches_per_rank, plan.weight(position))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for position in range(2, 6):
            updater.update(images.window(position), plan.micro_batches_per_rank, plan.weight(position))
    calls = sum(event.count for event in profile.key_averages() if event.key == "gloo:all_reduce")
    size, buckets = runtime.all_reduce_cost(updater.model)
    runtime.end()
    parameters = sum(p.numel() for p in module.parameters())
    return {
        "calls": calls,
        "buckets": buckets,
        "bytes": size,
        "parameters": parameters,
        "window": plan.micro_batches_per_rank,
    }


def test_gradients_are_reduced_once_per_update(tmp_path: Path) -> None:
    for result in run_world(2, all_reduces, tmp_path, ""):
        assert result["window"] == 3
        assert result["buckets"] >= 2
        assert result["calls"] == 4 * result["buckets"]
        assert result["bytes"] == 4 * result["parameters"]


@pytest.fixture
def runtime() -> Any:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def batches(plan: Plan, runtime: Runtime, position: int) -> list[Batch]:
    return [in_float64(batch) for batch in stream(plan, runtime).window(position)]


def broken(plan: Plan, runtime: Runtime, position: int) -> list[Batch]:
    window = batches(plan, runtime, position)
    return [dataclasses.replace(window[0], images=window[0].images * torch.nan), *window[1:]]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_update_with_a_gradient_that_is_not_finite_changes_nothing(runtime: Runtime, optimizer: Any) -> None:
    settings = config(8, name=optimizer, lr=0.01)
    plan = Plan.from_config(settings, SAMPLES, 1)
    module = model()
    updater = build_updater(module, settings, plan, runtime)

    # The very first update is the one in which masking would leave momentum uninitialised.
    before = copy.deepcopy(module.state_dict())
    updater.update(broken(plan, runtime, 0), plan.micro_batches_per_rank, GLOBAL)
    updater.finish_previous()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (updater.state.position, updater.state.applied_updates, updater.state.skipped_updates) == (1, 0, 1)
    assert updater.schedule.updates == 0
    updater.update(batches(plan, runtime, 1), plan.micro_batches_per_rank, GLOBAL)
    updater.update(broken(plan, runtime, 2), plan.micro_batches_per_rank, GLOBAL)
    updater.update(batches(plan, runtime, 3), plan.micro_batches_per_rank, GLOBAL)
    updater.finish_previous()
    assert (updater.state.position, updater.state.applied_updates, updater.state.skipped_updates) == (4, 2, 2)
    assert updater.schedule.updates == 2

    # The two good updates without the broken ones give the same weights and moments, bit for bit.
    other_module = model()
    other = build_updater(other_module, settings, plan, runtime)
    other.update(batches(plan, runtime, 1), plan.micro_batches_per_rank, GLOBAL)
    other.update(batches(plan, runtime, 3), plan.micro_batches_per_rank, GLOBAL)
    other.finish_previous()
    for name, value in other_module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    for actual, expected in zip(updater.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(actual[slot], expected[slot]) for slot in expected if expected[slot] is not None)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.01), ("sgd", 1.0)])
def test_the_average_counts_applied_updates_alone(runtime: Runtime, optimizer: str, lr: float) -> None:
    settings, decay = config(8, name=optimizer, lr=lr), 0.24
    plan = Plan.from_config(settings, SAMPLES, 1)
    module = model()
    average = EMA(module, decay)
    updater = build_updater(module, settings, plan, runtime, average)
    expected = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    applied = 0
    for position, fine in enumerate([False, True, True, False, True, False, False, True]):
        before = {name: value.clone() for name, value in average.tensors().items()}
        window = batches(plan, runtime, position) if fine else broken(plan, runtime, position)
        updater.update(window, plan.micro_batches_per_rank, GLOBAL)
        actual = average.tensors()
        if not fine:
            assert actual.keys() == before.keys()
            assert all(torch.equal(actual[name], before[name]) for name in actual), position
            continue
        applied += 1
        d = min(decay, applied / (9 + applied))
        for name, live in module.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * live.numpy()
            np.testing.assert_allclose(actual[name].numpy(), expected[name], rtol=1e-6, atol=1e-9)
    distance = max((actual[name] - live).abs().max().item() for name, live in module.state_dict().items())
    assert distance > 1e-3
    updater.finish_previous()
    assert (applied, updater.state.applied_updates, updater.state.skipped_updates) == (4, 4, 4)

    # The four good ones alone give the same average, bit for bit; and without an average, the same weights.
    weights = copy.deepcopy(module.state_dict())
    for kind in (EMA, None):
        other_module = model()
        other_average = kind(other_module, decay) if kind is not None else None
        other = build_updater(other_module, settings, plan, runtime, other_average)
        for position in (1, 2, 4, 7):
            other.update(batches(plan, runtime, position), plan.micro_batches_per_rank, GLOBAL)
        assert all(torch.equal(weights[name], value) for name, value in other_module.state_dict().items())
        if other_average is not None:
            alone = other_average.tensors()
            assert all(torch.equal(alone[name], value) for name, value in average.tensors().items())


class LostIn:
    """A loss that is `value` on one rank for some micro-batches and finite elsewhere; its derivative stays finite."""

    def __init__(self, loss: Loss, rank: int, micro_batches: set[int], value: float, *, fillers: bool = False) -> None:
        """micro_batches: their numbers on that rank, from 0, over all updates. fillers: only in slots of weight 0."""
        self.loss, self.rank, self.micro_batches = loss, rank, micro_batches
        self.value, self.fillers, self.calls = value, fillers, 0

    def __call__(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        values = self.loss(outputs, batch)
        lost = self.calls in self.micro_batches and int(os.environ.get("RANK", "0")) == self.rank
        self.calls += 1
        where = batch.weights == 0 if self.fillers else torch.ones_like(batch.weights, dtype=torch.bool)
        return values.masked_fill(where & lost, self.value)


def lose_on_one_rank(folder: str, optimizer: str, average: bool) -> list[Any]:
    """Make 6 updates of which the second, third and fifth have a loss that is not finite on rank 1 alone."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    settings = config(4, name=optimizer, lr=0.01, clip_norm=0.0)
    plan = Plan.from_config(settings, SAMPLES, runtime.world_size)
    assert plan.micro_batches_per_rank == 3
    module = model()
    updater = build_updater(module, settings, plan, runtime, EMA(module, 0.5) if average else None)
    images = stream(plan, runtime)
    applied, weights = [], torch.cat([p.detach().flatten() for p in module.parameters()])
    for position, (micro_batch, value) in enumerate(
        [(9, 0), (0, torch.nan), (1, torch.inf), (9, 0), (2, -torch.inf), (9, 0)]
    ):
        updater.loss = LostIn(Loss(settings.loss), 1, {micro_batch}, value)  # type: ignore[assignment]
        window = [in_float64(batch) for batch in images.window(position)]
        updater.update(window, plan.micro_batches_per_rank, plan.weight(position))
        before, weights = weights, torch.cat([p.detach().flatten() for p in module.parameters()])
        applied.append(not torch.equal(before, weights))
    updater.finish_previous()
    loss, _, weight = updater.take_sums()
    state = updater.state
    runtime.end()
    counts = [
        state.position,
        state.applied_updates,
        state.skipped_updates,
        state.last_skipped,
        updater.schedule.updates,
    ]
    return [applied, counts, weight, bool(np.isfinite(loss)), weights.isfinite().all().item(), weights.sum().item()]


@pytest.mark.parametrize(("optimizer", "average"), [("adamw", True), ("sgd", False)])
def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(
    optimizer: str, average: bool, tmp_path: Path
) -> None:
    first, second = run_world(2, lose_on_one_rank, tmp_path, "", optimizer, average)
    assert first == second
    assert first[:5] == [
        [True, False, False, True, False, True],
        [6, 3, 3, [2, 3, 5], 3],
        3 * GLOBAL,  # the updates that were applied count, and those alone
        True,
        True,
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loss_that_is_not_finite_skips_an_update_whose_gradient_is_finite(runtime: Runtime, optimizer: str) -> None:
    settings = config(8, name=optimizer, lr=0.01, clip_norm=0.0)
    plan = Plan.from_config(settings, SAMPLES, 1)
    module, other_module = model(), model()
    updater = build_updater(module, settings, plan, runtime)
    updater.loss = LostIn(updater.loss, 0, {0}, torch.nan)  # type: ignore[assignment]
    losses = updater.accumulate(batches(plan, runtime, 0), plan.micro_batches_per_rank, GLOBAL, spread_nan=False)
    assert torch.stack(losses).isnan().tolist() == [[True] * 8, [False] * 8, [False] * 8]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    updater.optimizer.zero_grad()
    assert np.isnan(updater.take_sums()[0])
    updater.loss.calls = 0  # type: ignore[attr-defined]
    updater.update(batches(plan, runtime, 0), plan.micro_batches_per_rank, GLOBAL)
    updater.finish_previous()
    assert (updater.state.applied_updates, updater.state.skipped_updates) == (0, 1)
    assert all(torch.equal(value, other_module.state_dict()[name]) for name, value in module.state_dict().items())
    assert updater.take_sums() == (0, 0, 0)


def test_slots_of_weight_0_may_have_any_loss(runtime: Runtime) -> None:
    settings = config(8)
    plan = Plan.from_config(settings, SAMPLES, 1)
    gradients, sums = [], []
    for value in (0.0, torch.nan, torch.inf):
        module = model()
        updater = build_updater(module, settings, plan, runtime)
        updater.loss = LostIn(updater.loss, 0, {2}, value, fillers=True)  # type: ignore[assignment]
        losses = updater.accumulate(batches(plan, runtime, 1), plan.micro_batches_per_rank, GLOBAL)
        assert losses[2].isfinite().sum() == (8 if value == 0 else 5)
        gradients.append([p.grad for p in module.parameters()])
        sums.append(updater.take_sums())
    assert sums[0] == sums[1] == sums[2]
    for others in gradients[1:]:
        for mine, expected in zip(others, gradients[0], strict=True):
            assert mine is not None
            assert expected is not None
            assert torch.equal(mine, expected)


@pytest.mark.parametrize(
    ("skipped", "stops_at"),
    [
        ([1, 2, 3, 4], 4),
        ([3, 4, 5, 7], 7),  # 4 of the 5 updates 3 … 7
        ([1, 3, 5, 7], 7),  # 4 of the 7 updates 1 … 7
        ([1, 3, 6, 8], 8),  # 4 of the last 8
        ([1, 3, 6, 9, 12], None),  # 4 of the last 9 at most
        ([1, 2, 3, 11, 12, 13], None),
    ],
)
def test_half_of_the_last_updates_skipped_end_training(
    runtime: Runtime, skipped: list[int], stops_at: int | None
) -> None:
    settings = config(32)
    plan = Plan.from_config(settings, SAMPLES, 1)
    updater = build_updater(model(), settings, plan, runtime, max_bad_updates=4)
    good, bad = batches(plan, runtime, 0), broken(plan, runtime, 0)
    ended = None
    for number in range(1, 15):
        try:
            updater.update(bad if number in skipped else good, 1, GLOBAL)
            updater.finish_previous()
        except DivergedError:
            ended = number
            break
        tail = [n for n in range(number + 1) if n not in skipped][-1]
        assert updater.state.skipped_in_a_row == number - tail
    assert ended == stops_at
    assert updater.state.last_skipped == [number for number in skipped if number <= (stops_at or 14)][-4:]
    again = TrainState.from_dict(updater.state.to_dict())
    assert (again, again.skipped_in_a_row) == (updater.state, updater.state.skipped_in_a_row)


def test_fp16s_scaler_finds_its_scale_within_the_default_bound(runtime: Runtime) -> None:
    """The scale halves at each skipped update, from accelerate's 65536: 19 of them leave 1/8."""
    settings = config(32)
    plan = Plan.from_config(settings, SAMPLES, 1)
    updater = build_updater(model(), settings, plan, runtime)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    runtime._accelerator.scaler = scaler
    good, bad = batches(plan, runtime, 0), broken(plan, runtime, 0)
    for _ in range(19):
        updater.update(bad, 1, GLOBAL)
    updater.update(good, 1, GLOBAL)
    updater.finish_previous()
    assert scaler.get_scale() == 2.0**-3
    assert (updater.state.applied_updates, updater.state.skipped_updates) == (1, 19)


def test_each_update_uses_the_schedules_rate(runtime: Runtime) -> None:
    settings = config(32, lr=0.5)
    plan = Plan.from_config(settings, SAMPLES, 1)
    updater = build_updater(model(), settings, plan, runtime)
    rates = []
    for position in range(5):
        updater.update(batches(plan, runtime, position), plan.micro_batches_per_rank, GLOBAL)
        rates.append(updater.optimizer.param_groups[0]["lr"])
    updater.finish_previous()
    expected = [0.25, 0.5] + [0.25 * (1 + np.cos(np.pi * u / 58)) for u in range(3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert updater.schedule.updates == 5


def test_the_whole_gradient_is_clipped(runtime: Runtime) -> None:
    settings = config(8, clip_norm=0.01, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    settings = dataclasses.replace(settings, schedule=ScheduleConfig(warmup="0 updates"))
    plan = Plan.from_config(settings, SAMPLES, 1)
    module = model()
    before = copy.deepcopy(module.state_dict())
    updater = build_updater(module, settings, plan, runtime)
    updater.update(batches(plan, runtime, 0), plan.micro_batches_per_rank, GLOBAL)
    moved = torch.cat([(module.state_dict()[name] - before[name]).flatten() for name in before]).norm()
    assert updater.grad_norm > 0.1
    torch.testing.assert_close(moved.item(), 0.01, rtol=1e-4, atol=0)


def test_fp16s_scaler_backs_off_and_nothing_else_changes(runtime: Runtime) -> None:
    settings = config(8)
    plan = Plan.from_config(settings, SAMPLES, 1)
    module = model()
    updater = build_updater(module, settings, plan, runtime)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    runtime._accelerator.scaler = scaler
    window = batches(plan, runtime, 0)
    updater.update(
        [dataclasses.replace(batch, images=batch.images * torch.inf) for batch in window],
        plan.micro_batches_per_rank,
        GLOBAL,
    )
    updater.finish_previous()
    assert scaler.get_scale() == 2.0**7
    assert (updater.state.applied_updates, updater.state.skipped_updates) == (0, 1)
    updater.update(window, plan.micro_batches_per_rank, GLOBAL)
    updater.finish_previous()
    scaled = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert (updater.state.applied_updates, updater.state.skipped_updates) == (1, 1)

    runtime._accelerator.scaler = None
    plain_module = model()
    plain = build_updater(plain_module, settings, plan, runtime)
    plain.update(window, plan.micro_batches_per_rank, GLOBAL)
    for name, value in plain_module.named_parameters():
        torch.testing.assert_close(scaled[name], value.detach(), rtol=1e-12, atol=1e-15)

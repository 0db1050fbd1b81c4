"""Arrays that travel together arrive as they were, a micro-batch takes two transfers, and ahead it is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import EvaluationStream, Stream, reads_in_a_thread
from vit_dist.data.transfer import copy_together
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import resolve_preprocessing


def test_arrays_arrive_with_their_shapes_types_and_values() -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "labels": np.arange(5),
        "flips": np.array([True, False, True]),
        "boxes": generator.integers(0, 9, (3, 4))[:, ::2],
        "empty": np.zeros((0, 4), np.int64),
        "weights": generator.random((2, 3), np.float32),
        "bytes": np.arange(7, dtype=np.uint8),
    }
    transfers: list[Tensor] = []

    def copy(tensor: Tensor) -> Tensor:
        transfers.append(tensor)
        return tensor.clone()

    copied = copy_together(arrays, copy)
    assert len(transfers) == 1
    assert list(copied) == list(arrays)
    for name, array in arrays.items():
        assert torch.equal(copied[name], torch.from_numpy(np.ascontiguousarray(array)))
        assert copied[name].dtype == torch.from_numpy(np.empty(0, array.dtype)).dtype


def digits(augment: AugmentConfig, micro_size: int = 8) -> tuple[Stream, Runtime]:
    config = Config(batch=BatchConfig(global_size=8, micro_size=micro_size), augment=augment)
    data = open_data(config.data)
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    plan = Plan.from_config(config, len(data.splits["train"]), 1)
    stream = Stream(
        data.splits["train"], plan, resolve_preprocessing(config, data), config.augment, runtime, workers=0,
        classes=10, drop_path_depth=3,
    )  # fmt: skip
    return stream, runtime


@pytest.mark.parametrize(
    "augment",
    [
        {},
        {"rotate": 10.0, "flip": 0.5, "mixup": 0.2, "cutmix": 1.0, "erasing": 0.5},
        {"shift": 1, "flip": 0.5, "erasing": 0.9, "erasing_mode": "pixel"},
    ],
    ids=["none", "warp, mix, erase", "shift, flip, noise"],
)
def test_a_micro_batch_takes_two_transfers(augment: dict[str, float]) -> None:
    stream, runtime = digits(AugmentConfig(**augment))  # type: ignore[arg-type]
    transfers: list[Tensor] = []

    def copy(tensor: Tensor) -> Tensor:
        transfers.append(tensor)
        return tensor

    runtime.to_device = copy  # type: ignore[method-assign]
    (batch,) = stream.window(0)
    assert batch.drop_path is not None
    assert batch.drop_path.shape == (8, 3, 2)
    assert len(transfers) == 2
    stream.close()
    runtime.end()


@pytest.mark.parametrize(
    ("recipe", "channels", "micro_batches"),
    [("digits", 1, 1), ("cifar10_fast", 3, 1), ("imagenet_vit_s16_90ep", 3, 8), ("imagenet_deit3_s16", 3, 16)],
)
def test_an_update_of_a_recipe_takes_two_transfers_a_micro_batch(
    recipe: str, channels: int, micro_batches: int
) -> None:
    in_workers = {"augment.auto": "", "augment.crop_min": 0, "augment.color_jitter": 0}
    batch = {"batch.global_size": 4 * micro_batches, "batch.micro_size": 4, "train.duration": "2 updates"}
    config = Config.load(recipe, {**in_workers, **batch, "schedule.warmup": "1 updates"})
    generator = np.random.default_rng(0)
    source = MemorySource(generator.integers(0, 256, (80, channels, 32, 32), np.uint8), np.arange(80) % 10)
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    plan = Plan.from_config(config, len(source), 1)
    preprocessing = Preprocessing(32, (0.5,) * channels, (0.5,) * channels)
    stream = Stream(
        all_of(source), plan, preprocessing, config.augment, runtime, workers=0, classes=10, drop_path_depth=12
    )
    sizes: list[int] = []

    def copy(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    runtime.to_device = copy  # type: ignore[method-assign]
    assert len(list(stream.window(0))) == micro_batches
    assert len(sizes) == 2 * micro_batches
    assert sizes.count(4 * channels * 32 * 32) == micro_batches
    runtime.end()


@pytest.mark.gpu
def test_batches_that_a_gpu_gets_are_those_of_a_cpu() -> None:
    """Pixels up to rounding; all else exactly, however far the GPU is behind."""
    augment = AugmentConfig(flip=0.5, mixup=0.2, cutmix=1.0, erasing=0.5)
    generator = np.random.default_rng(0)
    source = MemorySource(generator.integers(0, 256, (256, 3, 64, 64), np.uint8), np.arange(256) % 10)
    config = Config(
        batch=BatchConfig(global_size=128, micro_size=16), augment=augment, schedule=ScheduleConfig(warmup="0 updates")
    )
    plan = Plan.from_config(config, 256, 1)
    found = []
    for device in ("cpu", "cuda"):
        runtime = Runtime(RunConfig(device=device), "fp32")  # type: ignore[arg-type]
        stream = Stream(
            all_of(source), plan, Preprocessing(64, (0.5,) * 3, (0.5,) * 3), augment, runtime, workers=0, classes=10,
            drop_path_depth=3,
        )  # fmt: skip
        assert stream.copies.ahead == (device == "cuda")
        matrix = torch.randn(4096, 4096, device=runtime.device) if device == "cuda" else torch.zeros(1, 1)
        batches = []
        for position in range(3):
            for batch in stream.window(position):
                for _ in range(20):  # work that the device has not done when the next batch is copied
                    torch.mm(matrix, matrix)
                batches.append(batch)
        found.append(batches)
        stream.close()
        runtime.end()
    assert len(found[0]) == len(found[1]) == 24
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here.images, there.images.cpu(), atol=1e-5)
        for name in ("targets", "weights", "ids", "drop_path"):
            assert torch.equal(getattr(here, name), getattr(there, name).cpu())


def test_batches_made_ahead_are_the_same() -> None:
    augment = AugmentConfig(rotate=10.0, mixup=0.2, erasing=0.5, erasing_mode="pixel")
    found = []
    for ahead in (False, True):
        stream, runtime = digits(augment, micro_size=4)
        assert not stream.copies.ahead
        stream.copies.ahead = ahead
        found.append([batch for position in range(5) for batch in stream.window(position)])
        stream.close()  # and begins anew where it is asked to
        found[-1] += list(stream.window(9))
        stream.close()
        runtime.end()
    assert len(found[0]) == len(found[1]) == 12
    for here, there in zip(*found, strict=True):
        assert here.seed == there.seed
        for name in ("images", "targets", "weights", "ids", "drop_path"):
            assert torch.equal(getattr(here, name), getattr(there, name))


def test_worker_processes_are_read_in_a_thread_and_files_are_not(image_folder: Path) -> None:
    subset = read_folder(image_folder).splits["val"]
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    batches = []
    for workers in (0, 1):
        stream = EvaluationStream(
            subset, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), runtime, batch_size=4, workers=workers
        )
        assert reads_in_a_thread(stream.reader, stream._workers) == bool(workers)
        stream.copies.ahead = bool(workers)
        batches.append([tuple(part.clone() for part in batch) for batch in stream])
        stream.close()
    runtime.end()
    assert len(batches[0]) == -(-len(subset) // 4)
    for here, there in zip(*batches, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))

"""Arrays that travel together arrive as they were, a micro-batch takes two transfers, and ahead it is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.open import open_data
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

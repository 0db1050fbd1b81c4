"""All augmentation at once: the same batches and runs however they are split, stopped and gone on with."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import custom_losses
from tests.processes import run_world
from vit_dist import Config, UserError, train
from vit_dist.config.fields import RunConfig
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.splits import Subset
from vit_dist.data.stream import Stream
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.status import status
from vit_dist.runtime.runtime import Runtime

EVERYTHING: dict[str, Any] = {
    "model.drop_path": 0.2,
    "augment.auto": "rand-m9-mstd0.5-inc1",
    "augment.color_jitter": 0.3,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.erasing": 0.5,
    "augment.erasing_mode": "pixel",
    "augment.repeats": 2,
    "augment.rotate": 10,
    "augment.translate": 0.1,
    "augment.scale": 0.1,
    "augment.shift": 1,
    "augment.flip": 0.5,
    "loss.label_smoothing": 0.1,
    "optimizer.layer_decay": 0.8,
    "train.ema": 0.9,
}
SMALL: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 4,
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.05,
    "schedule.warmup": "5 updates",
    "train.duration": "60 updates",
    "data.workers": 0,
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}
UPDATES = 7
SIDES: list[tuple[bool, int]] = []


def digits(folder: Path, **more: Any) -> Config:
    values = {**SMALL, "batch.global_size": 48, "batch.micro_size": 16, "log.every": "1 updates"}
    values |= {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("digits", {**values, "run.dir": str(folder)})


def pictures(folder: Path, images: Path, **more: Any) -> Config:
    values = {
        **SMALL,
        **EVERYTHING,
        "data.root": str(images),
        "data.image_size": 16,
        "model.patch_size": 8,
        "batch.global_size": 43,
        "batch.micro_size": 16,
    }
    values |= {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("folder", {**values, "run.dir": str(folder)})


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def streams_of(config: Config, runtimes: list[Any], workers: int) -> list[Stream]:
    data = read_folder(Path(config.data.root))
    train_split: Subset = data.splits["train"]
    plan = Plan.from_config(config, len(train_split), runtimes[0].world_size)
    preprocessing = Preprocessing(16, data.mean, data.std)
    return [
        Stream(train_split, plan, preprocessing, config.augment, runtime, workers=workers, classes=3, drop_path_depth=2)
        for runtime in runtimes
    ]


def rows_of(micro_batches: list[Batch]) -> list[list[Any]]:
    """Return for each real slot its id, SHA-256 of its pixels, its targets and its drop-path draws, exactly."""
    rows = []
    for batch in micro_batches:
        assert batch.drop_path is not None
        for slot in torch.nonzero(batch.weights).flatten().tolist():
            pixels = hashlib.sha256(batch.images[slot].numpy().tobytes()).hexdigest()
            draws = batch.drop_path[slot].numpy().tobytes().hex()
            rows.append([int(batch.ids[slot]), pixels, batch.targets[slot].tolist(), draws])
    return rows


def walked(config: Config, runtimes: list[Any], workers: int) -> list[list[list[Any]]]:
    """Return the rows of each global batch, in the order of its slots."""
    streams = streams_of(config, runtimes, workers)
    actual = []
    for position in range(UPDATES):
        windows = [list(stream.window(position)) for stream in streams]
        actual.append(rows_of([batch for of_all_ranks in zip(*windows, strict=True) for batch in of_all_ranks]))
    for stream in streams:
        stream.close()
    return actual


@pytest.fixture(scope="module")
def expected(image_folder: Path) -> list[list[list[Any]]]:
    """Return the rows of one process whose micro-batches hold a whole global batch."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    try:
        return walked(pictures(Path("unused"), image_folder, batch__micro_size=44), [runtime], 0)
    finally:
        runtime.end()


def test_the_recipe_under_test_uses_every_augmentation(expected: list[list[list[Any]]]) -> None:
    assert [len(rows) for rows in expected] == [43] * UPDATES
    for rows in expected:
        ids, pixels, targets, draws = zip(*rows, strict=True)
        # Over the end of an epoch a sample may come with its next pass too.
        assert 18 <= len(set(ids)) <= 22
        assert len(set(pixels)) == len(set(draws)) == 43
        np.testing.assert_allclose(np.sum(targets, 1), 1, atol=1e-6)
        assert sum(max(target) < 1 for target in targets) > 15
        # The last of an odd number stays unmixed.
        assert max(targets[42]) == 1
    assert len({row[1] for rows in expected for row in rows}) == 43 * UPDATES
    assert all(field in Config().fields() and value != Config().fields()[field] for field, value in EVERYTHING.items())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("micro_size", [16, 64])
def test_batches_are_bit_identical_for_every_split_worker_count_and_start(
    runtime: Runtime,
    image_folder: Path,
    expected: list[list[list[Any]]],
    micro_size: int,
    world: int,
    workers: int,
) -> None:
    config = pictures(Path("unused"), image_folder, batch__micro_size=micro_size)
    ranks = [
        SimpleNamespace(rank=rank, world_size=world, device=runtime.device, to_device=runtime.to_device)
        for rank in range(world)
    ]
    # What was drawn before from the generators of the process changes nothing.
    torch.manual_seed(micro_size + world)
    np.random.seed(micro_size + world)
    assert walked(config, ranks, workers) == expected


def batches(images: str) -> list[list[list[Any]]]:
    """Return, in a world of real processes, this rank's rows of each global batch."""
    config = pictures(Path("unused"), Path(images))
    runtime = Runtime(config.run, "fp32")
    [stream] = streams_of(config, [runtime], 0)
    rows = [[rows_of([batch]) for batch in stream.window(position)] for position in range(UPDATES)]
    runtime.end()
    return rows


def test_two_real_processes_make_the_same_batches(
    image_folder: Path, tmp_path: Path, expected: list[list[list[Any]]]
) -> None:
    ranks = run_world(2, batches, tmp_path, str(image_folder))
    for position in range(UPDATES):
        # Of three micro-batches, and one of fillers.
        dealt = [ranks[number % 2][position][number // 2] for number in range(4)]
        assert [row for rows in dealt for row in rows] == expected[position]


def train_digits(folder: str, micro_size: int) -> None:
    settings = {name.replace(".", "__"): value for name, value in EVERYTHING.items()}
    train(digits(Path(folder), **settings, batch__micro_size=micro_size))


def test_two_real_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    run_world(2, train_digits, tmp_path / "logs", str(tmp_path / "two"), 16)
    train_digits(str(tmp_path / "one"), 16)
    train_digits(str(tmp_path / "large"), 64)
    histories = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two", "large")}
    lines = {name: [line for line in history if line["kind"] == "train"] for name, history in histories.items()}
    assert histories["two"][0]["world_size"] == 2
    for name in ("two", "large"):
        for field in ("loss", "grad_norm"):
            actual, curve = ([line[field] for line in lines[which]] for which in (name, "one"))
            assert len(curve) == 60
            np.testing.assert_allclose(actual, curve, rtol=1e-5 if field == "loss" else 1e-4)
        assert [line["lr"] for line in lines[name]] == [line["lr"] for line in lines["one"]]
    # There is no class that a mixed image is of.
    assert {line["top1"] for recorded in lines.values() for line in recorded} == {None}
    assert all(0 < line["loss"] < 3 for line in lines["one"])
    for line in histories["one"]:
        assert line["kind"] != "eval" or 0 <= line["top1"] <= 100


def end_files(folder: Path) -> dict[str, bytes]:
    last = sorted((folder / "checkpoints").glob("update_*"))[-1]
    return {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def stopped_and_gone_on(config: Config, forward: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Train with a real SIGTERM during the loss, then again to the end; return the update it stopped after."""
    custom_losses.forwards = 0
    monkeypatch.setenv("SIGNAL", "SIGTERM")
    monkeypatch.setenv("SIGNAL_AT", str(forward))
    handler = signal.getsignal(signal.SIGTERM)
    assert train(config).stopped
    assert signal.getsignal(signal.SIGTERM) is handler
    update = int(status(config.folder)["update"])
    monkeypatch.setenv("SIGNAL_AT", "0")
    assert not train(config).stopped
    return update


SIGNALLING = {
    "loss__name": "tests.custom_losses:signalling",
    "batch__global_size": 27,
    "train__duration": "40 updates",
    "evaluate__every": "15 updates",
}


@pytest.fixture(scope="module")
def uninterrupted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(pictures(folder, image_folder, **SIGNALLING))
    return end_files(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_everything_stopped_in_the_middle_ends_bit_identical(
    workers: int,
    image_folder: Path,
    tmp_path: Path,
    uninterrupted: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = pictures(tmp_path / "run", image_folder, **SIGNALLING, data__workers=workers)
    # Two micro-batches an update, and one pass before the run that asks whether the loss takes mixed targets.
    assert stopped_and_gone_on(config, 2 * 23, monkeypatch) == 23
    actual = end_files(tmp_path / "run")
    assert list(actual) == ["ema.safetensors", "model.safetensors", "optimizer.safetensors"]
    assert actual == uninterrupted
    assert actual["ema.safetensors"] != actual["model.safetensors"]
    starts = [x["update"] for x in read_metrics(tmp_path / "run" / "metrics.jsonl") if x["kind"] == "start"]
    assert starts == [0, 23]


def test_top1_of_train_lines_is_a_number_where_nothing_is_mixed_and_mirrored_digits_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = digits(tmp_path / "run", augment__flip=0.5, augment__erasing=0.5, train__duration="6 updates")
    run = train(config)
    values = [line["top1"] for line in run.history if line["kind"] == "train"]
    assert len(values) == 6
    # So many of 48.
    assert all(value * 48 / 100 == pytest.approx(round(value * 48 / 100)) for value in values)
    assert (
        "  note: augment.flip: flipping digits makes them unreadable: set augment.flip 0\n" in capsys.readouterr().out
    )
    train(digits(tmp_path / "plain", train__duration="5 updates"))
    assert "mirrored" not in capsys.readouterr().out


class Watched(nn.Module):
    """A small network for any image size that records its inputs."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 16, 4, 4)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2] == images.shape[3]
        if len(images) > 1:
            SIDES.append((self.training, images.shape[2]))
        logits: Tensor = self.head(self.patches(images).relu().mean((2, 3)))
        return logits


def watched(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """Imported by its path below."""
    return Watched(classes, channels)


def test_a_run_trains_at_its_sizes_in_turn_and_evaluates_at_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {
        "model__name": "tests.data.augmentation.test_exact:watched",
        "loss__name": "tests.custom_losses:signalling",
        "data__image_size": 16,
        "augment__sizes": ["8 for 40%", "12 for 10 updates"],
        "augment__mixup": 0.8,
        "augment__erasing": 0.25,
        "evaluate__every": "10 updates",
    }
    SIDES.clear()
    train(digits(tmp_path / "whole", **more))
    # Three micro-batches an update; 40 % of 60 are 24.
    shown = [side for training, side in SIDES if training]
    assert shown == [8] * 3 * 24 + [12] * 3 * 10 + [16] * 3 * 26
    assert {side for training, side in SIDES if not training} == {16}
    assert sum(not training for training, _ in SIDES) >= 7
    # Stopped where the size changes.
    SIDES.clear()
    config = digits(tmp_path / "stopped", **more)
    assert stopped_and_gone_on(config, 3 * 24, monkeypatch) == 24
    assert [side for training, side in SIDES if training] == shown
    assert end_files(config.folder) == end_files(tmp_path / "whole")


def test_the_vit_takes_other_image_sizes(tmp_path: Path) -> None:
    sizes = {"data__image_size": 16, "augment__sizes": ["8 for 3 updates", "12 for 2 updates"]}
    run = train(digits(tmp_path / "run", **sizes, train__duration="8 updates"))
    assert [line["update"] for line in run.history if line["kind"] == "train"] == list(range(1, 9))
    with pytest.raises(UserError) as caught:
        train(digits(tmp_path / "long", **sizes, train__duration="4 updates", schedule__warmup="0%"))
    assert str(caught.value) == "augment.sizes: 5 updates are longer than the run of 4: shorten them"
    assert not (tmp_path / "long").exists()


def numbers_only(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of class numbers, imported by its path below."""
    return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("mixing", [{"augment__mixup": 0.8}, {"augment__cutmix": 1.0}])
def test_a_loss_of_class_numbers_is_refused_with_mixed_targets(tmp_path: Path, mixing: dict[str, float]) -> None:
    name = "tests.data.augmentation.test_exact:numbers_only"
    with pytest.raises(UserError) as caught:
        train(digits(tmp_path / "run", **mixing, loss__name=name))
    assert str(caught.value) == (
        f"{next(iter(mixing)).replace('__', '.')}: loss.name {name} takes class numbers alone, not mixed "
        "probabilities: use cross_entropy or bce, or set augment.mixup and augment.cutmix to 0"
    )
    assert not (tmp_path / "run").exists()
    assert not train(digits(tmp_path / "run", loss__name=name, train__duration="5 updates")).stopped

"""Samples that cannot be read: the run ends, or others are drawn in their place and evaluations leave them out."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processes import run_world
from vit_dist.config.config import Config
from vit_dist.config.fields import AugmentConfig, BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.data import workers as workers_module
from vit_dist.data.bad_samples import BadSamples
from vit_dist.data.batch import Batch
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.decode import EncodedImage
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.splits import Subset, all_of
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.errors import UserError
from vit_dist.inference.evaluation import evaluate
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.run import train

PREPROCESSING = Preprocessing(13, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
AUGMENT = AugmentConfig(crop_min=0.35, flip=0.5, shift=2, erasing=0.5, mixup=0.4)
# Numbers of bad files among the 60 of train and the 21 of val.
BAD_TRAIN, BAD_VAL = (3, 21, 22, 47), (0, 9, 20)


@pytest.fixture
def damaged_folder(image_folder: Path, tmp_path: Path) -> Path:
    """Return a folder of 60 + 21 images, of which seven are a pipe, a folder, a dead link, or damaged."""
    folder = tmp_path / "pictures"
    shutil.copytree(image_folder, folder)
    for split, numbers in (("train", BAD_TRAIN), ("val", BAD_VAL)):
        for kind, number in enumerate(numbers):
            path = files(folder, split).paths[number]
            content = path.read_bytes()
            path.unlink()
            if kind == 0:
                path.write_bytes(content[:200])
            elif kind == 1 and split == "train":
                path.write_bytes(b"")
            else:
                path.write_bytes(content[:40] + bytes(99))
    return folder


def files(folder: Path, split: str) -> FileSource:
    source = read_folder(folder).splits[split].source
    assert isinstance(source, FileSource)
    return source


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def as_rank(runtime: Runtime, rank: int, world: int) -> Any:
    return SimpleNamespace(
        rank=rank, world_size=world, device=runtime.device, to_device=runtime.to_device, flags=runtime.flags
    )


def batches_of(
    subset: Subset, runtime: Runtime, world: int, workers: int = 0, on_bad_sample: str = "skip"
) -> list[Batch]:
    """Return all real slots of two epochs, as all ranks of a world read them, in the order of the stream."""
    config = Config(
        run=RunConfig(seed=3),
        augment=AUGMENT,
        batch=BatchConfig(global_size=10, micro_size=4),
        schedule=ScheduleConfig(warmup="0%"),
        train=TrainConfig(duration="2 epochs"),
    )
    plan = Plan.from_config(config, len(subset), world)
    streams = [
        Stream(
            subset, plan, PREPROCESSING, AUGMENT, as_rank(runtime, rank, world), workers=workers,
            on_bad_sample=on_bad_sample, classes=3,
        )
        for rank in range(world)
    ]  # fmt: skip
    batches = []
    for position in range(plan.updates):
        windows = [list(stream.window(position)) for stream in streams]
        batches += [windows[number % world][number // world] for number in range(plan.micro_batches)]
    for stream in streams:
        stream.close()
    return batches


def test_another_sample_is_drawn_in_place_of_a_bad_one_on_any_hardware(
    damaged_folder: Path, runtime: Runtime, capfd: pytest.CaptureFixture[str]
) -> None:
    subset = read_folder(damaged_folder).splits["train"]
    reference = batches_of(subset, runtime, 1)
    bad_paths = [str(files(damaged_folder, "train").paths[number]) for number in BAD_TRAIN]
    err = capfd.readouterr().err
    assert sorted(line.split(":")[0] for line in err.splitlines()) == bad_paths
    assert err.count("; another is drawn in its place") == 4
    read = [index for batch in reference for index in batch.ids[batch.weights > 0].tolist()]
    assert len(read) == 120
    assert not set(read) & set(BAD_TRAIN)
    # Each of the 56 good ones twice, and eight draws in place of bad ones.
    extra = [number for number in range(60) for _ in range(read.count(number) - 2)]
    assert len(extra) == 8
    assert len(set(extra)) > 4
    for world, workers in ((1, 2), (2, 0), (3, 1)):
        others = batches_of(subset, runtime, world, workers)
        for batch, other in zip(reference, others, strict=True):
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.targets, other.targets)
            assert torch.equal(batch.weights, other.weights)
            assert torch.equal(batch.ids, other.ids)


def test_good_samples_are_read_as_if_none_were_skipped(image_folder: Path, runtime: Runtime) -> None:
    subset = read_folder(image_folder).splits["train"]
    skipping, failing = (batches_of(subset, runtime, 1, on_bad_sample=rule) for rule in ("skip", "fail"))
    for batch, other in zip(skipping, failing, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.ids, other.ids)


class Brightness(nn.Module):
    """A model whose logits are the brightness of the channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def evaluated(folder: str, bad: bool) -> list[Any]:
    """Return what evaluation finds on this rank, with several batch sizes and workers."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    subset = read_folder(Path(folder)).splits["val"]
    if not bad:
        subset = subset.take([number for number in range(21) if number not in BAD_VAL])  # type: ignore[arg-type]
    results = []
    for size, workers in ((2, 0), (5, 1), (30, 0)):
        stream = EvaluationStream(
            subset, PREPROCESSING, runtime, batch_size=size, workers=workers, on_bad_sample="skip"
        )
        for _ in range(2):
            result = evaluate(Brightness(), stream, len(subset), runtime, keep=2, bad=stream.bad)
            assert result.predictions is not None
            kept = [result.predictions.index.tolist(), result.predictions.top.tolist()]
            results.append([result.seen, result.bad, result.top1, round(result.loss, 5), kept])
        stream.close()
    runtime.end()
    return results


@pytest.mark.parametrize("world", [1, 2])
def test_an_evaluation_leaves_bad_samples_out_and_counts_them(damaged_folder: Path, tmp_path: Path, world: int) -> None:
    [good] = {
        json.dumps(result) for result in run_world(1, evaluated, tmp_path / "good", str(damaged_folder), False)[0]
    }
    seen, bad, *figures = json.loads(good)
    assert (seen, bad) == (18, 0)
    for results in run_world(world, evaluated, tmp_path / "bad", str(damaged_folder), True):
        assert results == [[18, 3, *figures]] * 6


def test_a_split_of_bad_samples_alone_is_one_line(tmp_path: Path, runtime: Runtime) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
    subset = all_of(FileSource(sorted(tmp_path.iterdir()), torch.arange(3).numpy()))
    stream = EvaluationStream(subset, PREPROCESSING, runtime, batch_size=2, workers=0, on_bad_sample="skip")
    with pytest.raises(UserError, match=r"^data: none of the 3 images to evaluate can be read$"):
        evaluate(Brightness(), stream, 3, runtime, bad=stream.bad)
    with pytest.raises(UserError, match=r"; nor can 100 images be read that were drawn in its place$"):
        batches_of(subset, runtime, 1)


def test_bad_samples_are_named_once_and_some_tens_at_most(capfd: pytest.CaptureFixture[str]) -> None:
    bad = BadSamples(1, "left out")
    for _ in range(2):
        bad.add(f"{number}\x1b.png: is bad" for number in range(25))
    bad.close()
    assert bad.count == 50
    assert capfd.readouterr() == (
        "",
        "".join(f"rank 1: {number}\\x1b.png: is bad; left out\n" for number in range(20))
        + "rank 1: more images cannot be read, which are counted, and not named\n"
        + "rank 1: 25 images could not be read\n",
    )


def config_of(folder: Path, images: str, **overrides: Any) -> Config:
    return Config.load(
        None,
        {
            "run.dir": str(folder), "run.device": "cpu", "run.threads": 1, "data.root": images, "data.image_size": 16,
            "model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch_size": 8, "batch.global_size": 12,
            "batch.micro_size": 6, "train.duration": "10 updates", "schedule.warmup": "0%", "log.every": "4 updates",
            "log.trackers": "none", "log.report": False, **overrides,
        },
    )  # fmt: skip


def trained(folder: str, images: str, workers: int) -> list[Any]:
    run = train(config_of(Path(folder), images, **{"data.workers": workers, "data.on_bad_sample": "skip"}))
    lines = [line for line in run.history if line["kind"] == "train"]
    evaluations = [line for line in run.history if line["kind"] == "eval"]
    return [
        sum(line["bad_samples"] for line in lines),
        [(line["seen"], line["bad"]) for line in evaluations],
        [round(line["loss"], 4) for line in (*lines, *evaluations)],
    ]


def test_a_run_that_skips_is_the_same_with_one_process_and_with_two(damaged_folder: Path, tmp_path: Path) -> None:
    [one] = run_world(1, trained, tmp_path / "1", str(tmp_path / "run 1"), str(damaged_folder), 0)
    assert one[:2] == [2 * len(BAD_TRAIN), [[18, 3]] * 2]
    assert run_world(2, trained, tmp_path / "2", str(tmp_path / "run 2"), str(damaged_folder), 1) == [one, one]


@pytest.mark.skipif(os.name != "posix", reason="has no pipes")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_with_the_name_of_a_file_that_became_a_pipe(
    image_folder: Path, tmp_path: Path, workers: int
) -> None:
    images = tmp_path / "pictures"
    shutil.copytree(image_folder, images)
    data = read_folder(images)
    path = files(images, "train").paths[30]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError) as error:
        train(config_of(tmp_path / "run", str(images), **{"data.workers": workers}), source=data)
    assert str(error.value) == (
        f"{path}: is a named pipe, not a file: remove it; to go on without it: the same command with "
        "--data.on_bad_sample skip (without the file, or with another, it is a new run); vit-dist check finds all such "
        "images, and lists them for --data.leave_out"
    )
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


class Hanging(FileSource):
    """Images of which none comes in a worker after the first ten."""

    def encoded(self, index: int) -> EncodedImage:
        if multiprocessing.parent_process() is not None:
            self.paths[0].with_suffix(".read").open("a").write("x")
            if self.paths[0].with_suffix(".read").stat().st_size > 50:
                time.sleep(1)  # what was read ahead is used up, and the run waits for this image
                os.kill(os.getppid(), signal.SIGTERM)
                signal.pause()
        return super().encoded(index)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
def test_a_run_that_is_asked_to_stop_while_its_storage_hangs_saves_and_stops(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers_module, "_STOP_SECONDS", 0.5)
    images = tmp_path / "pictures"
    shutil.copytree(image_folder, images)
    data = read_folder(images)
    source = files(images, "train")
    data.splits["train"] = all_of(Hanging(source.paths, source.labels))
    start = time.monotonic()
    run = train(config_of(tmp_path / "run", str(images), **{"data.workers": 1}), source=data)
    assert time.monotonic() - start < 20
    assert run.stopped
    assert "data: asked to stop while reading " in capsys.readouterr().out
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"update_{status['update']:08d}").is_dir()

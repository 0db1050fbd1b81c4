"""`batch.micro_size auto`: what is tried and taken, that it leaves no trace, is kept, and where it is refused."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_world
from vit_dist import Config, UserError, train
from vit_dist.config.recipe import read_yaml
from vit_dist.files import read_json
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.training import micro_size
from vit_dist.training.micro_size import Trial, candidates, fastest

VALUES: dict[str, Any] = {
    **{"model.width": 16, "model.depth": 2, "model.heads": 2, "model.drop_path": 0.2, "augment.mixup": 0.2},
    **{"batch.global_size": 24, "batch.micro_size": "auto", "train.duration": "4 updates", "train.ema": 0.9},
    **{"schedule.warmup": "1 updates", "evaluate.every": "2 updates", "log.every": "1 updates", "log.report": False},
    **{"log.trackers": "none", "run.threads": 1, "run.device": "cpu"},
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_size, "_WINDOW", 0.01)


def run(folder: Path, **changes: Any) -> list[float]:
    """Train, and return the loss of each update that the folder has."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    train(Config.load("digits", {**VALUES, "run.dir": str(folder), **names}))
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def size_of(folder: Path) -> tuple[Any, Any]:
    """Return the size in the run's config, and in the plan of its last start."""
    start = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "start"][-1]
    return read_yaml(folder / "config.yaml")["batch"]["micro_size"], start["plan"]["micro_size"]


@pytest.mark.parametrize(
    ("global_size", "world_size", "expected"),
    [(128, 1, [8, 16, 32, 64, 128]), (96, 1, [8, 16, 32, 64, 96]), (64, 4, [8, 16]), (20, 2, [8, 10]), (5, 2, [4])],
)
def test_powers_of_two_are_tried_up_to_all_that_a_process_has(
    global_size: int, world_size: int, expected: list[int]
) -> None:
    config = Config.load("digits", {"batch.global_size": global_size, "batch.micro_size": "auto"})
    assert list(candidates(Plan.from_config(config, 1000, world_size))) == expected


def test_the_fastest_is_taken_and_the_smallest_of_those_that_are_as_fast() -> None:
    assert fastest([Trial(8, 3.0), Trial(16, 2.0), Trial(32, 1.0), Trial(64, 1.5)]).slots == 32
    assert fastest([Trial(8, 3.0), Trial(16, 1.005), Trial(32, 1.0)]).slots == 16


def test_what_was_measured_leaves_no_trace_and_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = run(tmp_path / "auto")
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"batch\.micro_size: \d+ is the fastest here \(cpu, fp32; images/s .*: 8: [\d,]+, 16: [\d,]+", said
    )
    config, planned = size_of(tmp_path / "auto")
    assert config == planned
    assert config in (8, 16, 24)
    assert run(tmp_path / "number", batch__micro_size=config) == losses
    weights = [tmp_path / name / "checkpoints" / "last" / "model.safetensors" for name in ("auto", "number")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_resumed_run_keeps_its_size_and_finds_its_folder_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(Config.load("digits", {**VALUES, "batch.micro_size": 6}))
    assert train(Config.load("digits", VALUES)).folder == first.folder
    longer = Config.load("digits", {**VALUES, "run.dir": str(first.folder), "train.duration": "6 updates"})
    capsys.readouterr()
    train(longer)
    assert size_of(first.folder) == (6, 6)
    assert "micro_size" not in capsys.readouterr().out


def test_it_is_refused_where_it_would_change_the_result(tmp_path: Path) -> None:
    drawn = "draws in each micro-batch: set a number"
    for field in ("model.dropout", "model.attention_dropout"):
        with pytest.raises(UserError) as refused:
            Config.load("digits", {**VALUES, field: 0.1})
        assert str(refused.value) == f"batch.micro_size: auto would change the result: {field} {drawn}"
    with pytest.raises(UserError) as refused:
        Config.from_dict({"batch": {"micro_size": "auto"}, "loss": {"name": "clip"}})
    assert "batch.micro_size: auto is for classifiers, not for loss.name clip: set a number" in str(refused.value)
    args = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
    timm = {**VALUES, "run.dir": str(tmp_path), "model.name": "timm/vit_tiny_patch16_224", "data.image_size": 8}
    for name in ("width", "depth", "heads"):
        timm.pop(f"model.{name}")
    with pytest.raises(UserError, match=r"^batch\.micro_size: auto would change the result, since this model draws"):
        train(Config.load("digits", {**timm, "model.args": {**args, "proj_drop_rate": 0.1}}))
    train(Config.load("digits", {**timm, "model.args": args}))
    assert size_of(tmp_path)[0] in (8, 16, 24)


def test_the_smallest_must_fit_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(micro_size, "_make_passes", no_memory)
    with pytest.raises(UserError) as refused:
        run(tmp_path)
    assert str(refused.value) == (
        "batch.micro_size: not even 8 images fit into the memory: set a smaller model or data.image_size, or "
        "model.checkpoint_blocks true"
    )


def _train_on_rank(folder: str) -> list[Any]:
    run = train(Config.load("digits", {**VALUES, "run.dir": folder}))
    return [line["plan"]["micro_size"] for line in run.history if line["kind"] == "start"]


def test_rank_0_decides_for_all(tmp_path: Path) -> None:
    run_world(2, _train_on_rank, tmp_path / "ranks", str(tmp_path / "run"))
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"
    config, planned = size_of(tmp_path / "run")
    assert config == planned
    assert config in (8, 12)


@pytest.mark.gpu
def test_what_does_not_fit_into_a_gpu_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gc.collect()  # what other tests have left
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 2**28
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        run(tmp_path, run__device="cuda", batch__global_size=65536, model__width=64, model__depth=4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "do not fit into 90% of the memory" in " ".join(capsys.readouterr().out.split())
    assert size_of(tmp_path)[0] < 65536

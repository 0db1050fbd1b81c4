"""What must hold on every device: the first tests to pass on a GPU. They run on the CPU too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vit_dist import Config, train
from vit_dist.files import read_json
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.training import compiling

VALUES: dict[str, Any] = {
    **{"model.width": 32, "model.depth": 2, "model.heads": 2, "model.drop_path": 0.2, "augment.mixup": 0.2},
    **{"augment.shift": 1, "train.ema": 0.9, "batch.global_size": 32, "batch.micro_size": 16},
    **{"train.duration": "8 updates", "schedule.warmup": "1 updates", "evaluate.every": "4 updates"},
    **{"checkpoint.every": "4 updates", "checkpoint.keep": 9, "log.every": "1 updates", "log.trackers": "none"},
    **{"log.report": False, "run.threads": 1, "run.deterministic": True},
}
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def run(folder: Path, device: str, precision: str, **changes: Any) -> list[float]:
    """Train, and return the loss of each update."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    values = {**VALUES, "run.dir": str(folder), "run.device": device, "train.precision": precision, **names}
    train(Config.load("digits", values))
    assert read_json(folder / "status.json")["state"] == "finished"
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def weights(folder: Path, names: tuple[str, ...] = ("model", "ema")) -> list[bytes]:
    return [(folder / "checkpoints" / "last" / f"{name}.safetensors").read_bytes() for name in names]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(device: str, precision: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", device, precision)
    middle = tmp_path / "whole" / "checkpoints" / "update_00000004"
    resumed = run(tmp_path / "resumed", device, precision, run__resume=str(middle))
    assert resumed == whole[4:]
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_losses_are_those_of_the_cpu_within_rounding(device: str, tmp_path: Path) -> None:
    here = run(tmp_path / "here", device, "fp32")
    assert here == pytest.approx(run(tmp_path / "cpu", "cpu", "fp32"), rel=1e-4)
    assert run(tmp_path / "bf16", device, "bf16") == pytest.approx(here, rel=0.05)


@pytest.mark.gpu
def test_compiled_blocks_train_alike_and_resume_exactly(tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager = run(tmp_path / "eager", "cuda", "bf16")
    compiled = run(tmp_path / "compiled", "cuda", "bf16", train__compile="blocks")
    assert read_metrics(tmp_path / "compiled" / "metrics.jsonl")[0]["compiled_graphs"] >= 1
    assert compiled == pytest.approx(eager, rel=0.02)
    middle = tmp_path / "compiled" / "checkpoints" / "update_00000004"
    torch._dynamo.reset()
    resumed = run(tmp_path / "resumed", "cuda", "bf16", train__compile="blocks", run__resume=str(middle))
    assert resumed == compiled[4:]
    assert weights(tmp_path / "resumed") == weights(tmp_path / "compiled")


@pytest.mark.gpu
def test_auto_replays_small_models_and_compiles_long_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(name: str) -> dict[str, Any]:
        run(tmp_path / name, "cuda", "bf16")
        line = read_metrics(tmp_path / name / "metrics.jsonl")[0]
        return {"graph": line["replays_graph"], "compiled": line["compiled_graphs"] > 0}

    assert started("small") == {"graph": True, "compiled": False}
    monkeypatch.setattr(compiling, "SMALL_FLOPS", 0.0)
    assert started("short") == {"graph": False, "compiled": False}
    monkeypatch.setattr(compiling, "LEAST_FLOPS", 1.0)
    assert started("long") == {"graph": False, "compiled": True}
    monkeypatch.setattr(compiling, "SMALL_FLOPS", 1e12)
    assert started("small and long") == {"graph": True, "compiled": True}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment__mixup": 0.0, "model__dropout": 0.1, "augment__sizes": ["4 for 50%"], "model__position": "sincos"},
        {"optimizer__name": "sgd", "model__layer_scale": 0.1, "batch__micro_size": 32, "train__ema": 0.0},
    ],
    ids=["mixed", "dropout and sizes", "one micro-batch"],
)
def test_replayed_passes_train_bit_equal_and_resume_exactly(
    precision: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    eager = run(tmp_path / "eager", "cuda", precision, train__compile="none", **changes)
    replayed = run(tmp_path / "replayed", "cuda", precision, train__compile="graph", **changes)
    assert read_metrics(tmp_path / "replayed" / "metrics.jsonl")[0]["replays_graph"]
    assert replayed == eager
    names = ("model",) if "train__ema" in changes else ("model", "ema")
    assert weights(tmp_path / "replayed", names) == weights(tmp_path / "eager", names)
    middle = tmp_path / "replayed" / "checkpoints" / "update_00000004"
    resumed = run(tmp_path / "resumed", "cuda", precision, train__compile="graph", run__resume=str(middle), **changes)
    assert resumed == replayed[4:]
    assert weights(tmp_path / "resumed", names) == weights(tmp_path / "replayed", names)


@pytest.mark.gpu
def test_fp16_trains(tmp_path: Path) -> None:
    losses = run(tmp_path / "run", "cuda", "fp16", train__duration="40 updates")
    assert losses[-1] < losses[0]

"""A run with a compiled model: the losses of one without, exact resume, and a compiler that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_world
from vit_dist import Config, train
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.models.compile import graphs
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.training.compiling import difference

VALUES: dict[str, Any] = {
    **{"model.width": 16, "model.depth": 2, "model.heads": 2, "model.drop_path": 0.2, "model.dropout": 0.1},
    **{"batch.global_size": 12, "batch.micro_size": 6, "train.duration": "6 updates", "schedule.warmup": "1 updates"},
    **{"evaluate.every": "3 updates", "log.every": "1 updates", "log.trackers": "none", "log.report": False},
    **{"run.device": "cpu", "run.threads": 1, "checkpoint.every": "3 updates", "checkpoint.keep": 9},
}


def run(folder: Path, **changes: Any) -> list[float]:
    """Train, and return the loss of each update."""
    names = {name.replace("__", "."): value for name, value in changes.items()}
    train(Config.load("digits", {**VALUES, "run.dir": str(folder), **names}))
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_a_compiled_run_has_the_losses_of_one_that_is_not_and_resumes_exactly(tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager = run(tmp_path / "eager")  # auto: not on a CPU
    assert read_metrics(tmp_path / "eager" / "metrics.jsonl")[0]["compiled_graphs"] == 0
    compiled = run(tmp_path / "compiled", train__compile="blocks")
    assert compiled == pytest.approx(eager, rel=1e-4)
    start = read_metrics(tmp_path / "compiled" / "metrics.jsonl")[0]
    assert start["compiled_graphs"] >= 1
    assert graphs() > start["compiled_graphs"]  # that of the evaluations, which are compiled as well
    middle = tmp_path / "compiled" / "checkpoints" / "update_00000003"
    again = tmp_path / "again"
    resumed = run(again, train__compile="blocks", run__resume=str(middle))
    assert resumed == compiled[3:]
    assert weights(again) == weights(tmp_path / "compiled")


def losses_of_rank(folder: str) -> list[float]:
    losses = run(Path(folder), train__compile="blocks")
    assert read_metrics(Path(folder) / "metrics.jsonl")[0]["compiled_graphs"] >= 1
    return losses


def test_two_processes_that_compile_have_the_losses_of_one(tmp_path: Path) -> None:
    torch._dynamo.reset()
    one = run(tmp_path / "one", train__compile="blocks")
    first, second = run_world(2, losses_of_rank, tmp_path / "world", str(tmp_path / "two"))
    assert first == second == pytest.approx(one, rel=1e-6)


def test_a_compiler_that_fails_leaves_the_model_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    run(tmp_path / "run", train__compile="blocks", model__width=24)
    monkeypatch.undo()
    run(tmp_path / "eager", model__width=24)
    output = capsys.readouterr().out
    assert "train.compile: the compiler failed: " in output
    assert ": the model is not compiled" in output
    assert weights(tmp_path / "run") == weights(tmp_path / "eager")
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"


def test_a_graph_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^train\.compile: graph needs a CUDA GPU: set auto or none$"):
        run(tmp_path / "run", train__compile="graph")


def test_a_compiled_model_may_differ_by_rounding_only() -> None:
    assert difference((2.0, 5.0), (2.0001, 4.9999), "fp32") == ""
    assert difference((2.0, 5.0), (2.03, 5.09), "bf16") == ""
    found = difference((2.0, 5.0), (2.001, 5.0), "fp32")
    assert found == "the loss of one micro-batch is 2.001 compiled and 2 not"
    found = difference((2.0, 5.0), (2.0, float("nan")), "bf16")
    assert found == "the gradient norm of one micro-batch is nan compiled and 5 not"

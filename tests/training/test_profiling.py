"""A profile changes nothing of what a run learns, and says where the time of its updates went."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_world
from tests.runs import QUIET
from vit_dist import Config, train
from vit_dist.config.fields import RunConfig
from vit_dist.files import read_json
from vit_dist.plan.plan import Plan
from vit_dist.report.page import write_report
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.time_use import PARTS
from vit_dist.training.profiling import UpdateProfile, profiled_updates

VALUES: dict[str, Any] = {
    **{"model.width": 16, "model.depth": 1, "model.heads": 2, "model.drop_path": 0.2, "augment.mixup": 0.2},
    **{"batch.global_size": 16, "batch.micro_size": 4, "train.duration": "6 updates", "train.ema": 0.9},
    **{"schedule.warmup": "1 updates", "evaluate.every": "4 updates", "checkpoint.every": "6 updates", **QUIET},
}


def run(folder: str, profile: str = "", **changes: Any) -> list[int]:
    """Train, and return the bytes of the last weights and their average."""
    train(Config.load("digits", {**VALUES, "run.dir": folder, "log.profile": profile, **changes}))
    last = Path(folder) / "checkpoints" / "last"
    return [*(last / "model.safetensors").read_bytes(), *(last / "ema.safetensors").read_bytes()]


def in_turn(folder: str) -> list[list[int]]:
    return [run(f"{folder}/plain"), run(f"{folder}/profiled", "3 updates from 3")]


def profile_line(folder: Path) -> dict[str, Any]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "profile"]
    assert len(lines) == 1
    summary = read_json(folder / "summary.json")["profile"]
    assert summary == {name: value for name, value in lines[0].items() if name not in ("kind", "time")}
    return lines[0]


@pytest.mark.parametrize("world", [1, 2])
def test_a_profiled_run_ends_with_the_same_weights_and_its_parts_add_up(world: int, tmp_path: Path) -> None:
    if world == 1:
        plain, profiled = in_turn(str(tmp_path))
    else:
        plain, profiled = run_world(world, in_turn, tmp_path / "world", str(tmp_path))[0]
    assert plain == profiled
    folder = tmp_path / "profiled"
    line = profile_line(folder)
    assert (line["update"], line["first"], line["updates"], line["on_device"]) == (5, 3, 3, False)
    assert tuple(line["parts"]) == PARTS
    assert sum(line["parts"].values()) == pytest.approx(line["update_seconds"])
    for name in ("forward", "backward", "optimizer", "augmentation", "data wait"):
        assert line["parts"][name] > 0
    assert (line["parts"]["communication"] > 0) == (world == 2)
    assert len(line.get("ranks", [])) == (2 if world == 2 else 0)
    assert all(tuple(parts) == PARTS for parts in line.get("ranks", []))
    with gzip.open(folder / line["trace"], "rt", encoding="utf-8") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"]]
    micro_batches = 4 // world
    assert (names.count("update"), names.count("backward")) == (3, 3 * micro_batches)
    assert "paused" in names  # the evaluation after update 4
    assert not (tmp_path / "plain" / "profile").exists()
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Where the time of an update went" in page
    assert f"{1e3 * line['parts']['backward']:,.2f}</td>" in page
    assert line["trace"] in page
    assert ("by process" in page) == (world == 2)


@pytest.mark.gpu
@pytest.mark.parametrize("compile_mode", ["none", "blocks", "graph"])
def test_a_gpu_s_time_is_that_of_its_kernels(compile_mode: str, tmp_path: Path) -> None:
    changes = {"run.device": "cuda", "run.deterministic": True, "train.compile": compile_mode}
    assert run(f"{tmp_path}/plain", **changes) == run(f"{tmp_path}/run", "3 updates from 3", **changes)
    line = profile_line(tmp_path / "run")
    parts = line["parts"]
    assert line["on_device"]
    assert sum(parts.values()) == pytest.approx(line["update_seconds"])
    for name in ("pass",) if compile_mode == "graph" else ("forward", "backward"):
        assert parts[name] > 0
    assert parts["optimizer"] > 0
    assert parts["other"] < 0.1 * line["update_seconds"]  # the launch of all kernels was found
    assert line["kernels"] > 50
    assert line["copies"] >= 2 * 4  # two for each micro-batch
    assert "The GPU computed for" in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_a_profile_ends_with_the_run(tmp_path: Path) -> None:
    run(str(tmp_path / "run"), "9 updates from 5")
    assert profile_line(tmp_path / "run")["updates"] == 2


def test_a_profile_that_is_not_complete_leaves_nothing(tmp_path: Path) -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    profile = UpdateProfile(range(3, 5), runtime, tmp_path)
    profile.before(2)
    assert not torch.autograd._profiler_enabled()
    profile.before(3)
    assert torch.autograd._profiler_enabled()
    assert not profile.is_due(4, over=False)
    assert profile.is_due(4, over=True)
    profile.close()
    assert not torch.autograd._profiler_enabled()
    assert not profile.is_due(5, over=True)
    assert list(tmp_path.iterdir()) == []
    runtime.end()


def test_a_profile_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    profile = UpdateProfile(range(3, 4), runtime, tmp_path)
    profile.before(3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    line, problem = profile.finish(4)
    assert line == {}
    assert problem.startswith("log.profile: FileNotFoundError: ")
    runtime.end()


def test_it_begins_after_ten_updates_or_as_late_as_the_run_allows() -> None:
    def plan(updates: int) -> Plan:
        config = Config.from_dict({"train": {"duration": f"{updates} updates"}})
        return Plan.from_config(config, 1000, 1)

    assert profiled_updates("", 0, plan(50)) == (range(0), "")
    assert profiled_updates("5 updates", 0, plan(50)) == (range(10, 15), "")
    assert profiled_updates("5 updates", 30, plan(50)) == (range(40, 45), "")
    assert profiled_updates("5 updates", 48, plan(50)) == (range(48, 50), "")
    assert profiled_updates("5 updates", 0, plan(8)) == (range(3, 8), "")
    assert profiled_updates("1 update from 50", 30, plan(50)) == (range(49, 50), "")
    for text in ("1 updates from 51", "5 updates from 30"):
        note = "log.profile: nothing is profiled: this run makes updates 31 to 50"
        assert profiled_updates(text, 30, plan(50)) == (range(0), note)


def test_a_trace_that_cannot_be_written_is_said_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(str(folder))
    (folder / "profile").write_text("in its place")
    run(str(folder), "1 update from 8", **{"train.duration": "8 updates"})
    assert f"{folder / 'profile' / 'updates_8_to_8.json.gz'}: cannot be written: " in capsys.readouterr().out
    assert read_json(folder / "status.json")["state"] == "finished"
    assert profile_line(folder)["trace"] is None

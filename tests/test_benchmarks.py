"""Benchmarks: sides take turns, ratios are those of the rounds, and small forms run on a CPU and are exact there."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def timing() -> Any:
    return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "timing.py")))


def test_sides_take_turns_in_an_order_that_changes(timing: Any) -> None:
    calls: list[str] = []

    def side(name: str) -> Any:
        return timing.Side(lambda: calls.append(name) or 2, lambda: calls.append(f"before {name}"))

    times = timing.alternate("title", {name: side(name) for name in "abc"}, rounds=3, warm_up=1)
    order = [call for call in calls if len(call) == 1]
    assert "".join(order) == "abcbcacababc"
    assert calls[:2] == ["before a", "a"]
    assert {name: len(rounds) for name, rounds in times.rounds.items()} == {"a": 3, "b": 3, "c": 3}


def test_no_round_starts_after_the_time_but_the_first_that_counts(timing: Any) -> None:
    times = timing.alternate("title", {"a": timing.Side(lambda: 1)}, rounds=5, seconds=-1)
    assert len(times.rounds["a"]) == 1


def test_seconds_are_of_one_piece_of_work(timing: Any) -> None:
    times = timing.alternate("title", {"a": timing.Side(lambda: 1e12)}, rounds=1)
    assert 0 <= times.rounds["a"][0].clock < 1e-9


def test_a_ratio_is_the_median_of_the_rounds_ratios(timing: Any) -> None:
    ours = [timing.Seconds(cpu=1.0, clock=2.0), timing.Seconds(2.0, 2.0), timing.Seconds(4.0, 2.0)]
    theirs = [timing.Seconds(cpu=2.0, clock=1.0), timing.Seconds(3.0, 2.0), timing.Seconds(4.0, 6.0)]
    times = timing.Times("title", "an image", {"ours": ours, "theirs": theirs})
    assert times.ratio("theirs", "cpu") == (1.25, 1.5, 1.75)
    assert times.ratio("theirs", "clock") == (0.75, 1.0, 2.0)
    assert times.median("theirs", "cpu") == 3.0
    values = json.loads(json.dumps(times.to_json()))
    assert values["ms"]["ours"] == {"cpu": 2000.0, "clock": 2000.0}
    assert values["ratio"] == {"theirs": {"cpu": [1.25, 1.5, 1.75], "clock": [0.75, 1.0, 2.0]}}
    assert values["rounds"] == 3
    assert times.table().splitlines()[2:] == [
        "| ours | 2000.000 | 2000.000 |  |  |",
        "| theirs | 3000.000 | 2000.000 | 1.500 (1.250, 1.750) | 1.000 (0.750, 2.000) |",
    ]


def test_results_are_written_with_what_made_them(timing: Any, tmp_path: Path) -> None:
    timing.write(tmp_path / "out.json", {"found": 1})
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["found"] == 1
    assert {"command", "machine", "torch"} <= set(written)
    timing.write(None, {"found": 1})


def run(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_gpu_checks_is_exact_on_a_cpu(tmp_path: Path) -> None:
    parts = "machine,rates,augmentation,exact_update_float64,skipped_updates"
    out = tmp_path / "gpu.json"
    printed = run("benchmarks/gpu.py", "--device", "cpu", "--small", "--only", parts, "--out", str(out))
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert found == json.loads(out.read_text(encoding="utf-8"))
    assert set(found) == {*parts.split(","), "seconds"}
    assert list(found["augmentation"].values()) == ["bit-equal"] * 11
    assert found["exact_update_float64"]["holds_1e-12"]
    assert list(found["skipped_updates"].values()) == ["ok"] * 3


def test_peers_compares_all_sides(tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    run("benchmarks/peers.py", "--device", "cpu", "--small", "--rounds", "1", "--cases", "files", "--out", str(out))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["missing"] == {}
    assert list(found["files"]["ms"]) == ["vit_dist", "timm, defaults", "timm, best flags", "accelerate"]
    assert all(ratio["cpu"][1] > 0 for ratio in found["files"]["ratio"].values())

"""The table of a profile: a GPU's and a host's, of one process and of several, whole and damaged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.run_folder.handwritten import make_run, start_line, train_line
from vit_dist.report.page import write_report
from vit_dist.report.profile import last_profile
from vit_dist.run_folder.record import read_run

PARTS = {
    **{
        "forward": 0.02,
        "backward": 0.04,
        "optimizer": 0.004,
        "augmentation": 0.002,
        "communication": 0.011,
        "pass": 0.0,
    },
    **{"data wait": 0.001, "other": 0.0, "host": 0.021, "pass": 0.0, "gaps": 0.001},
}


def line(**changes: Any) -> dict[str, Any]:
    values = {
        **{"kind": "profile", "time": 3.0, "update": 20, "epoch": 1.0, "samples": 320, "first": 11, "updates": 10},
        **{"update_seconds": 0.1, "parts": PARTS, "on_device": True, "trace": "profile/updates_11_to_20.json.gz"},
        **{"kernels": 1234.0, "copies": 2.0},
    }
    return {**values, **changes}


def run_with(folder: Path, *lines: dict[str, Any]) -> Path:
    return make_run(folder, [start_line(0, 0.0), train_line(10, 1.0), *lines], state="stopped")


def test_a_gpu_s_profile_in_words_and_numbers(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", line(update_seconds=0.2, first=1), line())
    profile = last_profile(read_run(folder))
    assert profile is not None
    assert profile.sentence == (
        "Updates 11 to 20, which a profiler slowed down, took 100.0 ms each. The GPU computed for 66% of that: 1,234 "
        "kernels an update, and 2 copies from the host."
    )
    assert [(part.name, round(part.share, 6), part.milliseconds, part.processes) for part in profile.parts] == [
        ("forward", 20, "20.00", ""),
        ("backward", 40, "40.00", ""),
        ("optimizer", 4, "4.00", ""),
        ("augmentation", 2, "2.00", ""),
        ("communication", 11, "11.00", ""),
        ("data wait", 1, "1.00", ""),
        ("gaps", 1, "1.00", ""),
        ("host", 21, "21.00", ""),
    ]
    assert [remedy.partition(":")[0] for remedy in profile.remedies] == ["communication", "host"]
    page = re.sub(r"\s+", " ", write_report(folder).read_text(encoding="utf-8"))
    assert profile.sentence in page
    assert '<td>backward</td><td>40.0 %</td><td class="bar"><i style="width:40.0%"></i></td><td>40.00</td>' in page
    assert "<code>profile/updates_11_to_20.json.gz</code>" in page


def test_a_host_s_profile_of_several_processes(tmp_path: Path) -> None:
    ranks = [PARTS, {**PARTS, "backward": 0.05}]
    folder = run_with(tmp_path / "run", line(on_device=False, ranks=ranks, trace=None))
    profile = last_profile(read_run(folder))
    assert profile is not None
    assert profile.sentence == "Updates 11 to 20, which a profiler slowed down, took 100.0 ms each."
    assert {part.name: part.processes for part in profile.parts}["backward"] == "40.00 to 50.00"
    assert [remedy.partition(":")[0] for remedy in profile.remedies] == ["communication"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<th>by process</th>" in page
    assert "perfetto" not in page


@pytest.mark.parametrize(
    "damage",
    [
        {"parts": {"forward": "nan"}}, {"parts": []}, {"update_seconds": -1}, {"update_seconds": 0}, {"kernels": None},
        {"on_device": 1}, {"trace": 3}, {"first": 0.5}, {"updates": "x"},
    ],
)  # fmt: skip
def test_a_damaged_profile_is_left_out(damage: dict[str, Any], tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", line(**damage))
    assert last_profile(read_run(folder)) is None
    assert "Where the time of an update went" not in write_report(folder).read_text(encoding="utf-8")


def test_damaged_numbers_of_processes_are_left_out(tmp_path: Path) -> None:
    for number, ranks in enumerate(("x", [1, 2], [{"forward": "x"}])):
        profile = last_profile(read_run(run_with(tmp_path / str(number), line(ranks=ranks))))
        assert profile is not None
        assert {part.processes for part in profile.parts} == {""}

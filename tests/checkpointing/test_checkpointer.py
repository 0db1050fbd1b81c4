"""The Checkpointer: files, links, pruning, errors on all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.checkpointing.states import state_values
from tests.processes import run_world
from tests.run_folder.full_disk import small_disk
from vit_dist.checkpointing.checkpoint import open_checkpoint
from vit_dist.checkpointing.checkpointer import Checkpointer
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.checkpointing.state import Best, TrainState
from vit_dist.config.config import Config
from vit_dist.config.fields import RunConfig
from vit_dist.errors import UserError
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def checkpointer(folder: Path, runtime: Runtime, keep: int = 2) -> Checkpointer:
    config = Config.load("digits")
    plan = Plan.from_config(config, 1294, 1)
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(config.schedule, optimizer, plan, 0.1)
    fixed = ("precision", "world_size", "classes", "preprocessing", "channels", "plan", "config", "versions")
    about = {name: state_values()[name] for name in fixed}
    return Checkpointer(folder / "checkpoints", keep, runtime, model, optimizer, schedule, None, TrainState(), about)


def save(saver: Checkpointer) -> dict[str, Any]:
    """Save, wait until it is written and return the values of the `save` line."""
    saver.save()
    saver.wait()
    ((position, values),) = saver.take_written()
    assert position == saver.state.position
    return values


def test_last_and_best_are_pointed_to_and_old_checkpoints_pruned(runtime: Runtime, tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, runtime)
    values: dict[str, Any] = {}
    for position in (1, 2, 3, 4):
        saver.state.position = position
        if position == 1:
            saver.state.best = Best(1, "loss", 0.5)
        values = save(saver)
        assert pointed_to(saver.folder, "last") == saver.folder / f"update_{position:08d}"
        assert pointed_to(saver.folder, "best") == saver.folder / "update_00000001"
    assert {path.name for path in saver.folder.glob("update_*")} == {f"update_0000000{n}" for n in (1, 3, 4)}
    assert values.keys() == {"path", "seconds", "stall_seconds", "bytes"}
    assert values["path"] == "checkpoints/update_00000004"
    last = tmp_path / values["path"]
    assert values["bytes"] == sum(path.stat().st_size for path in last.iterdir() if path.name != "manifest.json")
    assert 0 < values["stall_seconds"] < values["seconds"]


def test_state_json_holds_the_counters_and_what_never_changes(runtime: Runtime, tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, runtime)
    saver.state = TrainState(position=7, applied_updates=0, skipped_updates=7, tracker_run_id="x")
    state = json.loads((tmp_path / save(saver)["path"] / "state.json").read_text())
    assert state["format"] == 2
    assert TrainState.from_dict(state["train_state"]) == saver.state
    assert state["schedule"] == {"updates": 0}
    assert (state["scaler"], state["classes"]) == ({}, ["a", "b"])
    assert open_checkpoint(tmp_path / "checkpoints" / "update_00000007").position == 7


def fail_to_save(folder: str) -> str:
    """Save where a file is in the way, and return the text of the error."""
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    saver = checkpointer(Path(folder), runtime)
    try:
        save(saver)
    except UserError as error:
        return str(error)
    finally:
        runtime.end()
    return "no error"


def test_a_checkpoint_that_cannot_be_written_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("not a folder")
    errors = run_world(2, fail_to_save, tmp_path / "logs", str(tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"{folder}: a checkpoint cannot be written: ")
    assert "File exists" in errors[0]


def test_a_checkpoint_that_the_disk_has_no_room_for_is_not_begun(runtime: Runtime, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        saver = checkpointer(disk, runtime)
        saver.model = nn.Linear(300, 100)
        saver.optimizer = torch.optim.SGD(saver.model.parameters(), lr=0.1)
        with pytest.raises(UserError) as caught:
            saver.save()
        assert str(caught.value) == (
            f"{disk}/checkpoints: a checkpoint cannot be written: 118 KiB are needed and 100 KiB free: make room, then "
            "run it again"
        )
        assert list((disk / "checkpoints").iterdir()) == []


def test_a_failure_of_the_thread_reaches_the_next_flags(runtime: Runtime, tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, runtime)
    saver.folder.mkdir()
    (saver.folder / ".writing_update_00000000").write_text("in the way")
    saver.save()
    with pytest.raises(UserError, match=r"checkpoints: a checkpoint cannot be written: \[Errno 17\] File exists"):
        saver.wait()
    assert runtime.flags.agreed().failed
    assert saver.take_written() == []


def test_the_copy_is_made_before_the_next_step_may_change_it(runtime: Runtime, tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, runtime)
    weights = saver.model.weight.detach().clone()
    saver.save()
    saver.wait_for_copy()
    with torch.no_grad():
        saver.model.weight.add_(1)
    saver.wait()
    path = tmp_path / "checkpoints" / "update_00000000" / "model.safetensors"
    assert torch.equal(load_file(path)["weight"], weights)


def test_a_checkpoint_that_is_given_up_leaves_nothing(runtime: Runtime, tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, runtime)
    saver.close(wait=False)  # from here on none is wanted
    saver.save()
    with pytest.raises(UserError, match="given up"):
        saver.wait()
    assert list(saver.folder.iterdir()) == []

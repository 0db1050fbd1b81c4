"""The best weights and the start are rank 0's word: a rank that does not see them ends all of them, in one line."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests import custom_losses
from tests.processes import run_world
from tests.runs import DIGITS, QUIET
from tests.runtime.namespaces import hide
from vit_dist import Config, UserError, train
from vit_dist.run_folder.status import status

VALUES = {
    **{**DIGITS, **QUIET, "batch.micro_size": 24, "train.duration": "6 updates", "evaluate.every": "3 updates"},
    **{"checkpoint.every": "3 updates", "loss.name": "tests.custom_losses:acting"},
}
pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="hiding a folder takes root")


def answers(folder: str) -> list[str]:
    """Train; rank 1 does not see the checkpoints at the end, nor when it starts again. Return the error of each."""
    path = Path(folder)
    other = os.environ["RANK"] == "1"
    custom_losses.forwards = 0
    custom_losses.actions = {6: lambda: hide(path / "checkpoints")} if other else {}
    found = []
    for _ in range(2):
        try:
            train(Config.load("digits", {**VALUES, "run.dir": folder}))
            found.append("trained")
        except UserError as error:
            found.append(str(error))
    return found


def test_a_rank_that_does_not_see_the_checkpoints_ends_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended, again = run_world(2, answers, tmp_path / "results", str(folder))
    assert ended == again
    best, start = ended
    missing = f"process 1 on {socket.gethostname()}: {folder}/checkpoints/update_00000006 is not there: "
    assert best == start == f"{missing}a run's folder must be on storage that all machines share"
    assert status(folder)["state"] == "failed"
    assert not (folder / "summary.json").exists()

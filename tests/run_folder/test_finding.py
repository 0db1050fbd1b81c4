"""The run that is meant by a path at which there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_dist.errors import UserError
from vit_dist.inference.load import load_model
from vit_dist.run_folder.finding import newest_run, run_folders
from vit_dist.run_folder.record import read_run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs, of which pets-b was written to last; the working directory."""
    for age, name in enumerate(["pets-b", "pets-a", "my birds"]):
        file = tmp_path / "runs" / name / "metrics.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("")
        os.utime(file, (1000 - age, 1000 - age))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_found(here: Path) -> None:
    assert [folder.name for folder in run_folders(here)] == ["my birds", "pets-a", "pets-b"]
    assert newest_run(Path("runs")) == Path("runs/pets-b")
    assert newest_run(Path("runs"), "my") == Path("runs/my birds")
    assert newest_run(Path("nothing")) is None


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("runs", ": name one of the runs in it, as runs/pets-b"),
        (".", ": name one of the runs in it, as runs/pets-b"),
        ("runs/pets-aa", "; did you mean runs/pets-a?"),
        ("runs/my bird", "; did you mean 'runs/my birds'?"),
        ("runs/pets", "; did you mean runs/pets-b?"),
        ("pets-a", "; did you mean runs/pets-a?"),
        ("runs/zzz", ""),
    ],
)
def test_the_run_that_was_meant_is_named(here: Path, name: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        read_run(Path(name))
    what = "it has no config.yaml" if Path(name).exists() else "no folder is there"
    assert str(caught.value) == f"{name}: not a run's folder: {what}{advice}"
    with pytest.raises(UserError) as caught:
        load_model(name)
    there = Path(name).exists()
    what = " is neither a run's folder with a checkpoint nor a checkpoint"
    missing = ": no run's folder, checkpoint, exported folder or safetensors file is there"
    assert str(caught.value) == f"{name}{what if there else missing}{advice}"

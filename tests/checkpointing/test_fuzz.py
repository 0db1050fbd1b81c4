"""Damaged checkpoints, at random: each is refused in one line, or gives the right answer."""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpointing.mutate import mutate
from tests.checkpointing.states import FIXTURE
from vit_dist import Config, train
from vit_dist.checkpointing.checkpoint import open_checkpoint
from vit_dist.errors import UserError
from vit_dist.inference.load import load_model
from vit_dist.models.forward import eval_mode

# Of format 1, with the same weights.
OLDER = FIXTURE.parents[1] / "format_1" / FIXTURE.name
# Places whose values are the file's own word: another one that is possible gives another model, or another run.
OWN_WORD = re.compile(r"state\.json: (config\.model|optimizer\.(groups|state)|precision)\b|.*, swap$")


@cache
def config_values() -> dict[str, Any]:
    return open_checkpoint(FIXTURE).state.config.to_dict()


def logits(path: Path) -> torch.Tensor:
    """Return what the model at a path answers to images of noise."""
    trained = load_model(str(path))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with eval_mode(trained.model):
        return trained.model(images)


def resumed(path: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights at update 4 of a run that resumes from a path."""
    values = config_values()
    values["run"] = values["run"] | {"dir": str(folder), "resume": str(path)}
    values["log"] = values["log"] | {"level": "warning"}
    train(Config.from_dict(values))
    return load_file(folder / "checkpoints" / "update_00000004" / "model.safetensors")


def outcome(seed: int, folder: Path) -> tuple[str, str]:
    """Damage a checkpoint; return what was changed, and what came of opening, predicting and resuming.

    Raises AssertionError for an answer that is not right.
    """
    folder.mkdir()
    path = folder / FIXTURE.name
    shutil.copytree(OLDER if seed % 5 == 0 else FIXTURE, path)
    what = mutate(path, seed)
    answers = {"predicted": lambda: logits(path), "resumed": lambda: resumed(path, folder / "run")}
    done = []
    for name, answer in answers.items():
        try:
            found = answer()
        except UserError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1, (what, lines)
            assert len(lines[0]) < 2000, what
            assert lines[0].isprintable(), (what, lines)
        else:
            done.append(name)
            if not OWN_WORD.match(what):
                assert is_right(found), (what, name)
    return what, " and ".join(done) or "refused"


def is_right(answer: torch.Tensor | dict[str, torch.Tensor]) -> bool:
    """Return whether an answer is that of the undamaged checkpoint."""
    if isinstance(answer, torch.Tensor):
        return any(torch.equal(answer, logits(FIXTURE / f"{name}.safetensors")) for name in ("model", "ema"))
    return all(torch.equal(answer[name], tensor) for name, tensor in undamaged().items())


@cache
def undamaged() -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        return resumed(FIXTURE, Path(folder) / "run")


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)], ids=["60", "500"])
def test_a_damaged_checkpoint_is_refused_or_right(seeds: range, tmp_path: Path) -> None:
    came = [outcome(seed, tmp_path / str(seed))[1] for seed in seeds]
    assert came.count("refused") > len(seeds) / 2
    assert came.count("predicted and resumed") > 0

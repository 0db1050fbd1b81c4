"""One rule for damaged checkpoints in every command: passed over and named, unless they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpointing.states import copy_fixture, damage, rehash
from tests.cli.commands import command
from vit_dist import UserError
from vit_dist.inference.choose import choose_checkpoint
from vit_dist.inference.load import load_model, load_run_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that was best at 4, then at 6, and is at 8."""
    for position, best in ((4, 4), (6, 6), (8, 6)):
        copy_fixture(tmp_path / "run" / "checkpoints", position, best)
    return tmp_path / "run"


def checkpoint(run: Path, position: int) -> Path:
    return run / "checkpoints" / f"update_{position:08d}"


def chosen(path: Path) -> tuple[int, list[str]]:
    found, notes = choose_checkpoint(path)
    return found.position, notes


def test_the_links_stand_for_what_the_states_say(run: Path) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "best").symlink_to("update_00000004")
    (checkpoints / "last").symlink_to(run.parent)
    assert chosen(run) == chosen(checkpoints) == chosen(checkpoints / "best") == (6, [])
    assert chosen(checkpoints / "last") == (8, [])
    assert chosen(checkpoint(run, 4)) == (4, [])


def test_the_note_says_what_is_used_and_why(run: Path) -> None:
    newest = damage(checkpoint(run, 8))
    assert chosen(run) == (6, [f"{newest}: not used; update_00000006 is, the best of those that are complete"])
    assert chosen(run / "checkpoints" / "last")[1] == [
        f"{newest}: not used; update_00000006 is, the newest that is complete"
    ]
    first = damage(checkpoint(run, 4))
    assert chosen(run)[0] == 6
    best = damage(checkpoint(run, 6))
    with pytest.raises(UserError) as caught:
        choose_checkpoint(run, "loss.teacher")
    assert str(caught.value) == (
        f"loss.teacher: {run / 'checkpoints'} holds no complete checkpoint: {newest}; {best}; {first}"
    )


def test_a_damaged_best_falls_back_to_the_one_before_it_and_then_to_the_newest(run: Path) -> None:
    best = damage(checkpoint(run, 6), "optimizer.safetensors")
    assert chosen(run) == (4, [f"{best}: not used; update_00000004 is, the best of those that are complete"])
    first = damage(checkpoint(run, 4), "state.json")
    assert chosen(run) == (8, [f"{best}; {first}: not used; update_00000008 is, the newest that is complete"])


def test_a_damaged_checkpoint_that_is_named_itself_is_refused_with_the_complete_ones_beside_it(run: Path) -> None:
    text = damage(checkpoint(run, 6))
    damage(checkpoint(run, 4))
    (checkpoint(run, 8) / "manifest.json").unlink()
    for path in (checkpoint(run, 6), checkpoint(run, 6) / "model.safetensors"):
        with pytest.raises(UserError) as caught:
            load_model(str(path))
        assert str(caught.value) == f"{text}: this checkpoint cannot be used"
    with pytest.raises(UserError) as caught:
        load_run_model(checkpoint(run, 8), "model")
    assert (
        str(caught.value) == f"model: {checkpoint(run, 8) / 'manifest.json'}: missing: this checkpoint cannot be used"
    )
    copy_fixture(run / "checkpoints", 10, 6)
    copy_fixture(run / "checkpoints", 12, 6)
    with pytest.raises(UserError) as caught:
        load_model(str(checkpoint(run, 6)))
    assert str(caught.value) == (
        f"{text}: this checkpoint cannot be used; complete beside it: update_00000010, update_00000012"
    )


@pytest.mark.parametrize("words", [["evaluate"], ["predict"], ["export"]])
def test_every_command_says_which_checkpoint_it_used(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = damage(checkpoint(run, 6), "ema.safetensors")
    result = command(capsys, *words, run, *([tmp_path / "exported"] if words == ["export"] else []))
    note = f"vit-dist: note: {text}: not used; update_00000004 is, the best of those that are complete"
    assert result.code == 0
    assert result.err.splitlines()[0] == note
    if words != ["predict"]:
        assert "EMA weights of update 4" in result.out


def test_python_gets_the_note_with_the_model(run: Path) -> None:
    text = damage(checkpoint(run, 6))
    trained = load_run_model(run, "model")
    assert (trained.update, trained.notes) == (
        4,
        (f"{text}: not used; update_00000004 is, the best of those that are complete",),
    )


@pytest.mark.parametrize("words", [["evaluate"], ["predict"], ["export"]])
def test_a_model_of_nan_answers_nothing(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = checkpoint(run, 6) / "ema.safetensors"
    tensors = load_file(file)
    tensors["head.bias"][1] = torch.nan
    save_file(tensors, file)
    rehash(file.parent)
    out = tmp_path / "exported"
    result = command(capsys, *words, run, *([out] if words == ["export"] else []))
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"vit-dist: {file}: holds values that are NaN or infinite (head.bias): its training diverged, use an earlier "
        "checkpoint\n"
    )
    assert not out.exists()
    assert command(capsys, "evaluate", run, "--weights", "raw").code == 0

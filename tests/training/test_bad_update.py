"""Runs whose numbers go wrong: they end as failed, with what is needed to find out why, and keep what was good."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import custom_losses
from tests.processes import run_world
from tests.runs import QUIET
from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import list_checkpoints, pointed_to
from vit_dist.cli import main
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import with_val
from vit_dist.files import read_json
from vit_dist.inference.load import load_model
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.status import status
from vit_dist.training.bad_update import block_of
from vit_dist.training.replay import replay

FIELDS: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 2,
    "batch.global_size": 32,
    "batch.micro_size": 16,
    "schedule.warmup": "2 updates",
    "train.duration": "60 updates",
    "train.max_bad_updates": 6,
    "evaluate.every": "10 updates",
    "checkpoint.every": "5 updates",
    "checkpoint.keep": 2,
    "log.every": "4 updates",
}


def config(folder: Path, **more: Any) -> Config:
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("digits", {**FIELDS, **QUIET, "run.dir": str(folder), **changes})


def flags(folder: Path, **more: Any) -> list[str]:
    """The same as words of a command."""
    values = {**FIELDS, **QUIET, "run.dir": folder, **{name.replace("__", "."): value for name, value in more.items()}}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def no_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_losses, "forwards", 0)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optimizer__name": "adamw", "optimizer__lr": 1e6, "optimizer__clip_norm": 0.0, "train__ema": 0.9},
        {"optimizer__name": "sgd", "optimizer__lr": 1e6, "optimizer__clip_norm": 0.0},
        {"optimizer__name": "sgd", "optimizer__lr": 1e6, "batch__micro_size": 32},
    ],
    ids=["adamw", "sgd", "sgd, clipped"],
)
def test_a_rate_that_is_far_too_high_ends_as_failed_in_one_line(
    optimizer: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = flags(folder, **optimizer)
    assert main(["train", *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    content = read_json(folder / "bad_update.json")
    update = content["update"]
    assert line.startswith(f"vit-dist: 6 of the last 6 updates were skipped; at update {update} the ")
    clip = "" if "optimizer__clip_norm" not in optimizer else " or set optimizer.clip_norm 1.0"
    assert line.endswith(
        f": lower optimizer.lr (1e+06){clip}; its numbers are in bad_update.json, and the same command with --replay "
        "computes them again"
    )
    assert (status(folder)["state"], status(folder)["reason"]) == ("failed", line.removeprefix("vit-dist: "))
    assert not (folder / "summary.json").exists()
    assert content["skipped_updates"] == list(range(update, update + 6))
    assert content["applied_updates"] == update - 1
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)

    # What made it fail is computed again, with the same numbers, and nothing is written.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["train", *words, "--replay"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"update {update} of {folder}, from ")
    assert printed.rstrip().endswith("the same numbers")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_dump_names_the_samples_of_the_global_batch_and_their_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOST_FROM", "23")  # the first micro-batch of update 12
    settings = config(tmp_path / "run", loss__name="tests.custom_losses:lost", train__ema=0.9)
    with pytest.raises(UserError) as caught:
        train(settings)
    content = read_json(tmp_path / "run" / "bad_update.json")
    assert str(caught.value).startswith(
        "6 of the last 6 updates were skipped; at update 12 the loss was nan in 32 of 32 samples "
        f"({content['samples'][0]['name']}, …): lower optimizer.lr (0.003) or check tests.custom_losses:lost; "
    )
    assert status(tmp_path / "run")["state"] == "failed"
    subset = with_val(open_data(settings.data), settings.data.val_fraction).splits["train"]
    slots = Plan.from_config(settings, len(subset), 1).slots(11, 0)
    ids = [sample["index"] for sample in content["samples"]]
    assert ids[:16] == subset.indices[slots.index].tolist()
    assert [sample["name"] for sample in content["samples"]] == [f"train/{index}" for index in ids]
    assert (len(set(ids)), {sample["loss"] for sample in content["samples"]}) == (32, {"nan"})
    assert (content["update"], content["checkpoint"], content["applied_updates"]) == (
        12,
        "checkpoints/update_00000010",
        11,
    )
    assert (content["precision"], content["loss_scale"], content["weights_finite"]) == ("fp32", None, True)
    norms = content["grad_norms"]
    assert list(norms) == ["pos_embed", "patch_embed", "blocks.0", "blocks.1", "fc_norm", "head"]
    assert content["grad_norm"] == 0  # the loss was lost, and its gradient is nothing

    # The checkpoint before it is good, and was not pruned; the best is one whose evaluation was.
    kept = [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert "update_00000010" in kept
    best = pointed_to(tmp_path / "run" / "checkpoints", "best")
    assert best is not None
    assert best.name == "update_00000010"
    trained = load_model(str(tmp_path / "run"))
    assert all(parameter.isfinite().all() for parameter in trained.model.parameters())

    # From that checkpoint, one update is made again.
    monkeypatch.setattr(custom_losses, "forwards", 20)
    assert replay(settings)["samples"] == content["samples"]
    assert custom_losses.forwards == 24
    monkeypatch.setattr(custom_losses, "forwards", 0)
    fine = replay(settings)
    assert all(isinstance(sample["loss"], float) for sample in fine["samples"])
    assert math.isclose(fine["loss"], np.mean([sample["loss"] for sample in fine["samples"]]))
    assert math.isclose(fine["grad_norm"], np.linalg.norm(list(fine["grad_norms"].values())))


def lost_on_one_rank(folder: str, replays: bool, fails: bool = False) -> list[Any]:
    """Train on two ranks; from the first micro-batch of update 12 the loss of rank 1 is NaN. Or replay that.

    fails: rank 1 cannot compute the loss.
    """

    os.environ.update({"LOST_RANK": "1", "LOST_FROM": "12", "LOST_TO": "40"})
    settings = config(Path(folder), loss__name="tests.custom_losses:lost", optimizer__clip_norm=0.0)
    if fails:
        os.environ |= {"LOST_FROM": "none"} if os.environ["RANK"] == "1" else {}
        with pytest.raises(UserError) as caught:
            replay(settings)
        return [str(caught.value)]
    if replays:
        custom_losses.forwards = 10
        return [sample["loss"] for sample in replay(settings)["samples"]]
    with pytest.raises(UserError) as caught:
        train(settings)
    return [str(caught.value)]


def test_all_ranks_end_alike_if_the_loss_of_one_is_not_finite(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = run_world(2, lost_on_one_rank, tmp_path / "train", str(folder), False)
    assert first == second
    assert "6 of the last 6 updates were skipped; at update 12 the loss was nan in 16 of 32 samples" in first[0]
    assert "lower optimizer.lr (0.003), set optimizer.clip_norm 1.0 or check tests.custom_losses:lost" in first[0]
    content = read_json(folder / "bad_update.json")
    losses = [sample["loss"] for sample in content["samples"]]
    assert [isinstance(loss, float) for loss in losses] == [True] * 16 + [False] * 16
    assert content["grad_norm"] > 0
    assert (status(folder)["state"], content["world_size"]) == ("failed", 2)
    first, second = run_world(2, lost_on_one_rank, tmp_path / "replay", str(folder), True)
    assert first == second == losses

    first, second = run_world(2, lost_on_one_rank, tmp_path / "fails", str(folder), True, True)
    assert "invalid literal for int()" in second[0]
    assert first == [f"process 1 on {socket.gethostname()}: {second[0]}"]


def test_a_single_bad_update_is_counted_and_the_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOST_FROM", "11")
    monkeypatch.setenv("LOST_TO", "11")
    run = train(config(tmp_path / "run", loss__name="tests.custom_losses:lost", train__duration="20 updates"))
    assert re.search(r"\n  skipped +1 update whose loss or gradient was not finite\n", capsys.readouterr().out)
    lines = [line for line in run.history if line["kind"] == "train"]
    assert [line["skipped_updates"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert all(isinstance(line["loss"], float) for line in lines)
    assert (status(tmp_path / "run")["state"], run.summary["skipped_updates"]) == ("finished", 1)
    assert not (tmp_path / "run" / "bad_update.json").exists()


@pytest.mark.parametrize("at", [5, 11])
def test_weights_that_are_not_finite_are_never_saved_or_the_best_and_end_as_failed(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One update at a rate of 1e27: the last of the run, or five before it, which are too few to end it."""
    monkeypatch.setenv("EXPLODES_AT", str(at))
    settings = config(
        tmp_path / "run",
        schedule__name="LambdaLR",
        schedule__args={"lr_lambda": "tests.custom_losses:explodes"},
        schedule__warmup="0 updates",
        train__duration="12 updates",
        evaluate__every="3 updates",
        checkpoint__every="1 updates",
    )
    with pytest.raises(UserError) as caught:
        train(settings)
    folder = tmp_path / "run"
    out = capsys.readouterr().out
    if at == 11:
        assert str(caught.value) == "the weights are not finite after the last update, 12: lower optimizer.lr (0.003)"
        assert not (folder / "bad_update.json").exists()
    else:
        assert str(caught.value).startswith(
            "6 of the last 6 updates were skipped; at update 7 the weights were not finite any more: lower "
        )
        assert "val at update 9: the loss is not finite: not a candidate for the best" in out
        assert "update 8: the weights are not finite: no checkpoint is saved" in out
    assert (status(folder)["state"], status(folder)["reason"]) == ("failed", str(caught.value))
    assert [path.name for path in list_checkpoints(folder / "checkpoints")][-2:] == [
        f"update_{number:08}" for number in (at - 1, at)
    ]
    evaluations = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "eval"]
    assert all(isinstance(line["loss"], float) for line in evaluations if line["best"])
    assert [line["best"] for line in evaluations if isinstance(line["loss"], str)] == [False] * (2 if at == 5 else 1)
    assert load_model(str(folder)).update in (3, 6, 9)


@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_a_run_without_one_evaluation_of_a_finite_loss_has_failed(
    val_fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only update leaves weights of about 1e9, which are finite, and so large that the outputs are not."""
    monkeypatch.setenv("EXPLODES_AT", "0")
    monkeypatch.setenv("EXPLODES_BY", "1e12")
    settings = config(
        tmp_path / "run",
        data__val_fraction=val_fraction,
        schedule__name="LambdaLR",
        schedule__args={"lr_lambda": "tests.custom_losses:explodes"},
        schedule__warmup="0 updates",
        train__duration="1 updates",
    )
    with pytest.raises(UserError) as caught:
        train(settings)
    what = "no evaluation of val up to update 1 had a finite loss"
    if not val_fraction:
        what = "the loss on test of the last weights is nan"
    assert str(caught.value) == f"{what}: lower optimizer.lr (0.003)"
    assert (status(tmp_path / "run")["state"], (tmp_path / "run" / "summary.json").exists()) == ("failed", False)


def test_checkpoints_after_skipped_updates_remove_none_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOST_FROM", "9")
    more = {"loss__name": "tests.custom_losses:lost", "batch__micro_size": 32, "evaluate__every": "100%"}
    settings = config(tmp_path / "run", checkpoint__every="1 updates", checkpoint__keep=1, **more)
    for _ in range(2):  # the second time it is resumed from the last of them
        with pytest.raises(UserError):
            train(settings)
        kept = [int(path.name[7:]) for path in list_checkpoints(tmp_path / "run" / "checkpoints")]
        assert kept == [8, 9, 10, 11, 12, 13]


def test_a_run_that_goes_on_counts_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of the updates that are skipped, it ends at the same one."""
    monkeypatch.setenv("LOST_FROM", "9")
    settings = {"loss__name": "tests.custom_losses:lost", "batch__micro_size": 32, "checkpoint__every": "1 updates"}
    with pytest.raises(UserError) as caught:
        train(config(tmp_path / "run", checkpoint__keep=100, **settings))
    checkpoints = {path.name: path for path in list_checkpoints(tmp_path / "run" / "checkpoints")}
    assert list(checkpoints)[-1] == "update_00000013"
    again = config(tmp_path / "again", run__resume=str(checkpoints["update_00000011"]), **settings)
    monkeypatch.setattr(custom_losses, "forwards", 11)
    with pytest.raises(UserError) as resumed:
        train(again)
    assert status(tmp_path / "again")["update"] == status(tmp_path / "run")["update"] == 14
    assert str(resumed.value) == str(caught.value)


def test_replay_without_a_dump_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "run" / "bad_update.json"
    assert main(["train", "--replay", *flags(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        f"vit-dist: {missing}: is not there: --replay takes the flags of a run that failed on its numbers\n"
    )
    missing.parent.mkdir()
    for text in ("", "[]", "{}", '{"update": "x"}'):
        missing.write_text(text)
        assert main(["train", "--replay", *flags(tmp_path / "run")]) == 2
        assert capsys.readouterr().err == f"vit-dist: {missing}: broken: train again, and it is written anew\n"


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn.qkv.weight", "blocks.3"),
        ("layers.0.blocks.11.mlp.fc1.bias", "layers.0"),
        ("patch_embed.proj.weight", "patch_embed"),
        ("cls_token", "cls_token"),
        ("head.weight", "head"),
    ],
)
def test_block_of(name: str, block: str) -> None:
    assert block_of(name) == block

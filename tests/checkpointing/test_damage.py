"""What is wrong with a checkpoint is one line that names the file and what is wrong, however it came about."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpointing.states import change_json, copy_fixture, rehash, state_of
from vit_dist.checkpointing.checkpoint import open_checkpoint, open_whole
from vit_dist.checkpointing.manifest import DamagedCheckpointError
from vit_dist.errors import UserError

Values = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return copy_fixture(tmp_path)


def problem(path: Path) -> str:
    """Return what is said of a damaged checkpoint."""
    with pytest.raises(DamagedCheckpointError) as caught:
        open_whole(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text.removeprefix(f"{path}{os.sep}")


# The manifest


def listed(name: str, entry: object) -> Callable[[Values], Values]:
    return lambda content: content | {"files": content["files"] | {name: entry}}


def without(name: str) -> Callable[[Values], Values]:
    return lambda content: content | {"files": {k: v for k, v in content["files"].items() if k != name}}


HASH = "0" * 64
MANIFESTS: list[tuple[Callable[[Values], object], str]] = [
    (lambda content: [content], "its content must be an object, not a list of 1"),
    (lambda content: {}, "format is missing"),
    (lambda content: {"format": 1}, "files is missing"),
    (lambda content: content | {"files": []}, "files must be an object, not a list of 0"),
    (lambda content: content | {"files": {}}, "files.model.safetensors is missing"),
    (without("optimizer.safetensors"), "files.optimizer.safetensors is missing"),
    (without("state.json"), "files.state.json is missing"),
    (listed("../model.safetensors", {"bytes": 1, "sha256": HASH}), 'files."../model.safetensors" is not one of model.'),
    (listed("/etc/passwd", {"bytes": 1, "sha256": HASH}), 'files."/etc/passwd" is not one of model.safetensors, '),
    (listed("notes.txt", {"bytes": 1, "sha256": HASH}), 'files."notes.txt" is not one of model.safetensors, '),
    (listed("model.safetensors", None), "files.model.safetensors must be an object, not null"),
    (listed("model.safetensors", {"bytes": 4440}), "files.model.safetensors.sha256 is missing"),
    (listed("model.safetensors", {"sha256": HASH}), "files.model.safetensors.bytes is missing"),
    (listed("model.safetensors", {"bytes": "1", "sha256": HASH}), 'must be a whole number of 0 or more, not "1"'),
    (listed("model.safetensors", {"bytes": -1, "sha256": HASH}), "bytes must be a whole number of 0 or more, not -1"),
    (listed("model.safetensors", {"bytes": 1, "sha256": "x"}), 'sha256 must be 64 hex digits, not "x"'),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(MANIFESTS)))
def test_a_manifest_must_list_exactly_the_files_of_a_checkpoint(number: int, path: Path) -> None:
    change, expected = MANIFESTS[number]
    change_json(path, "manifest.json", change)
    assert problem(path).startswith("manifest.json: ")
    assert expected in problem(path)


RAW: list[tuple[bytes, str]] = [
    (b"", "is not JSON: "),
    (b"\xff\xfe", "is not UTF-8"),
    (b"{" * 50, "is not JSON: "),
    (b"[" * 100_000, "is nested too deeply"),
    (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
    (b'{"format": 1, "format": 1}', 'has the key "format" twice'),
    (b'{"files": {"x": 1, "x": 2}}', 'has the key "x" twice'),
    (b'{"format": NaN}', "holds NaN, which is not JSON"),
    (b'{"format": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    (b'{"format": ' + b"9" * 400 + b"}", "must be a whole number of 1 or more, not a number of many digits"),
    (b'{"format": 1e999}', "must be a whole number of 1 or more, not Infinity"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW)))
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_that_no_reader_should_take(name: str, number: int, path: Path) -> None:
    content, expected = RAW[number]
    (path / name).write_bytes(content)
    if name == "state.json":
        rehash(path)
    text = problem(path)
    assert text.startswith(f"{name}: ")
    assert expected in text


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_a_huge_json_file_is_not_read(name: str, path: Path) -> None:
    with (path / name).open("r+b") as file:
        file.truncate(2**26 + 1)
    if name == "state.json":
        rehash(path)
    assert problem(path).startswith(f"{name}: has 67,108,865 bytes, and ")


@pytest.mark.skipif(os.name == "nt", reason="pipes and links are POSIX's")
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "outside", "loop", "gone"])
def test_only_regular_files_inside_the_folder_are_read(kind: str, name: str, path: Path, tmp_path: Path) -> None:
    file = path / name
    shutil.copy(file, tmp_path / name)
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.symlink_to({"device": "/dev/zero", "outside": tmp_path / name, "loop": name}[kind])
    expected = {"pipe": "not a regular file", "folder": "not a regular file", "loop": "missing", "gone": "missing"}
    assert problem(path) == f"{name}: {expected.get(kind, 'a link that leads out of the checkpoint')}"


def test_a_link_inside_the_folder_is_followed(path: Path) -> None:
    (path / "model.safetensors").rename(path / "weights")
    (path / "model.safetensors").symlink_to("weights")
    assert open_whole(path).position == 2


# state.json


def put(place: str, value: object) -> Callable[[Values], Values]:
    """Return a change that sets a dotted place."""

    def change(content: Values) -> Values:
        *parents, name = place.split(".")
        inside = content
        for parent in parents:
            inside = inside[parent]
        inside[name] = value
        return content

    return change


def drop(place: str) -> Callable[[Values], Values]:
    def change(content: Values) -> Values:
        *parents, name = place.split(".")
        inside = content
        for parent in parents:
            inside = inside[parent]
        del inside[name]
        return content

    return change


def plateau(*only: str, rates: object = None, **counters: object) -> Callable[[Values], Values]:
    """Return a change to a run whose rate follows a metric. only: the fields of its schedule's state, if not all."""
    known = {"last_epoch": 1, "best": "inf", "num_bad_epochs": 0, "cooldown_counter": 0}
    schedule = {"updates": 2, "plateau": {**known, **counters}, "rates": rates}

    def change(content: Values) -> Values:
        content["config"]["schedule"] |= {"name": "ReduceLROnPlateau", "args": {"metric": "loss"}}
        return content | {"schedule": {name: schedule[name] for name in only or schedule}}

    return change


SECTIONS = ("train_state", "schedule", "scaler", "optimizer", "precision", "world_size", "classes", "preprocessing",
            "channels", "plan", "config", "versions")  # fmt: skip
COUNTERS = ("position", "applied_updates", "skipped_updates", "train_seconds", "evaluations_without_improvement")
STATES: list[tuple[Callable[[Values], object], str]] = [
    *[(drop(name), f"{name} is missing") for name in SECTIONS],
    *[(put(name, value), f"{name} must be ") for name in SECTIONS for value in (7.5, None, True)],
    *[(drop(f"train_state.{name}"), f"train_state.{name} is missing") for name in COUNTERS],
    *[(put(f"train_state.{name}", v), f"train_state.{name} must be ") for name in COUNTERS for v in (-1, "2", [])],
    (put("train_state.applied_updates", 1), "1 updates applied and 0 skipped do not make its position, 2"),
    (put("train_state.position", 2**60), "train_state.position must be a whole number of 0 or more, not 115292"),
    (lambda state: state | state_of(state, 3, 2), "is of update 3, not of the folder's"),
    (put("train_state.best.update", 3), "train_state.best.update must be a whole number of 0 to 2, not 3"),
    (put("train_state.best.metric", "x"), "train_state.best.metric must be one of top1, "),
    (put("train_state.best.value", "x"), 'train_state.best.value must be a number, not "x"'),
    (put("train_state.best.value", 10**400), "train_state.best.value must be a number, not a number of many digits"),
    (put("train_state.best.weights", "both"), "train_state.best.weights must be one of raw, ema"),
    (put("train_state.best", []), "train_state.best must be an object, not a list of 0"),
    (put("train_state.evaluation_due", 1), "train_state.evaluation_due must be true or false, not 1"),
    (put("train_state.tracker_run_id", "x" * 1001), "train_state.tracker_run_id must be a text of 1,000 characters at"),
    (put("schedule.updates", 1), "schedule.updates: 1 is not the 2 of train_state.applied_updates"),
    (put("schedule.rates", [0.1]), 'schedule."rates" is not one of updates'),
    (plateau("updates"), "schedule.plateau is missing"),
    (plateau(rates=[-1]), "schedule.rates.0 must be a number of 0 or more, not -1"),
    (plateau(rates=[1], best="x"), 'schedule.plateau.best must be a number, not "x"'),
    (plateau(rates=[1], more=1), 'schedule.plateau."more" is not one of last_epoch, best, '),
    (plateau(rates=[1], num_bad_epochs=0.5), "schedule.plateau.num_bad_epochs must be a whole number of 0 or"),
    (put("scaler", {"scale": 0}), "scaler.scale must be above 0"),
    (put("scaler", {"scale": 1, "x": 0}), 'scaler."x" is not one of scale, '),
    (put("optimizer.groups", 5), "optimizer.groups must be a list, not 5"),
    (put("optimizer.groups", [5]), "optimizer.groups.0 must be an object, not 5"),
    (put("optimizer.groups", [{"eps": "x"}]), "optimizer.groups.0.eps must be a number"),
    (put("optimizer.state", {"a/b": None}), "optimizer.state.a/b must be a number, not null"),
    (put("optimizer.parameters", -1), "optimizer.parameters must be a whole number of 0 or more, not -1"),
    (put("precision", "int8"), 'precision must be one of fp32, bf16, fp16, not "int8"'),
    (put("world_size", 0), "world_size must be a whole number of 1 or more, not 0"),
    (put("classes", []), "classes must not be empty"),
    (put("classes", ["a", 1]), "classes.1 must be a text of 1,000 characters at most, not 1"),
    (put("channels", 0), "channels must be a whole number of 1 to 4,096, not 0"),
    (put("channels", 3), "preprocessing.mean: has 1 values and the images 3 channels"),
    (put("preprocessing.image_size", 10**9), "preprocessing.image_size must be a whole number of 1 to 16,384, not 10"),
    (put("preprocessing.std", [0.0]), "preprocessing: crop must be above 0 and 2 at most, and std above 0"),
    (put("preprocessing.crop", 3), "preprocessing: crop must be above 0 and 2 at most, and std above 0"),
    (put("preprocessing.fit", "squash"), 'preprocessing.fit must be one of crop, pad, stretch, not "squash"'),
    (
        put("preprocessing.interpolation", "x"),
        "preprocessing.interpolation must be one of bicubic, bilinear, nearest, box, hamming, lanczos, not",
    ),
    (put("plan.updates", 1), "train_state.position: 2 is past the 1 updates of plan.updates"),
    (put("plan.samples", "x"), 'plan.samples must be a whole number of 1 or more, not "x"'),
    (put("config.model.width", "x"), "config.model.width: must be "),
    (put("config.model.nothing", 1), "config.model.nothing: no such field"),
    (put("config.nothing", 1), "config.nothing: no such section"),
    (put("config.model", 3), "config.model: a section of fields"),
    (put("config.train.ema", 0), "ema.safetensors: not of a run with train.ema 0"),
    (put("versions", {"torch": 2}), "versions.torch must be a text of 1,000 characters at most, not 2"),
    (put("data", {"train": {"samples": 1, "sha256": "x"}}), 'data.train.sha256 must be 64 hex digits, not "x"'),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(STATES)))
def test_a_state_of_a_wrong_type_or_range_is_named(number: int, path: Path) -> None:
    change, expected = STATES[number]
    change_json(path, "state.json", change)
    assert expected in problem(path)
    with pytest.raises(UserError, match=r": this checkpoint cannot be used$"):
        open_checkpoint(path)


def test_a_missing_average_is_named(path: Path) -> None:
    (path / "ema.safetensors").unlink()
    change_json(path, "manifest.json", without("ema.safetensors"))
    assert problem(path) == "ema.safetensors: missing"


def test_an_average_of_another_model_is_named(path: Path) -> None:
    shutil.copy(path / "optimizer.safetensors", path / "ema.safetensors")
    rehash(path)
    assert problem(path) == "ema.safetensors: has other tensors than model.safetensors"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Error while deserializing header"),
        ((2**40).to_bytes(8, "little") + b"{}", "its header would have 1,099,511,627,776 bytes"),
        ((2**24 + 8).to_bytes(8, "little") + b"{}" + b" " * (2**24 + 6), "its header would have 16,777,224 bytes"),
        (struct.pack("<Q", 10**4) + b"[" * 10**4, "Error while deserializing header"),
    ],
)
def test_weights_that_are_no_safetensors_file_are_named(content: bytes, expected: str, path: Path) -> None:
    (path / "model.safetensors").write_bytes(content)
    rehash(path)
    assert f"model.safetensors is not a safetensors file: {expected}" in problem(path)


def test_names_in_a_file_are_not_obeyed_by_a_terminal(path: Path) -> None:
    change_json(path, "state.json", put("optimizer.state", {"a\n\x1b[31m" + "x" * 5000: None}))
    assert problem(path) == (f"state.json: optimizer.state.a\\n\\x1b[31m{'x' * 93} must be a number, not null")


def test_unknown_fields_are_left_alone(path: Path) -> None:
    change_json(path, "state.json", lambda state: state | {"remark": json.loads("[1]")})
    assert open_whole(path).position == 2


def test_a_state_of_a_plateau_is_read(path: Path) -> None:
    change_json(path, "state.json", plateau(rates=[0.1, 0.2]))
    assert open_whole(path).state.schedule == {
        "updates": 2,
        "rates": [0.1, 0.2],
        "plateau": {"last_epoch": 1, "best": float("inf"), "num_bad_epochs": 0, "cooldown_counter": 0},
    }

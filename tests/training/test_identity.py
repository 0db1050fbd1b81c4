"""Which run a command means: new, another's folder, one that has finished, one that was made longer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import custom_losses
from tests.checkpointing.states import change_json, rehash
from tests.processes import run_world
from vit_dist import Config, Run, UserError, train
from vit_dist.cli import main
from vit_dist.data.sources.source import MemorySource
from vit_dist.files import read_json
from vit_dist.training.resolve import resolve

OTHER: dict[str, Any] = {"interpolation": "bilinear", "fit": "stretch", "crop": 0.8}
SMALL: dict[str, Any] = {
    "data.image_size": 16,
    "data.workers": 0,
    "model.width": 8,
    "model.depth": 1,
    "model.heads": 1,
    "model.patch_size": 8,
    "batch.global_size": 8,
    "batch.micro_size": 8,
    "schedule.warmup": "1 updates",
    "train.duration": "3 updates",
    "evaluate.every": "3 updates",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
    "log.trackers": "none",
}


def photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for split, count in (("train", 8), ("val", 3)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (20 + seed, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def on(root: Path, **more: Any) -> Config:
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("folder", {**SMALL, "data.root": str(root), **changes})


def words(root: Path, **more: str) -> list[str]:
    """Return the same as a command."""
    values = {**SMALL, "data.root": root, **{name.replace("__", "."): value for name, value in more.items()}}
    return ["train", "--config", "folder", *(f"--{name}={value}" for name, value in values.items())]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, in which `runs` will be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_another_data_set_under_the_same_flags_is_another_run(tmp_path: Path) -> None:
    pets, birds = photos(tmp_path / "Pets"), photos(tmp_path / "birds", ("owl", "tit"), seed=1)
    first, second = train(on(pets)), train(on(birds))
    assert re.fullmatch(r"pets-[0-9a-f]{6}", first.folder.name)
    assert re.fullmatch(r"birds-[0-9a-f]{6}", second.folder.name)
    # Another folder of the same name is another run as well.
    other = train(on(photos(tmp_path / "more" / "Pets", seed=2)))
    assert other.folder.name != first.folder.name
    assert [run.history[0]["resumed_from"] for run in (first, second, other)] == [None] * 3
    # The folder may move: its name, its images and the config make the run.
    (tmp_path / "moved").mkdir()
    pets.rename(tmp_path / "moved" / "Pets")
    assert train(on(tmp_path / "moved" / "Pets")).summary == first.summary
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_images_that_changed_are_a_new_run_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "pets")
    first = train(on(root))
    assert "trained on other images" not in capsys.readouterr().out
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "new.png")
    (root / "val" / "dog" / "2.png").unlink()
    second = train(on(root))
    assert second.folder != first.folder
    note = (
        f"  note: {first.folder} trained on other images of {root} (since then 1 image added (train/cat/new.png), "
        "1 image removed (val/dog/2.png)): this is a new run"
    )
    assert note in capsys.readouterr().out.splitlines()
    # Also if the earlier run was made longer since.
    train(on(root, run__dir=str(second.folder), train__duration="4 updates"))
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "newer.png")
    third = train(on(root)).folder
    assert third != second.folder
    note = (
        f"  note: {second.folder} trained on other images of {root} (since then 1 image added (train/cat/newer.png)):"
    )
    assert note in capsys.readouterr().out
    # Not where the config differs, for then a new run is what was asked for; nor where this run goes on.
    train(on(root, optimizer__lr=0.25))
    train(on(root))
    assert "trained on other images" not in capsys.readouterr().out


def test_other_pixels_under_the_same_names_and_sizes_are_told(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (20, 20), (number, 9, 9)).save(root / name / f"{number}.bmp")
    first = train(on(root, run__name="mine")).folder
    named = resolve(on(root)).config.folder
    for path in root.rglob("*.bmp"):
        size = path.stat().st_size
        Image.new("RGB", (20, 20), (200, 9, 9)).save(path)
        assert path.stat().st_size == size
    assert resolve(on(root)).config.folder != named
    with pytest.raises(
        UserError, match=r"^data: not what runs/mine was trained on: other images of train; other images"
    ):
        train(on(root, run__name="mine"))
    # Checkpoints of earlier versions do not say what the files hold.
    for path in first.glob("checkpoints/update_*/state.json"):
        state = json.loads(path.read_text())
        for split in state["data"].values():
            del split["content"]
        path.write_text(json.dumps(state))
        rehash(path.parent)
    assert train(on(root, run__name="mine")).folder == first


@pytest.mark.parametrize("over", [True, False])
def test_a_named_run_on_other_data_is_refused_on_one_line(
    over: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets, birds = photos(tmp_path / "pets"), photos(tmp_path / "birds", ("owl", "tit"), seed=1)
    train(on(pets, run__name="mine"))
    if not over:
        (tmp_path / "runs" / "mine" / "summary.json").unlink()
    capsys.readouterr()
    assert main(words(birds, run__name="mine")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "vit-dist: data: not what runs/mine was trained on: "
        "22 images added (train/owl/0.png, train/owl/1.png …), 22 images removed (train/cat/0.png, train/cat/1.png …); "
        "classes: owl, tit added, cat, dog removed: "
        "bring the old images (or data.leave_out) back, or set another run.dir or run.name, or none, for a new run\n"
    )


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Meine Fotos (2)", "meine-fotos-2"),
        ("花", "花"),
        ("[x]*", "x"),
        ("..-", "data"),
        ("pets/train", "pets"),
        ("a" * 60, "a" * 40),
    ],
)
def test_a_run_is_named_after_its_folder(folder: str, name: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "in" / folder.removesuffix("/train"))
    root = root if not folder.endswith("/train") else root / "train"
    assert resolve(on(root)).config.run.name.rpartition("-")[0] == name


def test_a_run_is_named_after_its_data_set_or_source_unless_it_has_a_name() -> None:
    digits = resolve(Config.load("digits"))
    assert re.fullmatch(r"digits-[0-9a-f]{6}", digits.config.run.name)
    assert resolve(Config.load("digits")).config == digits.config
    assert resolve(Config.load("digits", {"optimizer.lr": 0.5})).config.run.name != digits.config.run.name
    assert resolve(Config.load("digits", {"log.every": "7 updates"})).config.run.name == digits.config.run.name
    assert resolve(Config.load("digits", {"run.name": "mine"})).config.run.name == "mine"
    assert resolve(Config.load("digits", {"run.dir": "there"})).config.run.name == ""
    pixels, labels = np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2
    names = [
        resolve(Config.load("digits"), MemorySource(each, labels)).config.run.name for each in (pixels, pixels + 1)
    ]
    assert [name.rpartition("-")[0] for name in names] == ["memorysource"] * 2
    assert names[0] != names[1]


def test_a_run_that_has_begun_keeps_what_was_chosen_for_it(tmp_path: Path) -> None:
    root = photos(tmp_path / "pets")
    auto = ("optimizer.lr", "augment.flip")
    begun = Config.from_dict(on(root, run__name="mine", optimizer__lr=0.125, augment__flip=0.25).to_dict())
    assert train(replace(begun, run=replace(begun.run, auto=()))).folder == Path("runs/mine")
    # As if a later version had another rule, or more images made another choice.
    named = on(root, run__name="mine")
    asks = replace(named, run=replace(named.run, auto=auto))
    later = resolve(asks).config
    assert (later.optimizer.lr, later.augment.flip, later.run.auto) == (0.125, 0.25, ())
    elsewhere = replace(asks, run=replace(asks.run, name="", resume="runs/mine"))
    assert resolve(elsewhere).config.optimizer.lr == 0.125
    longer = train(replace(asks, train=replace(asks.train, duration="4 updates")))
    assert [line["update"] for line in longer.history if line["kind"] == "start"] == [0, 3]
    # What a person sets is not taken from there, and is refused.
    with pytest.raises(UserError, match=r"holds a run of another config: optimizer.lr: 0.125 there, 0.5 now"):
        train(on(root, run__name="mine", augment__flip=0.25, optimizer__lr=0.5, train__duration="4 updates"))


def trained_name(root: str) -> str:
    os.chdir(Path(root).parent)
    return str(train(on(Path(root))).folder)


def test_all_ranks_name_the_run_alike(tmp_path: Path) -> None:
    root = photos(tmp_path / "pets")
    alone = resolve(on(root)).config.run.name
    assert run_world(2, trained_name, tmp_path / "results", str(root)) == [f"runs/{alone}"] * 2


def stop_in(forward: int, config: Config) -> Run:
    """Train, and be asked to stop in one of the forward passes."""
    custom_losses.forwards, custom_losses.actions = 0, {forward: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    try:
        return train(config)
    finally:
        custom_losses.actions = {}


def test_a_run_keeps_the_preprocessing_that_its_checkpoint_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "pets")
    first = train(on(root, run__dir="run"))
    assert first.preprocessing.interpolation == "bicubic"
    # As an earlier version decided it, which by the rules of now would be another one.
    for path in (first.folder / "checkpoints").glob("update_*"):
        change_json(path, "state.json", lambda state: state | {"preprocessing": {**state["preprocessing"], **OTHER}})
    flags = words(root, run__dir="run", train__duration="4 updates")
    assert main(["plan", *flags[1:]]) == 0
    assert "both sides to 20 pixels (bilinear), then the centre of 16 × 16" in capsys.readouterr().out
    longer = train(on(root, run__dir="run", train__duration="4 updates"))
    assert longer.history[-1]["kind"] == "stop"
    assert longer.preprocessing == replace(first.preprocessing, **OTHER)
    saved = read_json(longer.folder / "checkpoints" / "update_00000004" / "state.json")["preprocessing"]
    assert {name: saved[name] for name in OTHER} == OTHER


def test_the_first_command_of_a_run_that_was_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "pets")
    same = {"loss__name": "tests.custom_losses:acting"}
    folder = train(on(root, **same)).folder
    longer = on(root, **same, run__dir=str(folder), train__duration="9 updates")
    assert stop_in(3, longer).stopped
    printed = capsys.readouterr().out
    assert "resumed from update 3 of 9 (epoch 1.5 of 4.5)" in printed

    # Stopped in the longer part: it goes on with that.
    resumed = train(on(root, **same))
    printed = capsys.readouterr().out
    assert (resumed.folder, resumed.summary["updates"]) == (folder, 9)
    assert "note: train.duration: the run was made longer and goes on to 9 updates, not 3 updates" in printed
    assert "resumed from update 6 of 9 (epoch 3 of 4.5)" in printed

    # Finished: said, whoever asks.
    for config in (on(root, **same), longer, on(root, **same, run__dir=str(folder))):
        again = train(config)
        printed = capsys.readouterr().out
        assert again.summary == resumed.summary
        assert "trained" in printed
        assert "update 9/9" not in printed
        made = "" if config is longer else ", and was made longer: 9 updates"
        first_line = f"{folder}: finished before{made}; to go on: --run.dir {folder} and a longer --train.duration"
        assert printed.splitlines()[0] == first_line

    # A length that the run never had is refused; the same length in other words is the same.
    with pytest.raises(
        UserError, match=r"^train.duration: may only grow: 9 updates before, 5 now: set another run.name or"
    ):
        train(on(root, **same, run__dir=str(folder), train__duration="5 updates"))
    assert train(on(root, **same, run__dir=str(folder), train__duration="4.5 epochs")).summary == resumed.summary


def test_a_finished_run_without_its_last_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "pets")
    fields = {"train__duration": "6 updates", "checkpoint__every": "2 updates"}
    run = train(on(root, **fields))
    shutil.rmtree(run.folder / "checkpoints" / "update_00000006")
    capsys.readouterr()
    again = train(on(root, **fields))
    gone = run.folder / "checkpoints" / "update_00000006"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{gone}: is not there or broken: the newest complete one is of update 4"
    assert again.summary == run.summary


def test_a_run_killed_before_its_first_checkpoint_keeps_no_list_of_old_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "pets")
    config = on(root, run__name="mine")

    def fail() -> None:
        raise KeyboardInterrupt

    actions: dict[int, Callable[[], None]] = {1: fail}
    custom_losses.forwards, custom_losses.actions = 0, actions
    with pytest.raises(KeyboardInterrupt):
        train(on(root, run__name="mine", loss__name="tests.custom_losses:acting"))
    custom_losses.actions = {}
    (root / "val" / "dog" / "2.png").unlink()
    assert not train(on(root, run__name="mine", loss__name="tests.custom_losses:acting")).stopped
    shutil.copy(root / "val" / "dog" / "1.png", root / "val" / "dog" / "2.png")
    with pytest.raises(UserError, match=r"mine was trained on: 1 image added \(val/dog/2.png\): bring"):
        train(on(root, run__name="mine", loss__name="tests.custom_losses:acting"))
    assert config.folder == Path("runs/mine")


def test_a_class_that_was_renamed_numbers_the_others_anew_and_leaves_them_what_they_are(tmp_path: Path) -> None:
    root = photos(tmp_path / "pets")
    train(on(root, **{"run.name": "mine"}))
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "kitty")
    with pytest.raises(UserError, match=r"11 images added .*, 11 images removed [^,]*, [^,]*; classes") as error:
        train(on(root, **{"run.name": "mine"}))
    assert "of another class" not in str(error.value)

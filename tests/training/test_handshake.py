"""Processes that were given different things do not train: one line on all of them, in real worlds of two."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes import run_world
from vit_dist import Config, train
from vit_dist.config.fields import RunConfig
from vit_dist.errors import UserError
from vit_dist.runtime.runtime import Runtime
from vit_dist.training import handshake
from vit_dist.training.resolve import resolve

HOST = socket.gethostname()


def rank() -> int:
    return int(os.environ["RANK"])


def pictures(root: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")


def settings(root: Path, folder: Path) -> dict[str, Any]:
    return {
        **{"data.root": str(root), "run.dir": str(folder), "run.device": "cpu", "run.threads": 1, "data.workers": 0},
        **{"data.image_size": 16, "model.patch_size": 8, "model.width": 16, "model.depth": 1, "model.heads": 2},
        **{"batch.global_size": 8, "batch.micro_size": 4, "train.duration": "4 updates", "evaluate.every": "2 updates"},
        **{"log.trackers": "none", "log.report": False},
    }


def refusals(root: str) -> list[str]:
    """Return what each of several differences of rank 1 is answered with, on this rank."""
    runtime, values, other = Runtime(RunConfig(device="cpu", threads=1)), settings(Path(root), Path("run")), rank() == 1
    answers = []

    def start(recipe: str = "folder", **changes: Any) -> str:
        config = Config.load(recipe, {**values, **{name.replace("__", "."): value for name, value in changes.items()}})
        try:
            handshake.check_same_start(config, runtime)
            resolved = resolve(config, None, runtime)
            handshake.check_same_samples(resolved.config, resolved.data, resolved.samples, runtime)
        except UserError as error:
            return str(error)
        return "same"

    answers = [
        start(optimizer__lr=0.5 if other else 0.1),
        start(log__every="1 updates" if other else "2 updates"),
        *(start(data__root=f"{root}-{kind}" if other else root) for kind in ("renamed", "missing", "nowhere")),
        start(data__root=f"{root}-copy" if other else root, log__level="warning" if other else "info"),
    ]
    os.chdir(f"{root}-missing" if other else root)  # where one name is two files
    for table in ("other" if other else "one", "one"):
        answers.append(start("contrastive", data__root=f"{root}-{table}.csv", text__tokenizer="merges.txt"))
    handshake._code_digest = lambda: f"c0de{rank()}"  # type: ignore[assignment]
    answers.append(start())
    runtime.end()
    return answers


def test_ranks_that_differ_are_refused_on_all_of_them(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    pictures(root)
    for copy in ("renamed", "missing", "copy"):
        shutil.copytree(root, tmp_path / f"pets-{copy}")
    (tmp_path / "pets-renamed" / "cat" / "03.png").rename(tmp_path / "pets-renamed" / "cat" / "99.png")
    (tmp_path / "pets-missing" / "dog" / "03.png").unlink()
    for name in ("one", "other"):
        rows = [f"{path},{name if number == 3 else number}" for number, path in enumerate(sorted(root.rglob("*.png")))]
        (tmp_path / f"pets-{name}.csv").write_text("\n".join(["path,caption", *rows]))
        folder = root if name == "one" else tmp_path / "pets-missing"
        (folder / "merges.txt").write_text(f"#version\n{name[0]} {name[1]}\n")
    answers = run_world(2, refusals, tmp_path / "results", str(root))
    assert answers[0] == answers[1]
    head, tail = f"process 1 on {HOST} differs from process 0 on {HOST}: ", ": start all with the same"
    rate, interval, renamed, missing, nowhere, same, captions, tokenizer, code = answers[0]
    assert rate == f"{head}optimizer.lr is 0.5, there 0.1{tail}"
    assert interval == f"{head}log.every is 1 updates, there 2 updates{tail}"
    assert re.fullmatch(rf"{head}the \w+ split is (\d+) images, [\w ]+, there \1 images, [\w ]+{tail}", renamed)
    assert re.match(rf"{head}the \w+ split is \d+ images, [\w ]+, there \d+ images, ", missing)
    assert nowhere.startswith(f"process 1 on {HOST}: data.root: no folder {root}-nowhere")
    assert same == "same"
    for answer in (captions, tokenizer):  # the digests of captions and of the tokenizer
        assert re.match(rf"{head}the \w+ split is (\d+) images, [\w ]+, there \1 images, [\w ]+", answer)
    assert code == f"{head}code of vit_dist is c0de1, there c0de0{tail}"


def trained(root: str, folder: str) -> str:
    """Train with another rate on rank 1, and return what that is answered with."""
    rate = 0.5 if rank() == 1 else 0.1
    with pytest.raises(UserError) as caught:
        train(Config.load("folder", {**settings(Path(root), Path(folder)), "optimizer.lr": rate}))
    return str(caught.value)


def test_train_asks_before_it_touches_anything(tmp_path: Path) -> None:
    pictures(tmp_path / "pets")
    for answer in run_world(2, trained, tmp_path / "results", str(tmp_path / "pets"), str(tmp_path / "run")):
        assert "differs from process 0" in answer
    assert not (tmp_path / "run").exists()


def folders_seen(folder: str) -> list[str]:
    """Return what looking for a shared folder gives: one that is shared, then one of each rank's own."""
    handshake._LONGEST_WAIT = 0.5
    runtime = Runtime(RunConfig(device="cpu", threads=1))
    found = []
    for path in (Path(folder), Path(folder) / str(runtime.rank)):
        path.mkdir(parents=True, exist_ok=True)
        try:
            handshake.check_shared_folder(path, runtime)
            found.append("seen")
        except UserError as error:
            found.append(str(error))
    runtime.end()
    return [*found, *map(str, sorted(Path(folder).rglob(".*")))]


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for answers in run_world(2, folders_seen, tmp_path / "results", str(folder)):
        assert answers == [
            "seen",
            f"process 1 on {HOST}: run.dir: {folder / '1'} is not the folder that {HOST} writes to: use storage that "
            "hosts share",
        ]

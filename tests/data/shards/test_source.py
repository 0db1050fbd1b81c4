"""Images in shards: the same stream whatever reads it, each shard opened about once an epoch, one line if damaged."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import command
from tests.data.shards.packing import opened, packed
from tests.data.shards.reading import assert_same, read_stream
from tests.sharing import made_once
from vit_dist import Config, train
from vit_dist.data.fingerprint import fingerprint
from vit_dist.data.shards.source import ShardSource, open_index, shard_sizes
from vit_dist.data.shards.storage import LocalFolder
from vit_dist.data.sources.decode import ImageError
from vit_dist.data.sources.source import read_image, sample_name
from vit_dist.data.sources.splits import with_val
from vit_dist.errors import UserError
from vit_dist.files import read_json
from vit_dist.inference.load import load_model
from vit_dist.inference.splits import open_split

LANES = {"data.lanes": 4, "data.shard_window": 8}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of 42 shards of six images each, of 250 images in two classes; the last one has four."""
    return made_once(tmp_path_factory, "many_shards", _pack_many)


def _pack_many(out: Path) -> None:
    generator = np.random.default_rng(1)
    images = out.parent / "images"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(125):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / label / f"{number}.png")
    packed(images, out)


def storage(data: Any) -> LocalFolder:
    found = data.splits["train"].source.storage
    assert isinstance(found, LocalFolder)
    return found


@pytest.mark.parametrize(
    ("fields", "worlds"), [({}, [(2, 1, 4)]), (LANES, [(1, 2, 4), (2, 1, 2), (3, 0, 6), (4, 0, 4)])]
)
def test_the_stream_does_not_depend_on_processes_workers_and_micro_batches(
    many: Path, fields: dict[str, Any], worlds: list[tuple[int, int, int]]
) -> None:
    reference, _ = read_stream(lambda: opened(many), {**fields, "batch.micro_size": 16})
    assert sorted(reference["ids"][:250].tolist()) == sorted(reference["ids"][250:].tolist()) == list(range(250))
    assert len(reference["images"].unique(dim=0)) == 500
    for world, workers, micro_size in worlds:
        sizes = {**fields, "batch.micro_size": micro_size}
        read, _ = read_stream(lambda: opened(many), sizes, world=world, workers=workers)
        assert_same(read, reference)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_shard_is_opened_about_once_an_epoch_over_all_processes(many: Path, world: int) -> None:
    shards = len(open_index(many).shards)
    assert shards == 42
    fields = {**LANES, "train.duration": "1 epochs"}
    _, every = read_stream(lambda: opened(many), fields, world=world)
    opens = sum(storage(data).opened for data in every)
    assert shards <= opens <= 1.2 * shards
    _, every = read_stream(lambda: opened(many), {"train.duration": "1 epochs"}, world=world)
    assert sum(storage(data).opened for data in every) >= 0.7 * world * shards  # without lanes, each reads nearly all


def test_reading_begins_in_the_middle_of_a_shard(many: Path) -> None:
    reference, _ = read_stream(lambda: opened(many), LANES)
    sizes = shard_sizes(opened(many).splits["train"])
    assert sizes is not None
    assert set(sizes.tolist()) == {6, 4}  # a lane takes 4 samples an update
    for start in (1, 3, 17):
        read, _ = read_stream(lambda: opened(many), LANES, start=start, world=2)
        assert_same(read, {name: values[16 * start :] for name, values in reference.items()})


def fields_of(data: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "data.root": str(data), "run.dir": str(folder), "model.name": "vit_tiny", "model.width": 16, "model.depth": 1,
        "model.heads": 2, "model.patch_size": 8, "data.image_size": 16, "batch.global_size": 16, "batch.micro_size": 4,
        "train.duration": "25 updates", "schedule.warmup": "2 updates", "run.device": "cpu", "run.threads": 1,
        "log.report": False, "checkpoint.every": "1 updates", "evaluate.every": "10 updates", "data.workers": 2,
        "log.trackers": "none", "augment.flip": 0.5, "augment.crop_min": 0.5, "train.ema": 0.9, "model.drop_path": 0.1,
        **LANES, **more,
    }  # fmt: skip


class StopAt(Exception):  # noqa: N818
    """Ends a training."""


def test_a_run_that_stops_in_the_middle_of_a_shard_goes_on_bit_identically(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(Config.load("folder", fields_of(many, tmp_path / "whole")))
    stopped = fields_of(many, tmp_path / "stopped", **{"loss.name": "cross_entropy"})
    from vit_dist.data import stream

    windows = stream.Stream.window

    def window(self: Any, position: int) -> Any:
        if position == 11:
            raise StopAt
        return windows(self, position)

    with monkeypatch.context() as patch:
        patch.setattr(stream.Stream, "window", window)
        with pytest.raises(StopAt):
            train(Config.load("folder", stopped))
    moved = tmp_path / "moved"
    shutil.copytree(many, moved)
    stopped |= {"data.root": str(moved), "data.workers": 0}
    again = train(Config.load("folder", stopped))
    assert any("resumed" in str(line) or line.get("resumed_from") for line in again.history if line["kind"] == "start")
    for name in ("model", "ema", "optimizer"):
        files = [run.folder / "checkpoints" / "last" / f"{name}.safetensors" for run in (expected, again)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_run_on_shards_is_evaluated_and_told_apart_from_others(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(Config.load("folder", fields_of(many, tmp_path / "run", **{"train.duration": "2 updates"})))
    assert (run.folder / "summary.json").is_file()
    trained = load_model(str(run.folder))
    split = open_split(trained, "val", None)
    assert split.notes == ()
    assert len(split.subset) == 26
    result = command(capsys, "evaluate", run.folder, "--split", "val")
    assert result.code == 0, result.err
    predictions = command(capsys, "predict", run.folder, "--split", "val", "--format", "csv")
    assert predictions.code == 0, predictions.err
    assert f"{many}/train-0000" in predictions.out
    images = many.parent / "images"
    again = packed(images, tmp_path / "again", 40_960)
    with pytest.raises(UserError, match=r"not what .* was trained on: other images of train"):
        train(Config.load("folder", {**fields_of(many, tmp_path / "run"), "data.root": str(again)}))


def test_the_fingerprint_is_of_the_bytes_wherever_they_are(many: Path, tmp_path: Path) -> None:
    shutil.copytree(many, tmp_path / "copy")
    before = fingerprint(with_val(opened(many), 0.2))
    assert fingerprint(with_val(opened(tmp_path / "copy"), 0.2)) == before
    assert fingerprint(with_val(opened(tmp_path / "copy"), 0.3)) != before
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    index["shards"][3]["sha256"] = "0" * 64
    (tmp_path / "copy" / "index.json").write_text(json.dumps(index))
    assert fingerprint(with_val(opened(tmp_path / "copy"), 0.2)) != before


def source_of(folder: Path) -> ShardSource:
    source = opened(folder).splits["train"].source
    assert isinstance(source, ShardSource)
    return source


def test_damage_is_named_by_shard_and_image(many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(many, folder)
    source = source_of(folder)
    offset = int(source.index.columns["offset"][7])
    path = folder / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)
    name = source.image_name(7)
    assert name.startswith(f"{path}: ")
    assert name.endswith(".png")
    assert sample_name(source, 7, "train") == name
    with pytest.raises(ImageError, match=rf"^{name}: has other bytes than the index says: vit-dist shards verify"):
        read_image(source, 7)
    read_image(source, 6)
    os.truncate(folder / "train-000002.tar", 5000)
    with pytest.raises(ImageError, match=r"train-000002.tar: .*has other bytes than the index says"):
        read_image(source, 14)
    (folder / "train-000003.tar").unlink()
    with pytest.raises(ImageError, match=r"train-000003.tar: image 20 cannot be read \(No such file or directory\)"):
        read_image(source, 20)


def test_a_broken_image_in_a_shard_follows_the_rule_for_bad_samples(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(images / label / f"{number}.png")
    (images / "cat" / "3.png").write_bytes(b"no image")
    packed(images, tmp_path / "out")
    fields = fields_of(tmp_path / "out", tmp_path / "run", **{"data.val_fraction": 0.0, "data.lanes": 1})
    with pytest.raises(UserError, match=r"cat/3.png: cannot be decoded .*--data.on_bad_sample skip"):
        train(Config.load("folder", fields))
    run = train(Config.load("folder", {**fields, "data.on_bad_sample": "skip", "train.duration": "3 updates"}))
    assert sum(line.get("bad_samples", 0) for line in run.history if line["kind"] == "train") >= 2


def test_files_are_opened_anew_after_a_fork_and_few_stay_open(many: Path) -> None:
    folder = LocalFolder(many, most_open=3)
    for number in (0, 1, 2, 3, 3, 2, 0):
        assert len(folder.read(f"train-{number:06d}.tar", 512, 10)) == 10
    assert folder.opened == 5
    assert len(folder._files) == 3
    copy = deepcopy(folder)  # as a process that is spawned gets it
    assert (copy.root, copy.opened, copy.most_open) == (many, 0, 3)
    before = set(folder._files.values())
    pid = os.fork()
    if pid == 0:
        folder.read("train-000005.tar", 0, 1)
        os._exit(0 if folder.opened == 6 and len(folder._files) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert set(folder._files.values()) == before
    assert len(folder.read("train-000000.tar", 512, 10)) == 10


def test_lanes_need_shards(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.lanes: 4 are for shards, and this data has none: set data.lanes 1$"):
        train(Config.load("folder", fields_of(image_folder, tmp_path / "run")))


def test_tar_files_alone_are_answered_with_what_makes_them_readable(many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(many / "train-000000.tar", folder)
    with pytest.raises(
        UserError, match=f"^{folder}: holds tar files without an index: vit-dist shards index '{folder}'"
    ):
        opened(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 9}, "has format 9, and this version reads 1: update vit_dist"),
        ({"shards": []}, "is damaged"),
        ({"classes": None}, "is damaged"),
        ({"classes": ["cat"]}, "train has no images, or some of no class"),
        ({"sizes": {"smallest": 1}}, "is damaged"),
        ("../elsewhere.tar", "is damaged .'../elsewhere.tar' is no file of a shard"),
        ("/etc/passwd", "is damaged .'/etc/passwd' is no file of a shard"),
        ("tail", "is damaged"),
        ("column", "its columns cannot be read"),
        ("short column", "is damaged .size is uint64 .3. for 250 images"),
        ("object column", "its columns cannot be read"),
    ],
)
def test_a_damaged_index_is_told_in_one_line(change: Any, reason: str, many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(many, folder)
    path = folder / "index.json"
    values = read_json(path)
    if isinstance(change, dict):
        path.write_text(json.dumps({**values, **change}))
    elif change == "tail":
        path.write_text(path.read_text()[:100])
    elif change == "column":
        (folder / "index" / "label.npy").unlink()
    elif change == "short column":
        np.save(folder / "index" / "size.npy", np.zeros(3, np.uint64))
    elif change == "object column":
        np.save(folder / "index" / "size.npy", np.asarray([{}] * 250, dtype=object))
    else:
        values["shards"][0]["file"] = change
        path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=reason) as error:
        opened(folder)
    assert "\n" not in str(error.value)


def test_workers_have_files_of_their_own(many: Path) -> None:
    data = opened(many)
    read_stream(lambda: data, {}, workers=2, end=3)
    assert storage(data).opened == 0

"""Shards are built with the same bytes however many processes built them and however often they were killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import command
from tests.data.shards.packing import SHARD_SIZE, hashes, opened, packed
from tests.sharing import made_once
from tests.training.test_kill_points import watch_operations
from vit_dist.config.fields import DataConfig
from vit_dist.data.shards.archive import tar_keys
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.shards.index import load_columns
from vit_dist.data.shards.source import ShardSource, open_index
from vit_dist.data.shards.verify import verify
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import read_image, sample_name
from vit_dist.data.sources.splits import with_val
from vit_dist.errors import UserError


def in_process(function: Any, *arguments: Any) -> int | None:
    """Run a function in a process of its own and return its exit code; forked, since it only reads and writes files."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "shards", lambda out: packed(image_folder, out))


def test_a_shard_is_a_tar_file_in_webdatasets_layout(image_folder: Path, shards: Path) -> None:
    names = sorted(path.name for path in shards.glob("*.tar"))
    assert names[0] == "train-000000.tar"
    assert len(names) > 10
    assert (shards / "classes.txt").read_text() == "ant\nbee\ncat\n"
    seen: dict[str, bytes] = {}
    for name in names:
        assert (shards / name).stat().st_size <= SHARD_SIZE
        with tarfile.open(shards / name) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, _, ending = image.name.rpartition(".")
                assert (ending, label.name) == ("png", f"{key}.cls")
                content, number = tar.extractfile(image), tar.extractfile(label)
                assert content is not None
                assert number is not None
                assert ("ant", "bee", "cat")[int(number.read())] == key.split("/")[0]
                split = {"train": "train", "val": "valid"}[name.split("-")[0]]
                seen[f"{split}/{image.name}"] = content.read()
    files = {path.relative_to(image_folder).as_posix(): path.read_bytes() for path in image_folder.rglob("*.png")}
    assert seen == files


def test_its_images_are_those_of_the_folder(image_folder: Path, shards: Path) -> None:
    folder, packed_data = opened(image_folder), opened(shards)
    assert (packed_data.classes, packed_data.sizes) == (folder.classes, folder.sizes)
    assert (packed_data.mean, packed_data.image_size, packed_data.channels) == (folder.mean, 224, 3)
    for split, subset in folder.splits.items():
        source, files = packed_data.splits[split].source, subset.source
        assert isinstance(source, ShardSource)
        assert isinstance(files, FileSource)
        by_name = {"/".join(path.parts[-2:]): number for number, path in enumerate(files.paths)}
        assert len(packed_data.splits[split]) == len(subset)
        order = []
        for index, label in zip(
            packed_data.splits[split].indices.tolist(), packed_data.splits[split].labels.tolist(), strict=True
        ):
            number = by_name[source.image_name(index).split(": ")[1]]
            assert label == files.labels[number]
            expected = read_image(files, number)
            image = read_image(source, index)
            assert image.mode == expected.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(expected))
            order.append(number)
        assert order != sorted(order)  # shuffled once: neighbours are of all classes


def test_what_is_held_out_is_what_the_folder_holds_out(image_folder: Path, tmp_path: Path) -> None:
    folder = opened(image_folder / "train")
    out = packed(image_folder / "train", tmp_path / "shards")
    names = []
    for data in (folder, opened(out)):
        val = with_val(data, 0.2).splits["val"]
        name = getattr(val.source, "image_name", lambda index, val=val: str(val.source.paths[index]))
        names.append({name(index).replace(": ", "/").rsplit("/", 2)[1:][0] + name(index)[-6:] for index in val.indices})
    assert names[0] == names[1]
    assert len(names[0]) == 12


def test_processes_change_no_byte(image_folder: Path, shards: Path, tmp_path: Path) -> None:
    plan = plan_shards(opened(image_folder), SHARD_SIZE)
    assert build(plan, tmp_path / "out", 3) == len(plan.shards)
    assert hashes(tmp_path / "out") == hashes(shards)


def build_until(images: str, out: str, operation: int, seen: str) -> None:
    """Build shards in this process, and die just before a file operation in their folder."""
    count = watch_operations(out, operation)
    build(plan_shards(opened(images), 2 * SHARD_SIZE), Path(out), 1)
    Path(seen).write_text(str(count()))


def test_killed_at_any_file_operation_it_goes_on_to_the_same_bytes(image_folder: Path, tmp_path: Path) -> None:
    images = image_folder / "valid"
    out, seen = tmp_path / "out", tmp_path / "seen"
    assert in_process(build_until, str(images), str(out), -1, str(seen)) == 0
    expected, count = hashes(out), int(seen.read_text())
    assert len(list(out.glob("*.tar"))) == 2
    assert count > 30
    plan = plan_shards(opened(images), 2 * SHARD_SIZE)
    for operation in range(0, count, 2):
        shutil.rmtree(out)
        assert in_process(build_until, str(images), str(out), operation, str(seen)) == -9, operation
        build(plan, out, 1)
        assert hashes(out) == expected, operation


def test_what_was_written_before_is_not_written_again(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_shards(opened(image_folder), SHARD_SIZE)
    out, seen = tmp_path / "out", tmp_path / "seen"
    killed = in_process(build_partly, str(image_folder), str(out), str(seen))
    assert killed == -9
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(there) == 5
    assert build(plan, out, 1) == len(plan.shards) - 5
    assert {name: (out / name).stat().st_mtime_ns for name in there} == there
    assert build(plan, out, 1) == 0
    assert not (out / ".building").exists()


def build_partly(images: str, out: str, seen: str) -> None:
    """Build until five shards are written, and die."""
    plan = plan_shards(opened(images), SHARD_SIZE)

    def progress(done: Any, count: int) -> Any:
        for number, each in enumerate(done, 1):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield each

    build(plan, Path(out), 1, progress)


def test_the_command_packs_says_what_it_did_and_goes_on(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my shards"
    result = command(capsys, "shards", "build", image_folder, out, "--shard_size", "20480B", "--processes", "2")
    assert result.code == 0, result.err
    assert "images   train 60, val 21\n" in result.out
    assert f"train on them: vit-dist train --data.root '{out}'\n" in result.out
    again = command(capsys, "shards", "build", image_folder, out, "--shard_size", "20480B")
    assert (again.code, again.out.splitlines()[-1].split(", ")[0]) == (0, f"{out}: is complete already")
    other = command(capsys, "shards", "build", image_folder, out, "--shard_size", "40kB")
    assert other.code == 2
    assert "holds shards of other images, or of another --shard_size: name another folder" in other.err


def test_a_table_is_packed_with_its_splits(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path},{path.parent.name},{path.parent.parent.name}" for path in sorted(image_folder.rglob("*.png"))[::3]]
    table = tmp_path / "list.csv"
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    result = command(capsys, "shards", "build", table, tmp_path / "out")
    assert result.code == 0, result.err
    data = opened(tmp_path / "out")
    assert {split: len(subset) for split, subset in data.splits.items()} == {"train": 20, "val": 7}
    assert data.classes == ("ant", "bee", "cat")


def test_columns_weights_and_what_is_left_out_reach_the_shards(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((image_folder / "train").rglob("*.png"))[::3]
    table, gone = tmp_path / "list.csv", tmp_path / "gone.txt"
    rows = [f"{path},{path.parent.name},{number / 4}" for number, path in enumerate(paths)]
    table.write_text("file_id,species,trust\n" + "\n".join(rows) + "\n")
    gone.write_text(f"{paths[3]}\n{paths[7]}\n")
    columns = {"path": "file_id", "label": "species", "weight": "trust"}
    words = [word for what, name in columns.items() for word in (f"--data.columns.{what}", name)]
    refused = command(capsys, "shards", "build", table, tmp_path / "out")
    assert (refused.code, "set data.columns.path" in refused.err) == (2, True)
    result = command(capsys, "shards", "build", table, tmp_path / "out", *words, "--data.leave_out", gone)
    assert result.code == 0, result.err
    split = opened(tmp_path / "out").splits["train"]
    assert split.weights is not None
    found = {
        (split.labels[place], sample_name(split.source, place, "").rpartition("/")[2]): split.weights[place]
        for place in range(len(split))
    }
    expected = {
        (("ant", "bee", "cat").index(path.parent.name), path.name): number / 4
        for number, path in enumerate(paths)
        if path not in (paths[3], paths[7])
    }
    assert found == expected
    assert verify(tmp_path / "out", 1, lambda items, count: items) == []
    other = command(capsys, "shards", "build", table, tmp_path / "out", *words[:4], "--data.leave_out", gone)
    assert (other.code, "holds shards of other images" in other.err) == (2, True)
    (tmp_path / "out" / "index" / "weight.npy").unlink()
    with pytest.raises(UserError, match=r"index.json: is damaged \(its column weight is gone\)"):
        opened(tmp_path / "out")


@pytest.mark.parametrize("size", ["20", "1kB", "0MB", "-5MB", "many"])
def test_a_size_that_is_none_is_refused(size: str, image_folder: Path, tmp_path: Path, capsys: Any) -> None:
    result = command(capsys, "shards", "build", image_folder, tmp_path / "out", f"--shard_size={size}")
    assert result.code == 2
    assert result.err.strip().endswith(
        f"--shard_size: must be a size of 20,480 bytes or more, as 64MB or 1GiB, not {size}"
    )
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_are_left_alone(image_folder: Path, tmp_path: Path) -> None:
    plan = plan_shards(opened(image_folder), SHARD_SIZE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"mine: holds other files: name a new folder$"):
        build(plan, tmp_path / "mine", 1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: is a file: name a new folder$"):
        build(plan, tmp_path / "file", 1)
    (tmp_path / "begun" / ".building").mkdir(parents=True)
    (tmp_path / "begun" / ".building" / "plan").write_text("another")
    with pytest.raises(UserError, match="begun: holds a part of shards of other images, or of another --shard_size"):
        build(plan, tmp_path / "begun", 1)


def test_a_file_that_changes_or_goes_meanwhile_is_named(image_folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(image_folder / "train", images)
    plan = plan_shards(opened(images), SHARD_SIZE)
    victim = images / "bee" / "07.png"
    victim.write_bytes(victim.read_bytes() + b"more")
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"bee/07.png: had 1,\d\d\d bytes and has others now"):
            build(plan, tmp_path / "out", processes)
    victim.unlink()
    with pytest.raises(UserError, match=r"bee/07.png: cannot be read: No such file"):
        build(plan, tmp_path / "out", 1)
    assert not (tmp_path / "out" / "index.json").exists()


def test_out_inside_the_images_is_refused(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "shards", "build", image_folder, image_folder / "out")
    assert result.code == 2
    assert "where it would be taken for images: name another folder" in result.err


def test_keys_are_different_and_have_no_dots_but_in_folders() -> None:
    names = ["a/x.y.jpg", "b/x_y.png", "c/x_y.jpg", "d/.JPG", "e/é.jpg"]
    keys = tar_keys(names, ["n.1", "n.1", "n.1", "../up", "animal/cat"])
    assert keys == [
        ("n.1/x_y", "jpg"),
        ("n.1/x_y-2", "png"),
        ("n.1/x_y-3", "jpg"),
        ("up/_", "jpg"),
        ("animal/cat/é", "jpg"),
    ]


def test_long_names_and_all_endings_come_back(tmp_path: Path) -> None:
    for label in ("b" * 120, "ä"):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number, ending in enumerate(("JPG", "jpeg", "png", "webp", "bmp", "tif")):
            Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(folder / f"{'long ' * 30}{number}.{ending}")
    out = packed(tmp_path / "images", tmp_path / "out")
    data = opened(out).splits["train"]
    files = opened(tmp_path / "images").splits["train"]
    shades = [
        sorted(np.asarray(read_image(each.source, index))[0, 0].tolist() for index in each.indices.tolist())
        for each in (data, files)
    ]
    assert shades[0] == shades[1]
    assert all(path.stat().st_size <= SHARD_SIZE for path in out.glob("*.tar"))
    columns, index = load_columns(out), open_index(out)
    assert len(index) == len(columns["crc32"]) == 12


def test_captions_of_a_table_are_packed_where_their_column_is_named(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((image_folder / "valid").rglob("*.png"))
    table = tmp_path / "list.csv"
    table.write_text("path,what\n" + "".join(f"{path},picture {n}\n{path},again {n}\n" for n, path in enumerate(files)))
    out = tmp_path / "out"
    built = ("shards", "build", table, out, "--data.columns.caption", "what", "--shard_size", "20480B")
    result = command(capsys, *built)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"train on them: vit-dist train --data.root {out} --loss.name clip"
    assert command(capsys, "shards", "verify", out).code == 0
    train = open_data(DataConfig(root=str(out), val_fraction=0.0), captions=True).splits["train"]
    assert train.captions is not None
    found = dict(zip(map(train.source.image_name, train.indices.tolist()), train.captions, strict=True))
    assert sorted(found.values()) == sorted((f"picture {n}", f"again {n}") for n in range(len(files)))
    for shard in out.glob("*.tar"):
        with tarfile.open(shard) as tar:
            texts = {name: tar.extractfile(name).read().decode() for name in tar.getnames() if name.endswith(".txt")}
            assert not [name for name in tar.getnames() if name.endswith(".cls")]
        assert shard.stat().st_size <= 20_480
        for name, text in texts.items():
            assert text.split("\n") == list(found[f"{shard}: {name.removesuffix('.txt')}.png"])
    before = hashes(out)
    assert command(capsys, *built).code == 0
    assert hashes(out) == before
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("again 0", "anew 0"))
    assert "holds shards of other images" in command(capsys, "shards", "build", other, *built[3:]).err
    (out / "index.json").unlink()
    assert command(capsys, "shards", "index", out).code == 0
    again = open_data(DataConfig(root=str(out), val_fraction=0.0), captions=True).splits["train"].captions
    assert again is not None
    assert list(again) == list(train.captions)

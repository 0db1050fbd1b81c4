"""Tar files that others made in WebDataset's layout get an index, and are read like our own."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import command
from tests.data.shards.packing import hashes, opened
from tests.data.shards.reading import assert_same, read_stream
from vit_dist.config.fields import DataConfig
from vit_dist.data.shards.foreign import index_tars
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import read_image, sample_name
from vit_dist.errors import UserError


def picture(shade: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 18), (shade, 0, 0)).save(out, kind)
    return out.getvalue()


def write(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_labels_in_cls_files_and_names_in_classes_txt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        members: dict[str, bytes] = {}
        for sample in range(4):
            key = f"./deep.folder/{number}_{sample}"
            members |= {f"{key}.cls": b"%d\n" % (sample % 2), f"{key}.jpg": picture(sample * 50), f"{key}.txt": b"a"}
        write(tmp_path / f"pets-train-{number:04d}.tar", members)
    write(tmp_path / "pets-validation-0000.tar", {"x.JPEG": picture(90), "x.cls": b"1"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    result = command(capsys, "shards", "index", tmp_path, "--processes", "2")
    assert result.code == 0, result.err
    assert result.out.startswith(f"{tmp_path}: 4 shards, 13 images, ")
    assert result.out.splitlines()[0].endswith(", 2 classes")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog")
    assert {split: len(subset) for split, subset in data.splits.items()} == {"train": 12, "val": 1}
    assert data.sizes is not None
    assert (data.sizes.sampled, data.sizes.smallest, data.sizes.largest) == (12, 18, 20)
    train = data.splits["train"]
    assert train.labels.tolist() == [0, 1] * 6
    shades = [int(np.asarray(read_image(train.source, index))[0, 0, 0]) for index in range(4)]
    assert np.abs(np.asarray(shades) - [0, 50, 100, 150]).max() <= 2
    assert data.splits["val"].labels.tolist() == [1]
    assert command(capsys, "shards", "verify", tmp_path).code == 0
    before = hashes(tmp_path)
    again = command(capsys, "shards", "index", tmp_path)
    assert again.code == 2
    assert "has an index: vit-dist shards verify" in again.err
    assert hashes(tmp_path) == before


def test_labels_in_json_and_in_words(tmp_path: Path) -> None:
    members = {}
    for number, name in enumerate(("dog", "cat", "emu", "cat")):
        members |= {f"{number}.png": picture(number, "PNG"), f"{number}.json": json.dumps({"label": name}).encode()}
    write(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    write(tmp_path / "b.tar", {"5.webp": picture(5, "WEBP"), "5.cls": b"dog", "5.json": b"{}"}, tarfile.USTAR_FORMAT)
    index = index_tars(tmp_path, 1)
    assert index.classes == ("cat", "dog", "emu")
    assert index.columns["label"].tolist() == [1, 0, 2, 0, 1]
    one, _ = read_stream(lambda: opened(tmp_path), {"train.duration": "3 epochs", "batch.global_size": 4})
    two, _ = read_stream(lambda: opened(tmp_path), {"train.duration": "3 epochs", "batch.global_size": 4}, world=2,
                         workers=1)  # fmt: skip
    assert_same(two, one)


def test_heic_images_are_in_the_index_whatever_is_installed(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(80)
    members = {"a.HEIC": heic, "a.cls": b"0", "b.heif": heic, "b.cls": b"1", "c.jpg": picture(9), "c.cls": b"1"}
    write(tmp_path / "all.tar", members)
    index_tars(tmp_path, 1)
    source = opened(tmp_path).splits["train"].source
    assert [sample_name(source, index, "").rpartition(" ")[2] for index in range(3)] == ["a.HEIC", "b.heif", "c.jpg"]
    with pytest.raises(UserError, match=r"a.HEIC: (is a HEIC image, which needs a package: pip install|cannot be dec)"):
        read_image(source, 0)


def test_splits_in_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "000.tar", {"a.jpg": picture(1), "a.cls": b"0", "b.jpg": picture(2), "b.cls": b"1"})
    index_tars(tmp_path, 1)
    data = opened(tmp_path)
    assert [(split, len(subset)) for split, subset in data.splits.items()] == [("train", 2), ("test", 2)]
    assert data.classes == ("0", "1")


def test_shards_that_are_sorted_by_class_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for order in ("sorted", "mixed"):
        for shard in range(4):
            members: dict[str, bytes] = {}
            for sample in range(8):
                label = shard if order == "sorted" else sample % 4
                members |= {f"{sample}.jpg": picture(1), f"{sample}.cls": str(label).encode()}
            write(tmp_path / order / f"{shard}.tar", members)
        result = command(capsys, "shards", "index", tmp_path / order)
        assert result.code == 0
        assert ("note: the images are sorted by class" in result.out) is (order == "sorted")


CASES: dict[str, tuple[dict[str, bytes], str]] = {
    "no label": (
        {"a.jpg": b"x", "b.jpg": b"y", "b.cls": b"1"},
        "a.tar: a.jpg: has no class: give it a .cls, or a .json",
    ),
    "no image": ({"a.txt": b"x"}, "its tar files hold no images"),
    "beyond classes.txt": ({"a.jpg": b"x", "a.cls": b"7"}, "classes.txt: has 2 names, and the labels go up to 7"),
    "unknown name": ({"a.jpg": b"x", "a.cls": b"emu"}, "classes.txt: does not have the class emu"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members, message = CASES[case]
    write(tmp_path / "a.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    result = command(capsys, "shards", "index", tmp_path)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, None])
def test_files_that_are_no_tar_files_are_named(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tar"
    if content is None:
        write(tmp_path / "b", {"a.jpg": picture(1), "a.cls": b"0"})
        import gzip

        path.write_bytes(gzip.compress((tmp_path / "b").read_bytes()))
    else:
        path.write_bytes(content)
    result = command(capsys, "shards", "index", tmp_path)
    assert result.code == 2
    assert "a.tar: is no tar file, or is damaged" in result.err
    assert result.err.count("\n") == 1


def test_huge_labels_without_names_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.tar", {"a.jpg": picture(1), "a.cls": b"123456789", "b.jpg": picture(1), "b.cls": b"1"})
    result = command(capsys, "shards", "index", tmp_path)
    assert result.code == 2
    assert "its labels go up to 123456789 for 2 images: write classes.txt" in result.err


def sentences(text: str, label: str = "") -> dict[str, bytes]:
    """Four samples with a .txt each, and a .cls if there is a label."""
    members: dict[str, bytes] = {}
    for number in range(4):
        members |= {f"{number}.jpg": picture(number * 50), f"{number}.txt": text.format(number).encode()}
        members |= {f"{number}.cls": label.encode()} if label else {}
    return members


def captions(root: Path) -> list[tuple[str, ...]]:
    train = open_data(DataConfig(root=str(root), val_fraction=0.0), captions=True).splits["train"]
    assert train.captions is not None
    return [train.captions[index] for index in train.indices.tolist()]


def test_texts_beside_images_are_their_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.tar", sentences("image {}, seen\n\n  twice ü\n"))
    members: dict[str, bytes] = {}
    for number, found in enumerate(("only one", ["first", "", "second"])):
        values = json.dumps({"caption" if number == 0 else "captions": found, "url": "x"}).encode()
        members |= {f"{number}.json": values, f"{number}.png": picture(number, "PNG")}
    write(tmp_path / "b.tar", members)
    result = command(capsys, "shards", "index", tmp_path)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{tmp_path}: 2 shards, 6 images, ")
    assert result.out.splitlines()[0].endswith(", with captions")
    assert captions(tmp_path) == [
        *((f"image {number}, seen", "twice ü") for number in range(4)), ("only one",), ("first", "second"),
    ]  # fmt: skip
    assert command(capsys, "shards", "verify", tmp_path).code == 0
    with pytest.raises(UserError) as caught:
        open_data(DataConfig(root=str(tmp_path)))
    assert str(caught.value) == f"data.root: {tmp_path} has captions and no classes: set loss.name clip or siglip"
    text, ends = (tmp_path / "index" / f"caption_{name}.npy" for name in ("text", "end"))
    np.save(text, np.load(text)[::-1])
    damaged = command(capsys, "shards", "verify", tmp_path)
    assert damaged.code == 1
    assert f"{text}: has other bytes than were written" in damaged.out
    np.save(ends, np.load(ends)[::-1])
    with pytest.raises(UserError, match=r"is damaged \(its captions are not those of 6 images\)"):
        captions(tmp_path)


def test_captions_beside_classes_are_read_by_those_who_ask(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / f"{name}.tar", sentences(f"a {name}, no. {{}}", name))
    index_tars(tmp_path, 1)
    assert captions(tmp_path) == [(f"a {name}, no. {number}",) for name in ("cat", "dog") for number in range(4)]
    plain = open_data(DataConfig(root=str(tmp_path)))
    assert plain.classes == ("cat", "dog")
    assert plain.splits["train"].captions is None


def test_captions_that_some_images_lack_are_left_out_or_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {**sentences("x", "cat"), "9.jpg": picture(9), "9.cls": b"dog"})
    notes: list[str] = []
    assert index_tars(tmp_path, 1, note=notes.append).captions is None
    assert notes == [f"1 of 5 images have no caption ({tmp_path}/a.tar: 9.jpg): none is used"]
    other = tmp_path / "other"
    write(other / "a.tar", {**sentences("x"), "9.jpg": picture(9), "9.txt": b" \n"})
    with pytest.raises(UserError) as caught:
        index_tars(other, 1)
    assert str(caught.value) == f"{other}/a.tar: 9.jpg: has no caption: give it a .txt, or a .json with a caption"

"""Folders and files with names as no one should give them."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_bad_samples import config_of
from vit_dist.cli.main import main
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.names import composed
from vit_dist.errors import UserError
from vit_dist.training.run import train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

NAMES = [
    *(b"plain", b"new\nline", b"\r", b"esc\x1b[31mred", b"not\xff\xfeutf8", b" spaces  ", "🦜".encode(), b"--dash"),
    *(b"x" * 240, b"<script>", b"=1+1", b"$\\frac{1}{2}$", b"a,b;\"c'", "\u202eback".encode(), b"%s%d{}", b"*?[a]"),
    *("e\u0301".encode(), "\u00e9".encode(), b"a\tb", b"~", b"-", b"\\", b"train2", b"\x7f"),
]


def write(root: Path, names: list[bytes]) -> None:
    """Write a folder of two images for each name, which the images have as well."""
    generator = np.random.default_rng(0)
    for name in names:
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for number in range(2):
            with open(os.path.join(folder, name + b"%d.png" % number), "wb") as file:
                Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file, "PNG")


def test_a_run_on_folders_with_odd_names_can_be_trained_and_asked(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    images, run = tmp_path / "pictures", tmp_path / "run"
    write(images, NAMES)
    train(config_of(run, str(images), **{"train.duration": "2 updates", "log.report": True}))
    for format in ("table", "jsonl", "csv"):
        words = ["predict", str(run), str(images), "--format", format, "--out", str(tmp_path / format)]
        assert main(words) == 0
    assert main(["evaluate", str(run), "--folder", str(images), "--json", str(tmp_path / "json")]) == 0
    out, err = capfdbinary.readouterr()
    for text in (out, err, (tmp_path / "table").read_bytes()):
        assert not {b"\x1b"[0], b"\r"[0], b"\x7f"[0]} & set(text)
        assert b"Traceback" not in text
        text.decode()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text(), newline="")))
    assert len(rows) == 2 * len(NAMES) == len((tmp_path / "jsonl").read_text().splitlines())
    assert not any(row["error"] for row in rows)
    assert len(json.loads((tmp_path / "json").read_text())["classes"]) == len(NAMES) - 1  # é in two forms is one class


def test_odd_names_of_bad_files_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    source = read_folder(tmp_path).splits["train"].source
    assert isinstance(source, FileSource)
    for index, path in enumerate(source.paths):
        path.write_bytes(b"")
        with pytest.raises(UserError) as error:
            source.image(index)
        assert str(error.value).isprintable()
        str(error.value).encode()


def random_names(count: int) -> list[bytes]:
    """Return different names of up to 240 random bytes or characters."""
    draw, names = random.Random(0), set[bytes]()
    while len(names) < count:
        length = draw.choice((1, 2, 5, 50, 240))
        name = draw.choice(
            (
                bytes(draw.randrange(1, 256) for _ in range(length)),
                "".join(chr(draw.randrange(1, 0xD800)) for _ in range(length)).encode()[:240],
                bytes(draw.choice(b" .-'\"$%\n\t\x1b;,=<>&") for _ in range(length)),
            )
        ).replace(b"/", b"_")
        if not name.startswith(b"."):
            names.add(name)
    return sorted(names)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_random_names_are_classes(tmp_path: Path, count: int) -> None:
    names = random_names(count)
    write(tmp_path, names)
    data = read_folder(tmp_path)
    assert sorted(map(os.fsencode, data.classes)) == sorted(
        {os.fsencode(composed(os.fsdecode(name))) for name in names}
    )
    assert len(data.splits["train"]) == 2 * count
    assert all(data.splits["train"].source.image(index).size == (9, 9) for index in range(2 * count))

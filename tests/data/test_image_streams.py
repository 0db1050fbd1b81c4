"""Training on image files: the same pixels for every number of workers and processes, and in every read."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from tests.data.sources.damaged import whole
from tests.processes import run_world
from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.transforms import TrainingTransform
from vit_dist.data.reader import Reader
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.splits import Subset
from vit_dist.data.workers import Workers
from vit_dist.plan.plan import Slots

MEAN, SIDE = (0.485, 0.456, 0.406), 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of JPEGs, small and large, grey, turned, progressive and damaged, and of other formats."""
    root = tmp_path_factory.mktemp("files")
    draw, exif = np.random.default_rng(0), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for number in range(24):
        side = (30, 70, 300)[number % 3]
        pixels = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        image = pixels.resize((side + number, side), Image.Resampling.BICUBIC)
        settings = ({}, {"progressive": True}, {"exif": exif}, {"subsampling": 0})[number % 4]
        file = io.BytesIO()
        (image.convert("L") if number % 5 == 0 else image).save(file, "JPEG", **settings)
        content = bytearray(file.getvalue())
        if number % 7 == 3:
            content[-60:-50] = bytes(10)  # libjpeg goes on, and says so
        if number == 23:
            del content[len(content) // 2 :]
        folder = root / ("ant", "bee")[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02}.jpg").write_bytes(content)
    for kind in ("png", "palette.png", "grey16.png", "webp", "cmyk.tif"):
        (root / "ant" / f"a.{kind}").write_bytes(whole(kind))
    return root


def read(files: Path, workers: int, augment: AugmentConfig, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Return the pixels and ids of three epochs, read by a rank of so many: every world-th batch."""
    subset: Subset = read_folder(files).splits["train"]
    transform = TrainingTransform(augment, MEAN, SIDE, None)
    reader = Reader(subset, transform, 5, SIDE, channels=3, largest_side=40, on_bad_sample="replace")
    opened = Workers(reader, workers, timeout=60)
    slots = [
        Slots(np.arange(start, start + 6) % len(subset), np.full(6, epoch), np.ones(6, np.float32), size)
        for epoch, size in ((0, 0), (1, 40), (2, 0))
        for start in range(0, len(subset), 6)
    ]
    batches = [(batch.pixels.clone(), batch.ids) for batch in opened.read(slots[rank::world])]
    opened.close()
    found = {f"pixels {rank + world * n}": pixels for n, (pixels, _) in enumerate(batches)}
    return found | {f"ids {rank + world * n}": ids for n, (_, ids) in enumerate(batches)}


@pytest.mark.parametrize("augment", [{}, {"auto": "rand-m9-mstd0.5-inc1", "color_jitter": 0.3}])
def test_pixels_are_the_same_for_every_number_of_workers(
    files: Path, augment: dict[str, float], capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process Pillow decodes, in workers torchvision."""
    config = AugmentConfig(crop_min=0.3, **augment)
    expected = read(files, 0, config)
    assert len(expected) == 30
    for workers in (0, 1, 3):
        found = read(files, workers, config)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert capfd.readouterr().err == ""
    # The same file at the same side, under another key.
    assert not torch.equal(expected["pixels 0"], expected["pixels 10"])


@pytest.mark.parametrize("auto", ["", "rand-m9-mstd0.5-inc1"])
def test_a_sample_does_not_depend_on_those_that_are_read_with_it(files: Path, auto: str) -> None:
    subset = read_folder(files).splits["train"]
    reader = Reader(
        subset,
        TrainingTransform(AugmentConfig(crop_min=0.3, auto=auto), MEAN, SIDE, None),
        5,
        SIDE,
        channels=3,
        on_bad_sample="replace",
    )
    every = Slots(np.arange(len(subset)), np.zeros(len(subset), np.int64), np.ones(len(subset), np.float32))
    together = reader.read(every)
    for row in range(len(subset)):
        alone = reader.read(
            replace(every, index=every.index[[row]], epoch=every.epoch[[row]], weight=every.weight[[row]])
        )
        assert torch.equal(alone.pixels[0], together.pixels[row])
        assert dict(alone.bad) == {0: together.bad[row]} if row in together.bad else not alone.bad
    assert len(together.bad) == 1


def digests(files: str, workers: int, world: int) -> dict[str, str]:
    """Return digests of what this rank reads."""
    found = read(Path(files), workers, AugmentConfig(crop_min=0.3), int(os.environ.get("RANK", "0")), world)
    return {name: hashlib.sha256(values.numpy().tobytes()).hexdigest() for name, values in found.items()}


def test_two_processes_read_what_one_reads(files: Path, tmp_path: Path) -> None:
    first, second = run_world(2, digests, tmp_path, str(files), 1, 2)
    assert not first.keys() & second.keys()
    assert first | second == digests(str(files), 0, 1)

"""The check of a data set: every fault that was planted is found, and nothing else, in any source."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checks.planting import FAULTS, photo, plant_faults
from tests.sharing import made_once
from vit_dist.checks.data import DataCheck, check_data
from vit_dist.checks.findings import Finding, findings
from vit_dist.checks.images import RECORD, look_at
from vit_dist.config.fields import DataConfig
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of
from vit_dist.plan.keys import Ints


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "faulty pictures", lambda root: plant_faults(root))


def checked(data: LabelledSplits, root: Path | None = None, workers: int = 0, timeout: float = 300.0) -> DataCheck:
    return check_data(data, "" if root is None else str(root), workers=workers, timeout=timeout)


def keys_of(check: DataCheck, found: list[Finding]) -> dict[str, set[str]]:
    """Return the names of the images of each kind of finding."""
    keys: dict[str, set[str]] = {}
    for finding in found:
        keys.setdefault(finding.kind, set()).update(check.sample(image).key for image in finding.images.tolist())
    return keys


def test_every_fault_is_found_and_no_other(faulty: Path) -> None:
    check = checked(open_data(DataConfig(root=str(faulty))), faulty)
    found = findings(check)
    assert keys_of(check, found) == FAULTS
    assert {finding.kind for finding in found if finding.broken} == {"unreadable", "leak", "conflict"}
    texts = {finding.kind: finding.text for finding in found}
    assert texts["unreadable"].startswith(
        "5 images cannot be read (1 cut short, 1 empty, 3 damaged or in no known format;"
    )
    leaks = [finding.text.partition(" (")[0] for finding in found if finding.kind == "leak"]
    assert leaks == ["1 of the 10 images of val is in train too", "1 of the 10 images of test is in val too"]
    assert "(train/a/04.jpg is a, train/b/other_label.jpg b)" in texts["conflict"]
    assert "(train/b/twice.jpg is train/b/20.jpg)" in texts["repeat"]


def test_pairs_name_the_image_that_is_copied(faulty: Path) -> None:
    check = checked(open_data(DataConfig(root=str(faulty))), faulty)
    pairs = {
        (check.sample(int(image)).key, check.sample(int(other)).key)
        for finding in findings(check)
        if finding.kind in ("leak", "alike_leak", "alike_repeat") and finding.others is not None
        for image, other in zip(finding.images, finding.others, strict=True)
    }
    assert pairs == {
        ("val/a/02.jpg", "train/a/leak.jpg"),
        ("test/b/19.jpg", "val/b/leak.jpg"),
        ("val/a/06.jpg", "train/a/small_leak.jpg"),
        ("train/b/twice_anew.png", "train/b/21.jpg"),
    }


def test_workers_and_shards_change_nothing(faulty: Path, tmp_path: Path) -> None:
    data = open_data(DataConfig(root=str(faulty)))
    alone, together = checked(data, faulty), checked(data, faulty, workers=2)
    assert alone.records.tobytes() == together.records.tobytes()
    assert alone.reasons == together.reasons
    shutil.copytree(faulty, tmp_path / "good")
    for name in FAULTS["unreadable"]:
        (tmp_path / "good" / name).unlink()
    files = open_data(DataConfig(root=str(tmp_path / "good")))
    build(plan_shards(files, 100_000), tmp_path / "shards", 1, lambda items, count: items)
    shards = open_data(DataConfig(root=str(tmp_path / "shards")))
    of_files, of_shards = checked(files, tmp_path / "good"), checked(shards, tmp_path / "shards")

    def counts(check: DataCheck) -> dict[str, int]:
        return {kind: len(images) for kind, images in keys_of(check, findings(check)).items()}

    assert counts(of_files) == counts(of_shards) == {kind: len(FAULTS[kind]) for kind in counts(of_files)}
    [repeat] = [finding.text for finding in findings(of_shards) if finding.kind == "repeat"]
    assert re.search(r"\(train-0\d+.tar: \w/\w+.jpg is train-0\d+.tar: \w/\w+.jpg\)", repeat)
    sample = of_shards.sample(int(of_shards.copies.exact.repeats.images[0]))
    assert sample.key.isdecimal()
    assert re.fullmatch(r"train-\d+.tar: b/(20|twice).jpg", sample.shown)


def test_images_in_memory_are_checked_by_their_number() -> None:
    pixels = np.stack([np.asarray(photo(number, (40, 40))).transpose(2, 0, 1) for number in range(20)])
    pixels[7] = pixels[3]  # the same label
    pixels[10] = pixels[5]  # another
    labels: Ints = np.arange(20, dtype=np.int64) // 10
    parts = {"train": (pixels.transpose(0, 2, 3, 1), labels), "test": (pixels[8:9].transpose(0, 2, 3, 1), labels[8:9])}
    check = checked(from_source(parts, DataConfig(val_fraction=0.0)))
    assert keys_of(check, findings(check)) == {
        "leak": {"test/0"},
        "conflict": {"train/5", "train/10"},
        "repeat": {"train/7"},
    }
    assert check.modes() == {"RGB": 21}
    assert check.sizes()["shorter_side"] == {"smallest": 40, "median": 40, "largest": 40}


class Deadly:
    """A source whose image 3 ends the process that reads it, and whose image 5 raises."""

    def __init__(self) -> None:
        self.labels = np.arange(8) % 2

    def __len__(self) -> int:
        return 8

    def image(self, index: int) -> Image.Image:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 5:
            raise RuntimeError("no such luck")
        return photo(index)


def test_an_image_that_ends_its_reader_is_named_and_the_check_goes_on() -> None:
    check = checked(from_source(Deadly(), DataConfig(val_fraction=0.0)), workers=1)
    assert keys_of(check, findings(check)) == {"unreadable": {"3", "5"}}
    assert check.reasons[3] == "image/3: two workers ended while they read it, the last was killed (SIGKILL)"
    assert check.reasons[5] == "image/5: cannot be read (RuntimeError: no such luck)"


def test_images_of_one_kind_are_not_called_copies() -> None:
    """As of digits: they look alike by chance, so that many of them have different labels."""
    generator = np.random.default_rng(0)
    base = np.asarray(photo(0, (32, 32)).convert("L"), np.float64)
    pixels = np.stack([base + generator.normal(0, 3, base.shape) for _ in range(60)]).clip(0, 255).astype(np.uint8)
    subset = all_of(MemorySource(pixels[:, None], np.arange(60, dtype=np.int64) % 5))
    data = LabelledSplits({"train": subset}, tuple("abcde"), 1, 32, (0.5,), (0.5,))
    (finding,) = findings(checked(data))
    assert (finding.kind, finding.broken, len(finding.images)) == ("alike", False, 60)
    assert finding.text.startswith("60 images look like others, 100% of them like one under another label: either")


def test_a_record_is_all_that_is_kept_of_an_image() -> None:
    pixels = np.zeros((100, 1, 20, 20), np.uint8)
    seen = look_at(all_of(MemorySource(pixels, np.zeros(100, np.int64))), 0, 300.0)
    assert seen.records.nbytes == 100 * RECORD.itemsize == 3900
    assert seen.reasons == {}

"""`check`: its exit code, page, JSON and list; and what it says of speed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from shlex import quote

import pytest

from tests.checks.planting import FAULTS, photo, plant_faults
from tests.cli.commands import command
from tests.sharing import made_once
from vit_dist.checks.speed import ReadingSpeed
from vit_dist.checks.starving import device_lines
from vit_dist.config.config import Config
from vit_dist.data.sources.leave_out import read_names
from vit_dist.data.sources.splits import ImageSizes

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "faulty pictures", lambda root: plant_faults(root))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        for number in range(24):
            folder = root / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            photo(number).save(folder / f"{number:02}.jpg")

    return made_once(tmp_path_factory, "good pictures", make)


def test_what_is_broken_is_written_listed_and_gone_once_it_is_left_out(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, "check", "--data.root", faulty, "--data.workers", 1)
    assert (code, err) == (1, "")
    broken = [line for line in out.splitlines() if line.startswith("  broken: ")]
    assert len(broken) == 4  # unreadable, two leaks, conflict
    words = f"--data.root {quote(str(faulty))} --data.leave_out check/leave_out.txt"
    assert f"to train without what is broken: vit-dist train {words}\n" in out
    result = json.loads(Path("check/check.json").read_text())
    assert result["broken"] is True
    assert {finding["kind"] for finding in result["findings"]} == FAULTS.keys()
    assert result["images"] == 57 == sum(result["splits"].values())
    unreadable = result["findings"][0]
    assert {image["key"] for image in unreadable["images"]} == FAULTS["unreadable"]
    assert "truncated" in unreadable["images"][0]["reason"]
    leak = next(finding for finding in result["findings"] if finding["kind"] == "alike_leak")["images"][0]
    assert (leak["key"], leak["copy_of"]["key"]) == ("val/a/06.jpg", "train/a/small_leak.jpg")
    gone = FAULTS["unreadable"] | FAULTS["conflict"] | {"train/a/leak.jpg", "val/b/leak.jpg"}
    listed = Path("check/leave_out.txt").read_text()
    assert read_names(Path("check/leave_out.txt")) == gone

    again = command(capsys, "check", "--data.root", faulty, "--data.leave_out", "check/leave_out.txt")
    assert again.code == 0
    assert "broken:" not in again.out
    assert "nothing is broken" in again.out
    assert Path("check/leave_out.txt").read_text() == listed  # the new list keeps what the old one had, reasons too
    plan = command(capsys, "plan", "--data.root", faulty, "--data.leave_out", "check/leave_out.txt")
    assert plan.code == 0
    assert f"images named in check/leave_out.txt: {len(gone)} (" in plan.out


def test_the_page_shows_pairs_and_escapes_names(tmp_path: Path, capsys: Capture) -> None:
    for folder in ("train/a<b>", "train/c", "val/a<b>", "val/c"):
        (tmp_path / "pets" / folder).mkdir(parents=True)
    for number, path in enumerate(("train/a<b>/1.jpg", "train/c/2.jpg", "val/a<b>/3.jpg", "val/c/4.jpg")):
        photo(number).save(tmp_path / "pets" / path)
    photo(0).save(tmp_path / "pets" / "val" / "a<b>" / "same&.jpg")
    code, _, _ = command(capsys, "check", "--data.root", tmp_path / "pets", "--out", tmp_path / "out")
    assert code == 1
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<b>/" not in page
    assert "val/a&lt;b&gt;/same&amp;.jpg is train/a&lt;b&gt;/1.jpg" in page
    assert len(re.findall(r'<img[^>]* src="data:image/', page)) == 2
    assert "https://" not in page


def test_good_images_are_called_good(good: Path, tmp_path: Path, capsys: Capture) -> None:
    code, out, _ = command(capsys, "check", "--data.root", good, "--out", tmp_path / "out")
    assert code == 0
    assert "check of good pictures: 24 images" in out
    assert "sizes    shorter side 110 pixels, longer side 150, the longest 1.36 times as long as wide; " in out
    assert "modes    RGB 24" in out
    listed = (tmp_path / "out" / "leave_out.txt").read_text()
    assert [line for line in listed.splitlines() if not line.startswith("#")] == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rate", "100"], "--rate: goes with --speed: give it too, or drop --rate"),
        (["--devices", "2"], "--devices: goes with --speed: give it too, or drop --devices"),
        (["--speed", "--rate", "fast"], "--rate: must be images/s of one device, a number above 0, not fast"),
        (["--speed", "--rate", "0"], "--rate: must be images/s of one device, a number above 0, not 0"),
        (["--speed", "--devices", "0"], "--devices: must be a whole number above 0, not 0"),
        (["--speed", "--out", "x"], "--out: --speed writes nothing: drop one of them"),
        (["--data.leave_out", "none.txt"], "data.leave_out: none.txt cannot be read: No such file or directory: name "),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], line: str, good: Path, capsys: Capture) -> None:
    code, out, err = command(capsys, "check", "--data.root", good, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"vit-dist: {line}")
    assert err.count("\n") == 1


def test_images_with_captions_are_checked_as_a_run_reads_them(good: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "list.csv"
    files = sorted(good.rglob("*.jpg"))
    table.write_text("path,caption\n" + "".join(f"{path},picture {n}\n{path},again\n" for n, path in enumerate(files)))
    result = command(capsys, "check", "--data.root", table, "--loss.name", "clip", "--out", tmp_path / "page")
    assert result.code == 0, result.err
    assert re.search(r"captions +train 44 \+ val 4; 2 to an image of train", result.out)


def test_a_file_is_no_place_for_the_page(good: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").write_text("")
    code, _, err = command(capsys, "check", "--data.root", good, "--out", tmp_path / "out")
    assert (code, err) == (2, f"vit-dist: --out: {tmp_path / 'out'} is a file: name a folder\n")


def test_speed_names_each_stage_and_who_would_wait(good: Path, capsys: Capture) -> None:
    words = ["--data.root", good, "--data.workers", 1, "--speed", "--augment.crop_min", 0.3, "--data.image_size", 32]
    words += ["--augment.auto", "rand-m9-mstd0.5-inc1"]
    code, out, _ = command(capsys, "check", *words, "--devices", 2, "--rate", 1e9)
    assert code == 0
    rows = re.findall(r"^  (read|decode, crop and resize|augment|all of it) +([\d.]+) ms of a core an image", out, re.M)
    assert [name for name, _ in rows] == ["read", "decode, crop and resize", "augment", "all of it"]
    milliseconds = [float(value) for _, value in rows]
    assert sum(milliseconds[:3]) == pytest.approx(milliseconds[3], abs=0.02)
    assert min(milliseconds[1:3]) > 0
    assert re.search(r"measured +[\d,]+ images/s by 2 workers", out)
    assert re.search(r"2 devices of 1,000,000,000 images/s need 2,000,000,000, and [\d,]+ are read: waiting 100%", out)
    slow = command(capsys, "check", *words, "--rate", 0.001).out
    assert "a device of 0.001 images/s needs 0.001, and" in slow
    assert ": no waiting; about 1 of the" in slow


def test_speed_of_images_in_memory(capsys: Capture) -> None:
    code, out, _ = command(capsys, "check", "--config", "digits", "--speed")
    assert code == 0
    assert out == "the images are in memory, and nothing is done to them in workers: no device waits for them\n"


def advice(speed: ReadingSpeed, devices: int, rate: float, sizes: ImageSizes | None = None) -> list[str]:
    config = Config.load("folder", {"data.root": "x", "augment.auto": "trivial"})
    return list(device_lines(speed, devices, rate, config, 16, 224, sizes))


def test_what_to_do_depends_on_what_takes_the_time() -> None:
    """5 ms of a core an image: 16 cores make 3,200 images/s at most, and 4 workers 800."""
    stages = {"read": 0.0005, "decode, crop and resize": 0.004, "augment": 0.0005}
    decoding = ReadingSpeed(stages, 0.0, 4, 800.0, 100, 0)
    assert advice(decoding, 4, 150) == [
        "4 devices of 150 images/s need 600, and 800 are read: no waiting; about 3 of the 16 cores are busy with it"
    ]
    note, _ = advice(replace(decoding, rate=300.0), 4, 60)
    assert note.startswith("note: other programs use these cores too: alone on them the workers would read about 800 ")
    line, *to_do = advice(decoding, 4, 500, ImageSizes(500, 100, 1000, 5000, 0.0))
    assert line == "4 devices of 500 images/s need 2,000, and 800 are read: waiting 60% of the time"
    assert [text.split(":")[1].strip() for text in to_do] == ["more workers", "smaller copies of the images"]
    (_, *to_do) = advice(decoding, 8, 900)
    assert "to do: a machine with 36 cores or more for these devices: this process may use 16" in to_do
    stored = ReadingSpeed({"read": 0.001, "decode": 0.002}, 0.007, 4, 400.0, 100, 0)
    assert any("storage takes 70% of an image's time" in text for text in advice(stored, 4, 500))
    augmented = ReadingSpeed({"read": 0.0, "decode, crop and resize": 0.002, "augment": 0.002}, 0.0, 16, 4000, 9, 0)
    assert any("augment.auto trivial takes 50%" in text for text in advice(augmented, 8, 900))
    assert advice(decoding, 4, 0)[0].startswith("4 devices would wait for images above 800 images/s, 200 each: --rate")

"""`train(config, source=…)` with an object of the user's own: any that has a length, labels and images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vit_dist import Config, UserError, train
from vit_dist.config.fields import AugmentConfig, DataConfig, RunConfig
from vit_dist.data.fingerprint import fingerprint
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.stream import Stream
from vit_dist.inference.load import load_model
from vit_dist.inference.splits import open_split
from vit_dist.plan.plan import Plan
from vit_dist.runtime.runtime import Runtime

FIELDS = {
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch_size": 8, "data.image_size": 16,
    "batch.global_size": 16, "batch.micro_size": 16, "train.duration": "4 updates", "schedule.warmup": "1 updates",
    "run.device": "cpu", "run.threads": 1, "log.report": False, "log.every": "1 updates", "data.workers": 0,
    "data.val_fraction": 0.2,
}  # fmt: skip


@dataclass
class Database:
    """What a user might have: nothing of vit_dist's, images by number, labels as a list."""

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...] = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return Image.open(self.files[index]).convert("RGB")


def database(image_folder: Path) -> Database:
    files = sorted((image_folder / "train").rglob("*.png"))
    return Database(files, [("ant", "bee", "cat").index(path.parent.name) for path in files])


def config(folder: Path, **more: Any) -> Config:
    return Config.load("folder", {**FIELDS, "run.dir": str(folder), **more})


def test_training_from_an_object_of_ones_own(image_folder: Path, tmp_path: Path) -> None:
    run = train(config(tmp_path / "run"), source=database(image_folder))
    evaluation = next(line for line in run.history if line["kind"] == "eval")
    assert (evaluation["split"], evaluation["seen"]) == ("val", 12)
    assert run.history[0]["plan"]["samples"] == 48
    assert [line["update"] for line in run.history if line["kind"] == "train"] == [1, 2, 3, 4]
    assert run.preprocessing == Preprocessing(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)
    trained = load_model(str(run.folder))
    assert trained.classes == ["ant", "bee", "cat"]
    assert open_split(trained, "", image_folder / "valid").subset.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    with pytest.raises(UserError, match=r"^data.root: this model does not say its data: name images \(predict\) or "):
        open_split(trained, "", None)  # the object itself cannot be opened again
    again = train(config(tmp_path / "again"), source=database(image_folder))
    weights = (folder / "checkpoints" / "last" / "model.safetensors" for folder in (run.folder, again.folder))
    assert len({path.read_bytes() for path in weights}) == 1


def batches(data: LabelledSplits, runtime: Runtime) -> list[tuple[Tensor, Tensor]]:
    settings = Config(data=DataConfig(image_size=16), augment=AugmentConfig(crop_min=0.5, flip=0.5))
    plan = Plan.from_config(settings, len(data.splits["train"]), 1)
    preprocessing = Preprocessing(16, data.mean, data.std)
    stream = Stream(data.splits["train"], plan, preprocessing, settings.augment, runtime, workers=0)
    return [(batch.images, batch.targets) for position in range(2) for batch in stream.window(position)]


def test_its_stream_is_that_of_the_same_images_in_a_folder(image_folder: Path) -> None:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    folder = read_folder(image_folder / "train")
    own = from_source(database(image_folder), DataConfig(val_fraction=0.0))
    pairs = list(zip(batches(own, runtime), batches(folder, runtime), strict=True))
    runtime.end()
    assert len(pairs) == 2
    for (images, targets), (expected_images, expected_targets) in pairs:
        assert torch.equal(images, expected_images)
        assert torch.equal(targets, expected_targets)


def test_decoded_pixels_are_taken_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1, 6, 6), dtype=np.uint8)
    data = from_source(MemorySource(pixels, np.arange(10) % 2), DataConfig(val_fraction=0.0))
    assert (data.channels, data.image_size, data.mean, data.std) == (1, 6, (0.5,), (0.5,))
    assert data.classes == ("0", "1")
    assert list(data.splits) == ["train"]


class Bare:
    labels = (0, 1)


class Palette(MemorySource):
    def image(self, index: int) -> Image.Image:
        return Image.new("P", (4, 4))


ZEROS = np.zeros((3, 1, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            Bare(),
            "source: Bare has no __len__, image: give (images, labels), a torch Dataset, a table or a list of paths "
            "with labels, or an object with __len__(), labels (class numbers) and image(index), which returns a PIL "
            "image",
        ),
        (
            Database([Path("a"), Path("b")], [0]),
            "source.labels: must be one class number, 0 or more, for each of its 2 images, not int64 [1]",
        ),
        (
            MemorySource(ZEROS, np.array([0.0, 1.0, 2.0])),  # type: ignore[arg-type]
            "source.labels: must be one class number, 0 or more, for each of its 3 images, not float64 [3]",
        ),
        (
            MemorySource(ZEROS, np.array([0, -1, 2])),
            "source.labels: must be 0 or more, not -1 (image 1)",
        ),
        (Database([], []), "source: has no images"),
        (
            MemorySource(ZEROS, np.array([0, 1, 10**9])),
            "source.labels: go up to 1000000000 for 3 images: number the classes from 0 on, or give source.classes",
        ),
        (Database([Path("a")] * 2, [0, 1], ("a", "a")), "source.classes: must be a list of different names"),
        (
            Database([Path("gone.png")] * 2, [0, 1]),
            "image/0: cannot be read (FileNotFoundError: [Errno 2] No such file or directory: 'gone.png')",
        ),
        (Database([Path("a")] * 2, [0, 3]), "source.classes: has 3 names, and source.labels go up to 3"),
        (
            MemorySource(ZEROS[:, 0], np.arange(3)),
            "source.pixels: must be uint8 [3, 1 or 3, side, side], not uint8 [3, 4, 4]",
        ),
        (Palette(ZEROS, np.arange(3)), "source.image: must return PIL images of mode RGB or L, not P"),
    ],
    ids=[
        *("bare", "too few labels", "real labels", "negative labels", "nothing", "huge label", "twice a class"),
        *("unreadable", "classes", "pixels", "mode"),
    ],
)
def test_what_a_source_lacks_is_one_line(source: Any, problem: str) -> None:
    with pytest.raises(UserError) as error:
        from_source(source, DataConfig())
    assert str(error.value) == problem


def test_images_that_differ_are_named(image_folder: Path, tmp_path: Path) -> None:
    source = database(image_folder)
    Image.new("L", (20, 20)).save(tmp_path / "grey.png")
    source.files[7] = tmp_path / "grey.png"
    source.image = lambda index: Image.open(source.files[index])  # type: ignore[method-assign]
    with pytest.raises(UserError) as error:
        train(config(tmp_path / "run"), source=source)
    assert str(error.value) == "image/7: is [1, 16, 16], others are [3, 16, 16]: make them alike"


def test_one_class_is_refused_before_the_folder_is_touched(image_folder: Path, tmp_path: Path) -> None:
    source = database(image_folder)
    source.labels, source.classes = [0] * len(source), ("ant",)
    with pytest.raises(UserError) as error:
        train(config(tmp_path / "run"), source=source)
    assert str(error.value) == "data: has one class, ant: a classifier needs two or more"
    assert not (tmp_path / "run").exists()


def test_val_stays_as_it_was_when_images_are_added() -> None:
    """By the names of files in any order, else by their places in the list."""

    def held_out(source: object) -> list[int]:
        val = from_source(source, DataConfig(val_fraction=0.25)).splits["val"]
        assert np.bincount(val.labels).tolist() == [len(val) // 2] * 2
        return val.indices.tolist()

    pixels = np.random.default_rng(0).integers(0, 256, (48, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(48) % 2
    few, more = (held_out(MemorySource(pixels[:length], labels[:length])) for length in (40, 48))
    assert len(few) == 10
    assert len(set(few) - set(more)) <= 2
    paths = [Path(f"/data/{label}/{number}.png") for number, label in enumerate(labels)]

    class Named(MemorySource):
        @property
        def paths(self) -> list[Path]:
            return paths if len(self.labels) == 48 and self.labels[0] == 0 else paths[::-1]

    names = {paths[index] for index in held_out(Named(pixels, labels))}
    assert names == {paths[::-1][index] for index in held_out(Named(pixels[::-1], labels[::-1]))}


class Pictures(Dataset[tuple[Image.Image, int]]):
    """A torch Dataset of a user's own; readers: the processes in which its images were read."""

    classes = ("ant", "bee", "cat")

    def __init__(self, image_folder: Path, split: str, log: Path) -> None:
        self.files = sorted((image_folder / split).rglob("*.png"))
        self.targets = [self.classes.index(path.parent.name) for path in self.files]
        self.log = log

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        (self.log / str(os.getpid())).touch()
        return Image.open(self.files[index]).convert("RGB"), self.targets[index]


def last_weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_a_dataset_trains_as_the_folder_of_its_images_and_in_workers(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "readers").mkdir()
    splits = {split: Pictures(image_folder, split, tmp_path / "readers") for split in ("train", "valid")}
    in_folder = train(Config.load("folder", {**FIELDS, "run.dir": str(tmp_path / "f"), "data.root": str(image_folder)}))
    alone = train(config(tmp_path / "alone"), source=splits)
    assert [path.name for path in (tmp_path / "readers").iterdir()] == [str(os.getpid())]
    with_workers = train(config(tmp_path / "workers", **{"data.workers": 2}), source=splits)
    assert len(list((tmp_path / "readers").iterdir())) > 1
    assert last_weights(alone.folder) == last_weights(with_workers.folder) == last_weights(in_folder.folder)
    assert alone.summary["best"] == in_folder.summary["best"]
    measured = alone.model.evaluate(splits["valid"])
    assert (measured.seen, measured.top1) == (21, alone.model.evaluate(image_folder / "valid").top1)


def test_arrays_train_and_the_same_call_resumes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 3
    named = Config.load("digits", {**FIELDS, "run.dir": ""})
    run = train(named, source=(images, labels))
    assert run.folder.parent == Path("runs")
    assert run.folder.name.startswith("arrays-")
    assert Config.load(run.folder / "config.yaml").data.name == "folder"
    with pytest.raises(UserError, match=r"^data.root: this model does not say its data"):
        run.model.evaluate()
    assert train(named, source=(images, labels)).summary == run.summary
    assert train(named, source=(255 - images, labels)).folder != run.folder
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert train(named, source=(tensors, torch.from_numpy(labels))).folder == run.folder
    seen = run.model.evaluate((images, labels))
    assert seen.top1 == pytest.approx(100 * (run.predict(images).numbers == labels).mean())
    with pytest.raises(UserError) as error:
        train(Config.load("folder", {**FIELDS, "data.root": str(tmp_path)}), source=(images, labels))
    assert str(error.value) == f"data.root: {tmp_path} is set, and a source is given too: leave one of them out"


def test_other_images_with_the_same_labels_are_other_data(image_folder: Path) -> None:
    source = database(image_folder)
    first, again = (fingerprint(from_source(source, DataConfig())) for _ in range(2))
    assert first == again
    assert {name: split["samples"] for name, split in first.items()} == {"train": 54, "val": 6}
    source.image = lambda index: Image.new("RGB", (20, 20))  # type: ignore[method-assign]
    assert fingerprint(from_source(source, DataConfig())) != first

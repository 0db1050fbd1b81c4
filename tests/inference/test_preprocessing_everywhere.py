"""One preprocessing: training's evaluation, every command, Python and exports see the same pixels, and timm too."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image, ImageOps

import vit_dist
from tests.cli.commands import command
from tests.conftest import REAL_DATA
from tests.export.models import small_model
from tests.export.timm_validation import timm_validation
from tests.runs import PICTURES, QUIET
from vit_dist import Config, train
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.export.timm_folder import export_timm
from vit_dist.files import read_json
from vit_dist.inference.load import TrainedModel
from vit_dist.run_folder.predictions import INPUTS, read_inputs

ON_CPU = ["--run.device", "cpu", "--run.threads", "1"]
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)
PREPROCESSINGS: dict[str, Preprocessing] = {
    "32 pixels at 0.875": Preprocessing(32, MEAN, STD),  # 36 pixels: 37 where the resized side is rounded
    "224 pixels at 0.9": Preprocessing(224, MEAN, STD, 0.9, "bilinear"),
    "stretched": Preprocessing(64, MEAN, STD, 0.9, "bilinear", "stretch"),
    "padded": Preprocessing(64, MEAN, STD, 1.0, "bicubic", "pad"),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return ImageNet photos of many sizes; skip the test if they are missing."""
    archive = REAL_DATA / "imagenet-sample.tar"
    if not archive.is_file():
        pytest.skip(f"no ImageNet sample in {archive}")
    folder = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted(folder.rglob("*.JPEG"))


def model_for(preprocessing: Preprocessing) -> TrainedModel:
    made = small_model(side=preprocessing.image_size, patch_size=preprocessing.image_size // 8)
    return dataclasses.replace(made, preprocessing=preprocessing)


def sorted_into_classes(photos: list[Path], root: Path, classes: list[int], names: list[str]) -> int:
    """Link photos below folders of classes, every third below a wrong one; return how many are below their own."""
    for place, (photo, number) in enumerate(zip(photos, classes, strict=True)):
        folder = root / names[number if place % 3 else (number + 1) % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    return sum(place % 3 > 0 for place in range(len(photos)))


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_an_exported_folder_has_the_same_top1_in_timms_validation(
    name: str, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, exported, images = model_for(PREPROCESSINGS[name]), tmp_path / "exported", tmp_path / "images"
    export_timm(made, tmp_path / "unbalanced", card="")
    _, logits = timm_validation(tmp_path / "unbalanced", photos[0].parents[1])
    with torch.no_grad():  # so that the photos are spread over all classes
        made.model.get_parameter("head.bias").sub_(torch.stack([*logits.values()]).mean(0))
    export_timm(made, exported, card="")
    _, logits = timm_validation(exported, photos[0].parents[1])
    classes = [int(logits[str(photo)].argmax()) for photo in photos]
    assert len(set(classes)) == 5
    right = sorted_into_classes(photos, images, classes, made.classes)

    result = command(capsys, "evaluate", exported, "--folder", images, "--json", tmp_path / "out.json", *ON_CPU)
    assert result.code == 0, result.err
    ours, (theirs, _) = read_json(tmp_path / "out.json"), timm_validation(exported, images)
    assert ours["seen"] == len(photos) == 96
    assert ours["top1"] == pytest.approx(theirs, abs=1e-9) == pytest.approx(100 * right / 96)
    predictions = vit_dist.load(exported, device="cpu").predict(photos)
    expected = torch.stack([logits[str(photo)] for photo in photos]).softmax(1).numpy()
    np.testing.assert_allclose(predictions.probabilities, expected, atol=2e-6)


def write_odd_images(root: Path) -> Path:
    """Write oblong images of two classes, turned by EXIF or partly transparent, the ends in other colours."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("ant", "bee")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (20, 40, 4), dtype=np.uint8)
                pixels[:, :8, label] += 130
                pixels[:, :, 3] = 255
                exif = Image.Exif()
                exif[ExifTags.Base.Orientation] = (1, 6, 3, 5)[number % 4]
                if number % 3 == 0:
                    pixels[5:15, 20:30, 3] = generator.integers(0, 256, (10, 10))
                    Image.fromarray(pixels).save(folder / f"{number}.png", exif=exif)
                else:
                    Image.fromarray(pixels[:, :, :3]).save(folder / f"{number}.jpg", exif=exif, quality=95)
    return root


def by_hand(path: Path) -> Image.Image:
    """Return the image as a person sees it on a white page."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image)
    return page


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_every_way_to_use_a_run_sees_the_same_pixels(
    fit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, folder, exported = write_odd_images(tmp_path / "odd"), tmp_path / "run", tmp_path / "exported"
    fields = {
        **PICTURES, **QUIET, "data.root": str(images), "run.dir": str(folder), "data.fit": fit,
        "data.interpolation": "bilinear", "data.crop": 0.875 if fit == "crop" else 0.0,
        "augment.crop_min": 0.0, "augment.flip": 0.0,
        "batch.global_size": 12, "train.duration": "6 updates", "evaluate.every": "6 updates",
    }  # fmt: skip
    run = train(Config.load("folder", fields))
    saved = read_json(folder / "checkpoints" / "last" / "state.json")["preprocessing"]
    crop = 0.875 if fit == "crop" else 1.0
    assert (saved["fit"], saved["crop"], saved["interpolation"]) == (fit, crop, "bilinear")

    assert command(capsys, "export", folder, exported).code == 0
    theirs = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    files = sorted((images / "val").rglob("*.*"))
    inputs = torch.stack([transform(by_hand(path)) for path in files])
    with torch.inference_mode():
        expected = theirs(inputs).softmax(1).numpy()
    labels = np.asarray([path.parent.name == "bee" for path in files], np.int64)

    # Python: the run, and what is loaded from its folder and its export.
    loaded = [run.model, vit_dist.load(folder, device="cpu"), vit_dist.load(exported, device="cpu")]
    for model in loaded:
        np.testing.assert_allclose(model.predict(files).probabilities, expected, atol=2e-6)
        opened = [Image.open(path) for path in files]
        np.testing.assert_allclose(model.predict(opened).probabilities, expected, atol=2e-6)
        prepared = torch.stack([model.preprocess(path) for path in files])
        torch.testing.assert_close(prepared, inputs, atol=1e-6, rtol=0)
    # The commands.
    for name in (folder, exported):
        rows = command(capsys, "predict", name, *files, "--format", "jsonl", "--top", 2, *ON_CPU).out.splitlines()
        found = [{top["class"]: top["probability"] for top in json.loads(row)["top"]} for row in rows]
        shown = [[found[place][name] for name in ("ant", "bee")] for place in range(len(files))]
        np.testing.assert_allclose(shown, expected, atol=1e-4)
        command(capsys, "evaluate", name, "--folder", images / "val", "--json", tmp_path / "out.json", *ON_CPU)
        figures = read_json(tmp_path / "out.json")
        assert figures["loss"] == pytest.approx(-np.log(expected[np.arange(len(files)), labels]).mean(), abs=1e-5)
    # The evaluation of training, on the same weights.
    final = read_json(folder / "summary.json")["final"]
    assert final["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    # Training without a random crop.
    seen = read_inputs(folder / INPUTS)
    assert seen is not None
    assert len(seen.pixels) == 12
    known = {
        run.preprocessing.transform()(by_hand(path), 0, 16).numpy().tobytes() for path in sorted(images.rglob("*.*"))
    }
    assert {pixels.tobytes() for pixels in seen.pixels} <= known

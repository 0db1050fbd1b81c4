"""`vit_dist.load`: a trained model in Python predicts, embeds and evaluates as the commands do."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vit_dist
from tests.cli.commands import command, write_timm_folder
from tests.runs import DIGITS, QUIET, train_digits_run, train_pictures_run
from vit_dist import Classifier, Config, UserError, train
from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.sources.open import open_data
from vit_dist.files import read_json
from vit_dist.inference.load import load_model
from vit_dist.models.forward import eval_mode


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    return train_pictures_run(tmp_path_factory, image_folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: Path) -> Classifier:
    return vit_dist.load(run, device="cpu")


def few(image_folder: Path) -> list[Path]:
    return sorted((image_folder / "valid").rglob("*.png"))[::4]


def test_predictions_are_those_of_the_command(
    model: Classifier, run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = few(image_folder)
    result = command(capsys, "predict", run, *files, "--format", "jsonl", "--run.device", "cpu")
    rows = [json.loads(line) for line in result.out.splitlines()]
    predictions = model.predict(files)
    assert [each.image for each in predictions] == [row["image"] for row in rows] == list(map(str, files))
    for each, row in zip(predictions, rows, strict=True):
        assert [name for name, _ in each.top] == [top["class"] for top in row["top"]]
        assert [round(probability, 6) for _, probability in each.top] == [top["probability"] for top in row["top"]]
        assert (each.label, each.probability) == each.top[0]
    assert len({each.label for each in predictions}) > 1
    whole = model.predict(image_folder / "valid")
    assert len(whole) == 21
    assert whole.images[0] == str(image_folder / "valid" / "ant" / "00.png")
    assert model.predict(str(image_folder / "valid" / "*" / "03.png")).images == [
        str(image_folder / "valid" / name / "03.png") for name in ("ant", "bee", "cat")
    ]


def forms(path: Path) -> dict[str, Any]:
    """Return one image in every form that is not a path."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    pixels = np.asarray(image)
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return {
        "PIL": image,
        "PIL, not yet read": Image.open(path),
        "RGBA": image.convert("RGBA"),
        "array": pixels,
        "array, channels first": first,
        "array of 16 bits": pixels.astype(np.uint16) * 257,
        "array with alpha": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        "batch": pixels[None],
        "batch, channels first": first[None],
        "tensor": torch.from_numpy(first),
        "tensor, channels last": torch.from_numpy(pixels.copy()),
        "batch of tensors": torch.from_numpy(first)[None],
        "list": [pixels],
        "generator": (each for each in [image]),
    }


def test_an_image_in_any_form_is_the_same_to_the_bit(model: Classifier, image_folder: Path) -> None:
    path = image_folder / "train" / "bee" / "04.png"
    expected = model.predict(path)
    pixels = EvaluationTransform(model._trained.preprocessing.crop)(Image.open(path).convert("RGB"), 0, 16)
    prepared = model.preprocess(path)
    assert torch.equal(prepared, model._trained.preprocessing.normalise(pixels[None])[0])
    for name, image in forms(path).items():
        if name not in ("batch", "batch, channels first", "batch of tensors", "list", "generator"):
            assert torch.equal(model.preprocess(image), prepared), name
            assert model.preprocess(image).dtype == torch.float32
    for name, image in forms(path).items():
        made = model.predict(image)
        assert np.array_equal(made.probabilities, expected.probabilities), name
        assert made.images == ["images[0]"], name
    with eval_mode(model.module):
        logits = model.module(prepared[None])
    assert np.array_equal(logits.softmax(1).numpy(), expected.probabilities)


def test_forms_may_be_mixed_and_keep_their_order(model: Classifier, image_folder: Path) -> None:
    one, other, third = (image_folder / "valid" / name / "00.png" for name in ("ant", "bee", "cat"))
    both = np.stack([np.asarray(Image.open(path)) for path in (one, other)])
    made = model.predict([third, both, [Image.open(third)], str(one)])
    assert made.images == [str(third), "images[1]", "images[2]", "images[3]", str(one)]
    expected = model.predict([third, one, other, third, one]).probabilities
    assert np.array_equal(made.probabilities, expected)


def test_grey_and_palette_images_become_what_the_model_takes(model: Classifier, digits: Path, tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    colour = grey.convert("RGB")
    assert torch.equal(model.preprocess(grey), model.preprocess(colour))
    assert torch.equal(model.preprocess(np.asarray(grey)), model.preprocess(colour))
    palette = colour.quantize(16)
    assert torch.equal(model.preprocess(palette), model.preprocess(palette.convert("RGB")))
    palette.save(tmp_path / "palette.png")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    assert torch.equal(model.preprocess(tmp_path / "palette.png"), model.preprocess(palette))
    assert torch.equal(model.preprocess(tmp_path / "deep.png"), model.preprocess(grey))
    assert torch.equal(model.preprocess(deep), model.preprocess(grey))
    of_digits = vit_dist.load(digits, device="cpu").preprocess
    assert of_digits(colour).shape == (1, 8, 8)
    assert torch.equal(of_digits(colour), of_digits(colour.convert("L")))


def test_a_list_of_predictions_is_a_sequence_with_its_arrays(model: Classifier, image_folder: Path) -> None:
    predictions = model.predict(few(image_folder))
    assert predictions.probabilities.shape == (6, 3)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.classes == model.classes == ["ant", "bee", "cat"]
    assert predictions.labels == [each.label for each in predictions]
    assert predictions.numbers.tolist() == [model.classes.index(label) for label in predictions.labels]
    assert [each.image for each in predictions[2:4]] == predictions.images[2:4]
    assert predictions[-1] == list(predictions)[5]
    with pytest.raises(IndexError):
        predictions[6]
    first = predictions[0]
    shown = ", ".join(f"{name} {probability:.1%}" for name, probability in first.top)
    assert repr(first) == f"Prediction({first.image}: {shown})"
    assert repr(predictions[6:]) == "no predictions"
    assert repr(predictions).splitlines()[0].split() == [first.image, first.label, f"{first.probability:.1%}"]


FORMS = "give a path, a PIL image, or a uint8 array or tensor, or a list of these"


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ([], f"images: there are none: {FORMS}"),
        (None, f"images: NoneType is no image: {FORMS}"),
        ([b"abc"], f"images: bytes is no image: {FORMS}"),
        (
            [np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)],
            "images[1]: has float32 values: give the image itself, uint8 from 0 to 255, without ToTensor, scaling or "
            "normalising, which vit_dist does",
        ),
        (np.zeros((4, 4), np.int64), "images[0]: has int64 values: give uint8, from 0 to 255"),
        (
            np.zeros((5, 8, 8), np.uint8),
            "images[0]: [5, 8, 8] has no 1, 3 or 4 channels, neither last nor first: give several images as a list",
        ),
        (np.zeros((0, 8, 3), np.uint8), "images[0]: has no pixels: [0, 8, 3]"),
        (np.zeros(8, np.uint8), "images[0]: has 1 dimension: an image has two, or three with its channels"),
        ("gone.png", "gone.png: no image is there, nor does any match it"),
        (
            Image.new("F", (4, 4)),
            "images[0]: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits",
        ),
    ],
    ids=["nothing", "none", "bytes", "normalised", "int64", "grey batch", "empty", "a row", "gone", "floats"],
)
def test_what_is_no_image_is_one_line(model: Classifier, images: Any, problem: str) -> None:
    for use in (model.predict, model.embed):
        with pytest.raises(UserError) as error:
            use(images)
        assert str(error.value) == problem


def test_a_file_that_cannot_be_read_is_named(model: Classifier, image_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("text")
    with pytest.raises(UserError) as error:
        model.predict([image_folder / "train" / "ant" / "00.png", broken])
    assert str(error.value).startswith(f"{broken}: cannot be decoded (not an image in a known format)")


def test_embeddings_are_what_the_head_reads(model: Classifier, run: Path, image_folder: Path) -> None:
    files = few(image_folder)
    made = model.embed(files)
    assert (made.shape, made.dtype) == ((6, 24), np.float32)
    head = model.module.head
    assert isinstance(head, nn.Linear)
    with torch.inference_mode():
        logits = head(torch.from_numpy(made))
    torch.testing.assert_close(logits.softmax(1), torch.from_numpy(model.predict(files).probabilities))
    small = vit_dist.load(run, device="cpu", batch_size=4)
    assert small.batch_size == 4
    np.testing.assert_allclose(small.embed(files), made, atol=1e-5)
    np.testing.assert_allclose(small.predict(files).probabilities, model.predict(files).probabilities, atol=1e-6)


def test_a_timm_model_is_loaded_predicts_and_embeds(tmp_path: Path, image_folder: Path) -> None:
    theirs = write_timm_folder(tmp_path / "timm")
    model = vit_dist.load(tmp_path / "timm", device="cpu")
    files = few(image_folder)
    images = torch.stack([model.preprocess(path) for path in files])
    with eval_mode(theirs):
        logits, features = theirs(images), theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert np.array_equal(model.predict(files).probabilities, logits.softmax(1).numpy())
    assert np.array_equal(model.embed(files), features.numpy())


def test_a_model_without_features_says_so(model: Classifier) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    other = Classifier(replace(model._trained, model=flat))
    assert other.predict(np.zeros((9, 9, 3), np.uint8)).probabilities.shape == (1, 3)
    with pytest.raises(UserError, match=r"^embed: Sequential has no forward_features and forward_head, which timm's"):
        other.embed(np.zeros((9, 9, 3), np.uint8))


def test_evaluating_gives_what_the_run_measured(model: Classifier, digits: Path, run: Path, image_folder: Path) -> None:
    threads = torch.get_num_threads()
    own = model.evaluate()
    best = read_json(run / "summary.json")["best"]
    assert best["metric"] == "top1"
    assert own.top1 == best["value"]
    assert own.predictions is not None
    folder = model.evaluate(image_folder / "valid")
    assert folder.seen == 21
    predicted = model.predict(image_folder / "valid").numbers
    assert folder.top1 == pytest.approx(100 * (predicted == np.repeat(np.arange(3), 7)).mean())
    assert torch.get_num_threads() == threads
    on_digits = vit_dist.load(digits, device="cpu")
    assert on_digits.evaluate().top1 == read_json(digits / "summary.json")["test"]["top1"]
    assert on_digits.evaluate(split="val").seen == 144


def test_weights_checkpoints_and_their_words(digits: Path) -> None:
    chosen, raw = vit_dist.load(digits, device="cpu"), vit_dist.load(digits, weights="raw", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    assert not np.array_equal(chosen.predict(pixels).probabilities, raw.predict(pixels).probabilities)
    assert repr(raw) == "Classifier(vit_tiny, 10 classes, 8 pixels, weights of update 60, on cpu)"
    early = vit_dist.load(digits / "checkpoints" / "update_00000030", device="cpu")
    assert "of update 30, on cpu" in repr(early)
    assert not early.module.training
    assert (early.device, early.precision) == (torch.device("cpu"), "fp32")
    with pytest.raises(UserError, match=r"^weights: must be raw or ema, not best$"):
        vit_dist.load(digits, weights="best")
    with pytest.raises(UserError, match=r"^nowhere: no run's folder, checkpoint, exported folder or safetensors"):
        vit_dist.load("nowhere")


def test_preprocess_is_a_transform_that_worker_processes_take(model: Classifier, image_folder: Path) -> None:
    path = image_folder / "train" / "ant" / "00.png"
    copy = pickle.loads(pickle.dumps(model.preprocess))  # noqa: S301
    assert torch.equal(copy(Image.open(path)), model.preprocess(path))


def test_half_precision_is_that_of_training(model: Classifier, run: Path, image_folder: Path) -> None:
    files = few(image_folder)
    half = vit_dist.load(run, {"train.precision": "bf16"}, device="cpu")
    assert half.precision == "bf16"
    expected = load_model(str(run)).model
    with eval_mode(expected), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = expected(torch.stack([half.preprocess(path) for path in files])).float()
    assert np.array_equal(half.predict(files).probabilities, logits.softmax(1).numpy())
    assert not np.array_equal(half.predict(files).probabilities, model.predict(files).probabilities)
    assert half.embed(files).dtype == np.float32


def test_evaluating_a_source_maps_its_classes_to_the_models(model: Classifier, image_folder: Path) -> None:
    files = sorted((image_folder / "valid").rglob("*.png"))
    labels = [path.parent.name for path in files]
    expected = model.evaluate(image_folder / "valid")
    pairs = list(zip(files, labels, strict=True))
    for source in (pairs, {"test": pairs, "train": pairs[:3]}, {"path": files, "label": labels}):
        assert model.evaluate(source).to_dict() | {"seconds": 0} == expected.to_dict() | {"seconds": 0}
    bees = [pair for pair in pairs if pair[1] == "bee"]
    predicted = model.predict([path for path, _ in bees])
    assert model.evaluate(bees).top1 == pytest.approx(100 * np.mean([label == "bee" for label in predicted.labels]))
    square = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), dtype=np.uint8)
    numbers = model.predict(square).numbers
    assert model.evaluate((square, numbers)).top1 == 100  # cropped as `predict` does
    assert model.evaluate({"train": (square[:3], numbers[:3]), "val": (square, numbers)}, split="train").seen == 3
    with pytest.raises(UserError, match=r"^source: class dog is not one of the 3 classes \(ant, bee, cat\)$"):
        model.evaluate([(files[0], "dog")])
    with pytest.raises(UserError, match=r"^split: there is no split val; known: train$"):
        model.evaluate(pairs, split="val")


def test_images_are_resized_as_the_decoded_ones_of_training_were(tmp_path: Path) -> None:
    config = Config.load("digits", {**DIGITS, **QUIET, "data.image_size": 20, "run.dir": str(tmp_path / "run")})
    run = train(config)
    test = open_data(config.data).splits["test"]
    images = test.source.pixels[test.indices]  # type: ignore[attr-defined]
    expected = run.model.evaluate()
    assert expected.predictions is not None
    for model in (run.model, vit_dist.load(tmp_path / "run", device="cpu")):
        predictions = model.predict(images)
        chosen = np.take_along_axis(predictions.probabilities, expected.predictions.top, axis=1)
        np.testing.assert_allclose(chosen, expected.predictions.probability, atol=0.005)
        source = model.evaluate((images, test.labels))
        assert source.loss == pytest.approx(expected.loss, rel=1e-3)
    saved = read_json(tmp_path / "run" / "checkpoints" / "last" / "state.json")["preprocessing"]
    assert saved["interpolation"] == "bilinear"


def test_what_the_commands_note_is_a_warning(run: Path, image_folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (damaged / "checkpoints" / "best" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"not used; update_0000\d+ is") as warned:
        vit_dist.load(damaged, device="cpu")
    assert warned[0].filename == __file__
    other = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (other / "valid" / "ant" / "00.png").unlink()
    moved = vit_dist.load(run, {"data.root": str(other)}, device="cpu")
    with pytest.warns(UserWarning, match=r"^the images of val are not those that the run had") as warned:
        assert moved.evaluate().seen == 20
    assert warned[0].filename == __file__

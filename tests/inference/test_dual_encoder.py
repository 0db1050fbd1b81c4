"""A model of two towers in Python: embeddings, ranked texts and images, classifiers of any classes, evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs import digits_as_files, train_captions_run
from vit_dist import DualEncoder, UserError, load
from vit_dist.files import read_json
from vit_dist.inference.zero_shot import ZeroShotClassifier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_captions_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: Path) -> DualEncoder:
    model = load(run, device="cpu", batch_size=3)
    assert isinstance(model, DualEncoder)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    files = digits_as_files(tmp_path_factory)
    return [path for number in range(4) for path in sorted((files / str(number)).iterdir())[:2]]


def test_embeddings_have_length_1_in_order(model: DualEncoder, images: list[Path]) -> None:
    found, texts = model.encode_images(images), model.encode_texts(["a handwritten one", "b", "c", "d"])
    assert (found.shape, found.dtype, texts.shape) == ((8, 24), np.float32, (4, 24))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(8), abs=1e-6)
    assert np.abs(model.encode_images(images[::-1])[::-1] - found).max() < 1e-6
    assert np.abs(model.encode_texts("b")[0] - texts[1]).max() < 1e-6
    assert np.array_equal(model.embed(images[:2]), model.encode_images(images[:2]))


def test_rank_is_a_softmax_of_scaled_cosines(model: DualEncoder, images: list[Path]) -> None:
    texts = ["a handwritten zero", "a handwritten one", "a handwritten two", "a handwritten three"]
    found = model.rank(images, texts)
    scale = model.module.logit_scale.exp().item()  # type: ignore[union-attr,operator]
    logits = scale * model.encode_images(images) @ model.encode_texts(texts).T
    assert np.abs(found.probabilities - torch.from_numpy(logits).softmax(1).numpy()).max() < 1e-5
    assert found.classes == texts
    assert found[0].image == str(images[0])
    assert np.mean([label.endswith(("zero", "one", "two", "three")) for label in found.labels]) == 1
    assert np.mean(found.numbers == np.arange(4).repeat(2)) > 0.5


def test_search_orders_images_by_cosine(model: DualEncoder, images: list[Path]) -> None:
    found = model.search("a handwritten three", images, top=3)
    cosines = model.encode_images(images) @ model.encode_texts("a handwritten three")[0]
    order = np.argsort(-cosines)[:3]
    assert [name for name, _ in found] == [str(images[number]) for number in order]
    assert [cosine for _, cosine in found] == pytest.approx(cosines[order].tolist(), abs=1e-6)


def test_predict_takes_the_prompts_of_the_run(model: DualEncoder, images: list[Path]) -> None:
    found = model.predict(images)
    assert found.classes == list(model.classes)
    names = [f"{prompt} {name}" for name in model.classes for prompt in ("a handwritten", "the digit")]
    mean = model.encode_texts(names).reshape(10, 2, 24).mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.array_equal(found.numbers, (model.encode_images(images) @ mean.T).argmax(1))


def test_evaluate_is_the_run_s_and_a_classifier_takes_any_names(
    model: DualEncoder, run: Path, images: list[Path], tmp_path: Path
) -> None:
    found, tested = model.evaluate(), read_json(run / "summary.json")["test"]
    assert {name: found.to_dict()[name] for name in tested} == pytest.approx(tested, rel=1e-6)  # in other batches
    assert found.pairs is not None
    assert len(found.pairs) == found.seen == 359
    for path in images:
        folder = tmp_path / ("zero", "one", "two", "three")[int(path.parent.name)]
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder)
    result = model.classifier(["one", "three", "two", "zero"], ["a handwritten {}"]).evaluate(tmp_path)
    assert result.seen == 8
    assert isinstance(model.classifier(["a", "b"]).module, ZeroShotClassifier)


def test_logits_are_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(20, 512, generator=generator), dim=1)
    classes = torch.nn.functional.normalize(images[:10] + 0.1 * torch.randn(10, 512, generator=generator), dim=1)
    model = ZeroShotClassifier(torch.nn.Identity(), classes, torch.tensor(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images)
    assert (found - 100 * images.double() @ classes.double().T).abs().max() < 1e-4


def test_it_says_what_it_is(model: DualEncoder) -> None:
    assert repr(model) == "DualEncoder(vit_tiny, 10 classes, 8 pixels, EMA weights of update 50, on cpu)"


def test_mistakes_are_one_line(model: DualEncoder, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^texts: to rank them takes two or more, in a list$"):
        model.rank(images, "a cat")
    with pytest.raises(UserError, match=r"^texts: there is none"):
        model.encode_texts([])
    (tmp_path / "zero").mkdir()
    (tmp_path / "one").mkdir()
    for path, name in zip(images[:4:2], ("zero", "one"), strict=True):
        shutil.copy(path, tmp_path / name)
    with pytest.raises(UserError, match=r"^data: these images have no captions"):
        model.evaluate(tmp_path)

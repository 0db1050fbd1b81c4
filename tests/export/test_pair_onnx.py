"""Two ONNX files of a model of two towers, and its image tower for timm: the same embeddings as in torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from tests.cli.commands import command
from tests.runs import train_captions_run
from vit_dist import DualEncoder, load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_captions_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run: Path) -> DualEncoder:
    model = load(run, device="cpu")
    assert isinstance(model, DualEncoder)
    return model


def test_two_files_give_the_embeddings(
    capsys: pytest.CaptureFixture[str], run: Path, model: DualEncoder, tmp_path: Path
) -> None:
    result = command(capsys, "export", run, tmp_path / "digits.onnx", "--preprocess")
    assert result.code == 0, result.err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["digits_image.onnx", "digits_text.onnx"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    texts = ["a handwritten one", "x" * 100]
    tokens = np.zeros((2, 40), np.int64)
    tokens[0, :19] = [257, *(byte + 1 for byte in texts[0].encode()), 258]
    tokens[1] = [257, *[ord("x") + 1] * 38, 258]
    for name, inputs, expected in (
        ("image", pixels, model.encode_images(list(pixels[:, 0]))),
        ("text", tokens, model.encode_texts(texts)),
    ):
        path = str(tmp_path / f"digits_{name}.onnx")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [made] = session.run(["output"], {"input": inputs})
        assert np.abs(made - expected).max() < 1e-5
        about = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
        scale = model.module.logit_scale.exp().item()  # type: ignore[union-attr,operator]
        assert about["source"]["logit_scale"] == pytest.approx(scale)
        assert "classes" not in about
    assert about["text"]["tokenizer"] == "bytes"


def test_the_image_tower_is_timm_s(
    capsys: pytest.CaptureFixture[str], run: Path, model: DualEncoder, tmp_path: Path
) -> None:
    result = command(capsys, "export", run, tmp_path / "out", "--format", "timm")
    assert result.code == 0, result.err
    tower = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    images = torch.stack([model.preprocess(image) for image in pixels])
    with torch.no_grad():
        made = torch.nn.functional.normalize(tower(images), dim=1).numpy()
    assert np.abs(made - model.encode_images(list(pixels))).max() < 1e-5

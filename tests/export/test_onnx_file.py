"""ONNX files: onnxruntime gives the same logits as torch for batches of any size; a failed export leaves no file."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import REPOSITORY
from tests.export.models import digits_run, digits_test_images, small_model
from tests.sharing import made_once
from vit_dist import Config, UserError
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.export.onnx_file import OnnxCheck, export_onnx
from vit_dist.inference.load import TrainedModel, load_model
from vit_dist.models.build import build_model
from vit_dist.models.forward import eval_mode

SOURCE = {"run": "a run", "weights": "ema", "update": 60, "vit_dist": "0.1.0"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A model trained for sixty updates on the digits."""
    return load_model(str(digits_run(tmp_path_factory)))


@pytest.fixture(scope="module")
def exported(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, OnnxCheck]]:
    """Its ONNX files and their checks, without and with preprocessing in the graph."""
    names = {preprocess: f"preprocess_{preprocess}.onnx" for preprocess in (False, True)}

    def make(folder: Path) -> None:
        (folder / "onnx").mkdir(parents=True)
        checks = {
            str(p): dataclasses.asdict(export_onnx(trained, folder / "onnx" / name, preprocess=p, source=SOURCE))
            for p, name in names.items()
        }
        (folder / "checks.json").write_text(json.dumps(checks))

    folder = made_once(tmp_path_factory, "exports", make)
    checks = json.loads((folder / "checks.json").read_text())
    return {p: (folder / "onnx" / name, OnnxCheck(**checks[str(p)])) for p, name in names.items()}


def run(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])


def normalised(trained: TrainedModel, pixels: Tensor) -> Tensor:
    preprocessing = trained.preprocessing
    return normalise(
        pixels, preprocessing.image_size, torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    )


def logits(trained: TrainedModel, images: Tensor) -> Tensor:
    with eval_mode(trained.model):
        values: Tensor = trained.model(images)
    return values


@pytest.mark.parametrize("preprocess", [False, True])
def test_logits_of_the_test_split_equal_those_of_torch(
    preprocess: bool, trained: TrainedModel, exported: dict[bool, tuple[Path, OnnxCheck]]
) -> None:
    pixels = digits_test_images()
    expected = logits(trained, normalised(trained, pixels))
    found = run(exported[preprocess][0], pixels if preprocess else normalised(trained, pixels))
    assert found.shape == (359, 10)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5
    assert torch.equal(found.argmax(1), expected.argmax(1))
    # The model has learned something.
    assert expected.std() > 0.5
    assert len(expected.argmax(1).unique()) == 10


def test_normalising_in_the_graph_equals_normalising_before_it(
    trained: TrainedModel, exported: dict[bool, tuple[Path, OnnxCheck]]
) -> None:
    pixels = digits_test_images()
    inside, before = run(exported[True][0], pixels), run(exported[False][0], normalised(trained, pixels))
    assert (inside - before).abs().max() <= 1e-5
    assert (run(exported[False][0], pixels.float()) - before).abs().max() > 0.1


@pytest.mark.parametrize("preprocess", [False, True])
def test_tensors_are_named_and_take_batches_of_any_size(
    preprocess: bool, trained: TrainedModel, exported: dict[bool, tuple[Path, OnnxCheck]]
) -> None:
    path = exported[preprocess][0]
    graph = onnx.load(str(path)).graph
    kind = onnx.TensorProto.UINT8 if preprocess else onnx.TensorProto.FLOAT
    for tensor, name, element, sizes in (
        (graph.input, "input", kind, [1, 8, 8]),
        (graph.output, "output", onnx.TensorProto.FLOAT, [10]),
    ):
        assert [value.name for value in tensor] == [name]
        tensor_type = tensor[0].type.tensor_type
        assert tensor_type.elem_type == element
        assert tensor_type.shape.dim[0].dim_param == "batch"
        assert [dim.dim_value for dim in tensor_type.shape.dim[1:]] == sizes
    pixels = digits_test_images()
    images = pixels if preprocess else normalised(trained, pixels)
    whole = run(path, images)
    for count in (1, 2, 7, 64):
        torch.testing.assert_close(run(path, images[:count]), whole[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("preprocess", [False, True])
def test_metadata_holds_preprocessing_classes_and_source(
    preprocess: bool, trained: TrainedModel, exported: dict[bool, tuple[Path, OnnxCheck]]
) -> None:
    path, check = exported[preprocess]
    proto = onnx.load(str(path))
    found = {prop.key: json.loads(prop.value) for prop in proto.metadata_props}
    assert found == {
        "preprocessing": {
            "image_size": 8,
            "mean": list(trained.preprocessing.mean),
            "std": list(trained.preprocessing.std),
            "crop": 1.0,
            "channels": 1,
            "interpolation": "bicubic",
            "fit": "crop",
            "input": "uint8 pixels" if preprocess else "normalised float32",
            "steps": "grey, upright as EXIF says, on white; shorter side to 8 pixels (bicubic), "
            "then the centre of 8 × 8; " + ("uint8" if preprocess else "value / 255; (value - mean) / std"),
            "output": "logits",
        },
        "classes": [str(i) for i in range(10)],
        "source": SOURCE,
    }
    assert check.opset == proto.opset_import[0].version == 18
    assert (check.images, check.bytes) == (20, path.stat().st_size)
    assert 0 < check.largest_difference <= 1e-5
    # Everything is in one file, and no path of this machine.
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
    assert check.bytes > 4 * sum(parameter.numel() for parameter in trained.model.parameters())
    assert str(REPOSITORY).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["preprocess_False.onnx", "preprocess_True.onnx"]


VARIANTS: dict[str, dict[str, Any]] = {
    "all at once": {
        "depth": 1,
        "dropout": 0.2,
        "registers": 2,
        "layer_scale": 0.5,
        "qk_norm": True,
        "pre_logits": True,
        "channels": 2,
    },
    "sincos, overlapping": {
        "depth": 1,
        "position": "sincos",
        "pool": "mean",
        "fc_norm": False,
        "patch_size": 6,
        "patch_stride": 4,
    },
    "timm": {"name": "timm/test_vit", "args": {"depth": 1}, "side": 32},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_are_exported_without_output_or_warnings(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    made = small_model(**VARIANTS[name])
    made.model.train()
    (tmp_path / "model.onnx").write_text("the file before")
    check = export_onnx(made, tmp_path / "model.onnx", source={"from": tmp_path})
    assert check.bytes == (tmp_path / "model.onnx").stat().st_size
    assert made.model.training
    assert check.largest_difference <= 1e-4
    pixels = torch.from_numpy(
        np.random.default_rng(1).integers(
            0, 256, (5, made.channels, *[made.preprocessing.image_size] * 2), dtype=np.uint8
        )
    )
    expected = logits(made, normalised(made, pixels))
    found = run(tmp_path / "model.onnx", normalised(made, pixels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std(dim=0).min() > 1e-2
    metadata = {prop.key: json.loads(prop.value) for prop in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert (metadata["classes"], metadata["labels"]) == (["ant", "bee", "cat", "dog", "eel"], list("abcde"))
    assert metadata["source"] == {"from": str(tmp_path)}
    assert metadata["preprocessing"]["crop"] == 0.9
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


class Noisy(nn.Module):
    """A model whose dropout stays on in evaluation (F.dropout without `training`): its logits are random."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.dropout(images.flatten(1)))
        return logits


class Broken(nn.Module):
    """A model that gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            self.head.bias[2] = float("nan")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


class BatchOfTwo(nn.Module):
    """A model for batches of exactly two images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.reshape(2, 64))
        return logits


class SortsOnHost(nn.Module):
    """A model that no graph can represent: it sorts Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        order = sorted(range(64), key=lambda i: images[0].flatten()[i].item())
        logits: Tensor = self.head(images.flatten(1)[:, order])
        return logits


class OtherInTraining(nn.Module):
    """A model that gives other logits in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return 2 * logits if self.training else logits


def theirs(model: nn.Module) -> TrainedModel:
    """Return a user's own model for the digits."""
    config = Config.load("digits", {"model.name": "tests.models:theirs"})
    names = [str(i) for i in range(10)]
    return TrainedModel(model, Preprocessing(8, (0.3,), (0.4,)), names, 1, "raw", config, names)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (Noisy(), r"tests.models:theirs in onnxruntime gives other logits: they differ by [\d.]+, and .* is allowed"),
        (Broken(), r"tests.models:theirs in onnxruntime gives other logits: they differ by nan, and .* is allowed"),
        (BatchOfTwo(), r"torch.onnx cannot export tests.models:theirs: .*"),
        (SortsOnHost(), r"torch.onnx cannot export tests.models:theirs: .*"),
    ],
)
def test_a_failed_export_leaves_the_file_before(
    model: nn.Module, problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("the file before")
    with pytest.raises(UserError) as caught:
        export_onnx(theirs(model), path, source={})
    assert re.fullmatch(f"model.name: {problem}: export a timm folder instead", str(caught.value))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the file before"
    assert capfd.readouterr() == ("", "")


def test_the_graph_is_that_of_evaluation_mode(tmp_path: Path) -> None:
    made = theirs(OtherInTraining().train())
    export_onnx(made, tmp_path / "model.onnx", source={})
    assert made.model.training
    images = normalised(made, digits_test_images()[:5])
    torch.testing.assert_close(run(tmp_path / "model.onnx", images), logits(made, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxruntime"], ["onnxscript"], ["onnx", "onnxruntime", "onnxscript"]])
def test_missing_packages_are_named(
    missing: list[str], trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        export_onnx(trained, tmp_path / "model.onnx", source={})
    assert str(caught.value) == f"export: {', '.join(missing)} not installed: pip install {' '.join(missing)}"
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written_are_refused(trained: TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for path, reason in (
        (tmp_path / "none" / "model.onnx", "No such file or directory"),
        (tmp_path / "file" / "model.onnx", "Not a directory"),
    ):
        with pytest.raises(UserError) as caught:
            export_onnx(trained, path, source={})
        end = "name a place in a folder of yours that exists"
        assert str(caught.value) == f"{path}: cannot be written: {reason}: {end}"
    with pytest.raises(UserError) as caught:
        export_onnx(trained, tmp_path, source={})
    assert str(caught.value) == f"{tmp_path}: is a folder: name a file, such as {tmp_path / 'model.onnx'}"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_models_beyond_two_gibibytes_are_refused(tmp_path: Path) -> None:
    config = Config.load("folder", {"data.root": ".", "model.name": "vit_huge", "model.patch_size": 14})
    with torch.device("meta"):
        model = build_model(config.model, classes=1000, channels=3, image_size=224, seed=0)
    made = dataclasses.replace(small_model(), model=model, config=config)
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError) as caught:
        export_onnx(made, path, source={})
    problem = "2.4 GiB of weights, but an ONNX file holds at most 2: export a timm folder instead"
    assert str(caught.value) == f"{path}: {problem}"
    assert list(tmp_path.iterdir()) == []

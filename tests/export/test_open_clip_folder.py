"""Folders for open_clip: it loads them and gives the same embeddings; what its model cannot express is refused."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.commands import command
from tests.runs import train_captions_run, train_digits_run
from vit_dist import Config, DualEncoder, UserError, load
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.export.open_clip_folder import export_open_clip
from vit_dist.inference.load import TrainedModel, load_model
from vit_dist.models.two_tower import build_two_tower

installed = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed: pip install open_clip_torch"
)
SMALL: dict[str, Any] = {
    **{"loss.name": "clip", "data.root": ".", "model.width": 24, "model.depth": 2, "model.heads": 3},
    **{"model.patch_size": 4, "model.pool": "token", "text.width": 16, "text.depth": 2, "text.heads": 2},
    **{"text.context_length": 20, "text.embed_dim": 12, "loss.label_smoothing": 0.0, "augment.mixup": 0.0},
    "augment.cutmix": 0.0,
}


def towers(channels: int = 3, side: int = 12, **fields: Any) -> TrainedModel:
    """Return a model of two towers whose embeddings depend on every parameter."""
    given = {name.replace("__", "."): value for name, value in fields.items()}
    values = {**SMALL, **given}
    if str(values.get("model.name", "")).startswith("timm/"):
        values = {name: value for name, value in values.items() if name in given or not name.startswith("model.")}
    config = Config.load("folder", values)
    shape: dict[str, Any] = {"channels": channels, "image_size": side, "seed": 0}
    model = build_two_tower(config.model, config.text, config.loss.name, vocabulary_size=259, **shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made = Preprocessing(side, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], crop=1.0)
    return TrainedModel(model, made, ["a", "b"], channels, "raw", config, ["a", "b"])


@installed
@pytest.mark.parametrize(
    ("channels", "fields"),
    [
        (3, {}),
        (1, {"model__layer_scale": 0.5}),
        (3, {"loss__name": "siglip", "model__norm_eps": 1e-5, "model__position": "sincos"}),
    ],
)
def test_open_clip_gives_the_same_embeddings(tmp_path: Path, channels: int, fields: dict[str, Any]) -> None:
    import open_clip

    trained = towers(channels, **fields)
    difference = export_open_clip(trained, tmp_path / "out", card="card")
    assert difference is not None
    assert difference < 2e-6
    loaded: Any = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    ours: Any = trained.model.eval()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, channels, 12, 12, generator=generator)
    tokens = torch.zeros(2, 20, dtype=torch.int64)
    tokens[0, :4], tokens[1] = torch.tensor([257, 98, 33, 258]), torch.tensor([257, *[50] * 18, 258])
    with torch.no_grad():
        of_images = loaded.encode_image(images.expand(-1, 3, -1, -1), normalize=True)
        assert (of_images - ours.encode_image(images)).abs().max() < 2e-6
        assert (loaded.encode_text(tokens, normalize=True) - ours.encode_text(tokens)).abs().max() < 2e-6
    assert loaded.logit_scale.item() == ours.logit_scale.item()
    if ours.logit_bias is not None:
        assert loaded.logit_bias.item() == ours.logit_bias.item()


@installed
def test_a_timm_tower_is_open_clip_s_own(tmp_path: Path) -> None:
    trained = towers(side=160, model__name="timm/test_vit")
    difference = export_open_clip(trained, tmp_path / "out", card="card")
    assert difference is not None
    assert difference < 2e-6
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == "test_vit"


@installed
def test_a_run_in_open_clip_sees_the_pictures_that_it_saw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import open_clip

    run, out = train_captions_run(tmp_path_factory), tmp_path / "out"
    result = command(capsys, "export", run, out, "--format", "open_clip")
    assert result.code == 0
    assert "largest difference of an embedding from open_clip's" in result.out
    own = load(run, device="cpu")
    assert isinstance(own, DualEncoder)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    with torch.no_grad():
        theirs = model.eval().encode_image(preprocess(picture)[None], normalize=True).numpy()
    if load_model(str(run)).preprocessing.crop == 1:
        assert np.abs(theirs - own.encode_images(picture)).max() < 2e-6
    snippet = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    picture.save(tmp_path / "picture.png")
    code = snippet.replace("local-dir:.", f"local-dir:{out}").replace("picture.png", str(tmp_path / "picture.png"))
    found: dict[str, Any] = {}
    exec(code, found)
    expected = own.encode_images(picture) @ own.encode_texts(["a cat", "a dog"]).T
    assert np.abs(found["cosines"].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model__pool": "mean"}, "model.pool: open_clip's ViT has a class token"),
        ({"model__registers": 1}, "model.registers: open_clip's ViT has none"),
        ({"model__qk_norm": True}, "model.qk_norm: open_clip's norms of queries and keys are others"),
        ({"text__causal": False}, "text.causal: open_clip's text tower sees padding"),
        ({"text__pool": "mean"}, "text.pool: open_clip's text tower has no mean over tokens"),
        ({"text__embed_dim": 32}, "text.embed_dim: above the width of the image tower"),
        ({"model__name": "timm/test_vit"}, "data.image_size: open_clip builds timm/test_vit for 160 pixels"),
    ],
)
def test_what_open_clip_cannot_express_is_one_line(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    side = 32 if "model__name" in fields else 12
    with pytest.raises(UserError) as caught:
        export_open_clip(towers(side=side, **fields), tmp_path / "out", card="")
    assert str(caught.value).startswith(problem)
    assert str(caught.value).endswith("export ONNX instead")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already: name a new folder"):
        export_open_clip(towers(), tmp_path, card="")


@installed
def test_other_weights_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_dist.export import open_clip_folder

    trained, original = towers(), open_clip_folder._tensors
    monkeypatch.setattr(
        open_clip_folder,
        "_tensors",
        lambda model: {**(made := original(model)), "text_projection": made["text_projection"].flip(0)},
    )
    with pytest.raises(UserError, match=r"^model\.name: vit_tiny in open_clip, of texts, gives other"):
        export_open_clip(replace(trained), tmp_path / "out", card="")
    assert not (tmp_path / "out").exists()


def test_formats_are_for_their_models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    classifier = train_digits_run(tmp_path_factory)
    result = command(capsys, "export", classifier, tmp_path / "out", "--format", "open_clip")
    assert (result.code, result.err) == (
        2,
        f"vit-dist: --format: open_clip is for runs on images and captions, and {classifier} is a classifier: timm\n",
    )
    run = train_captions_run(tmp_path_factory)
    result = command(capsys, "export", run, tmp_path / "x.onnx", "--format", "timm")
    assert (result.code, result.err) == (2, "vit-dist: --format: timm is a folder: name OUT without .onnx\n")

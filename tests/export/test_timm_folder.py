"""Exports for timm: timm and `load_model` load the same model from the folder; a failed export leaves none."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.export.models import digits_run, digits_test_images, small_model
from vit_dist import Config, UserError
from vit_dist.data.augmentation.ops import normalise
from vit_dist.export.timm_folder import export_timm
from vit_dist.inference.load import TrainedModel, load_model
from vit_dist.models.forward import eval_mode
from vit_dist.models.vit import ViT

TINY = {"depth": 1, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
# Every variant of our ViT that timm has too, and models of timm.
MODELS: dict[str, dict[str, Any]] = {
    "token": {},
    "token, two channels": {"channels": 2},
    "mean": {"pool": "mean", "channels": 1},
    "mean, norm before it": {"pool": "mean", "fc_norm": False},
    "registers": {"registers": 2},
    "registers, mean": {"registers": 3, "pool": "mean"},
    "layer_scale": {"layer_scale": 0.3},
    "qk_norm": {"qk_norm": True, "mlp_ratio": 2.5},
    "sincos": {"position": "sincos"},
    "all at once": {"registers": 2, "layer_scale": 0.5, "qk_norm": True, "position": "sincos", "channels": 1},
    "dropout": {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.2, "patch_stride": 4},
    "huge": {"name": "vit_huge", "patch_size": 6},
    "timm": {"name": "timm/vit_tiny_patch16_224.augreg_in21k", "args": {**TINY, "drop_path_rate": 0.1}, "side": 32,
             "drop_path": 0.1},
    "timm, a convolution": {"name": "timm/test_convnext", "side": 64},
    "timm, dynamic": {"name": "timm/test_vit", "args": {"dynamic_img_size": True}, "side": 48, "channels": 1},
}  # fmt: skip


def pixels(trained: TrainedModel) -> Tensor:
    side, generator = trained.preprocessing.image_size, torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (5, trained.channels, side, side), dtype=torch.uint8, generator=generator)


def logits(model: nn.Module, trained: TrainedModel, images: Tensor, *, double: bool = False) -> Tensor:
    """Return the logits of uint8 images, preprocessed as for `trained`."""
    preprocessing = trained.preprocessing
    inputs = normalise(
        images, preprocessing.image_size, torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    )
    model = copy.deepcopy(model).double() if double else model
    with eval_mode(model):
        values: Tensor = model(inputs.double() if double else inputs)
    return values


def content(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


@pytest.mark.parametrize("name", list(MODELS))
def test_timm_and_load_model_load_the_same_model(name: str, tmp_path: Path) -> None:
    made, folder = small_model(**MODELS[name]), tmp_path / "exported"
    export_timm(made, folder, card="A card.\n")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "README.md").read_text() == "A card.\n"

    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    images = pixels(made)
    expected, exact = logits(made.model, made, images), logits(made.model, made, images, double=True)
    assert exact.std(dim=0).min() > 1e-2
    torch.testing.assert_close(logits(theirs, made, images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(theirs, made, images, double=True), exact, rtol=1e-10, atol=1e-10)
    side = made.preprocessing.image_size
    assert (theirs.num_classes, tuple(theirs.pretrained_cfg["input_size"])) == (5, (made.channels, side, side))
    assert theirs.pretrained_cfg["label_names"] == made.classes
    assert theirs.pretrained_cfg["label_descriptions"] == dict(zip(made.classes, made.names, strict=True))
    prepared = timm.data.resolve_model_data_config(theirs)
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in prepared.items()} == {
        "input_size": (made.channels, side, side),
        "interpolation": "bicubic",
        "mean": made.preprocessing.mean,
        "std": made.preprocessing.std,
        "crop_pct": 0.9,
        "crop_mode": "center",
    }

    back = load_model(str(folder))
    torch.testing.assert_close(logits(back.model, back, images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(back.model, back, images, double=True), exact, rtol=1e-10, atol=1e-10)
    assert (back.preprocessing, back.classes, back.names) == (made.preprocessing, made.classes, made.names)
    assert (back.channels, back.weights, back.update) == (made.channels, "raw", None)


def test_timm_adapts_the_folder_to_other_classes_and_channels(tmp_path: Path) -> None:
    made = small_model()
    export_timm(made, tmp_path / "exported", card="")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True, num_classes=7, in_chans=1)
    assert theirs.head.weight.shape == (7, 24)
    assert isinstance(made.model, ViT)
    first = theirs.patch_embed.proj.weight
    assert first.shape == (24, 1, 4, 4)
    # timm adds up the channels' weights for grey images.
    torch.testing.assert_close(first.sum(1), made.model.patch_embed.proj.weight.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(theirs.blocks[1].attn.qkv.weight, made.model.get_parameter("blocks.1.attn.qkv.weight"))


def test_a_run_is_exported_and_loaded_again(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    trained = load_model(str(digits_run(tmp_path_factory)))
    folder = tmp_path / "exported"
    folder.mkdir()  # an empty folder is accepted
    export_timm(trained, folder, card="")
    images = digits_test_images()
    expected = logits(trained.model, trained, images)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    found = logits(theirs, trained, images)
    assert (found - expected).abs().max() <= 1e-5
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) == 10
    back = load_model(str(folder))
    assert torch.equal(logits(back.model, back, images), found)
    assert (back.preprocessing, back.classes, back.names) == (
        trained.preprocessing,
        trained.classes,
        trained.names,
    )


def test_config_holds_the_fields_that_the_hub_shows(tmp_path: Path) -> None:
    made = small_model(layer_scale=0.3, registers=2, norm_eps=1e-6, drop_path=0.2)
    export_timm(made, tmp_path / "ours", card="")
    found = content(tmp_path / "ours")
    pretrained_cfg = found.pop("pretrained_cfg")
    assert found == {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "num_features": 24,
        "global_pool": "token",
        "model_args": {
            "patch_size": 4,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 3,
            "mlp_ratio": 4.0,
            "global_pool": "token",
            "class_token": True,
            "fc_norm": False,
            "reg_tokens": 2,
            "no_embed_class": False,
            "qk_norm": False,
            "pos_embed": "learn",
            "init_values": 0.3,
            "img_size": 12,
            "in_chans": 3,
            "num_classes": 5,
        },
        "label_names": ["a", "b", "c", "d", "e"],
        "label_descriptions": {"a": "ant", "b": "bee", "c": "cat", "d": "dog", "e": "eel"},
    }
    assert (pretrained_cfg["first_conv"], pretrained_cfg["classifier"]) == ("patch_embed.proj", "head")
    assert (pretrained_cfg["fixed_input_size"], pretrained_cfg["tag"]) == (True, "vit_dist")
    same = dataclasses.replace(made, names=made.classes)
    export_timm(same, tmp_path / "same", card="")
    assert "label_descriptions" not in content(tmp_path / "same")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_timm_model_keeps_its_own_arguments(tmp_path: Path) -> None:
    export_timm(small_model(**MODELS["timm"]), tmp_path / "vit", card="")
    found = content(tmp_path / "vit")
    assert found["architecture"] == "vit_tiny_patch16_224"
    assert found["model_args"] == {**TINY, "img_size": 32, "in_chans": 3, "num_classes": 5}
    export_timm(small_model(**MODELS["timm, a convolution"]), tmp_path / "convolution", card="")
    found = content(tmp_path / "convolution")
    assert found["model_args"] == {"in_chans": 3, "num_classes": 5}
    assert found["pretrained_cfg"]["first_conv"] == "stem.0"
    assert found["pretrained_cfg"]["classifier"] == "head.fc"
    assert found["pretrained_cfg"]["fixed_input_size"] is False
    export_timm(small_model(**MODELS["timm, dynamic"]), tmp_path / "dynamic", card="")
    found = content(tmp_path / "dynamic")
    assert found["model_args"]["dynamic_img_size"] is True
    assert found["pretrained_cfg"]["fixed_input_size"] is False


def test_a_fixed_position_embedding_is_in_the_file(tmp_path: Path) -> None:
    made = small_model(position="sincos")
    export_timm(made, tmp_path / "exported", card="")
    found = load_file(tmp_path / "exported" / "model.safetensors")
    assert isinstance(made.model, ViT)
    assert torch.equal(found["pos_embed"], made.model.pos_embed)
    assert found.keys() - made.model.state_dict().keys() == {"pos_embed"}


def test_fields_that_timm_does_not_have_are_refused(tmp_path: Path) -> None:
    for fields, said in (
        ({"pre_logits": True}, "model.pre_logits: timm's ViT has no layer before its head"),
        ({"patch_size": 6, "patch_stride": 4}, "model.patch_stride: timm's patches do not overlap"),
        ({"norm_eps": 1e-5}, "model.norm_eps: timm's ViT has 1e-06, not 1e-05"),
    ):
        with pytest.raises(UserError) as caught:
            export_timm(small_model(**fields), tmp_path / "exported", card="")
        assert str(caught.value) == f"{said}: export ONNX instead"
    with pytest.raises(UserError) as caught:
        export_timm(small_model(pre_logits=True, norm_eps=1e-5), tmp_path / "exported", card="")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["model.pre_logits", "model.norm_eps"]
    own = dataclasses.replace(small_model(), config=Config.load("digits", {"model.name": "tests.models:own"}))
    with pytest.raises(UserError) as caught:
        export_timm(own, tmp_path / "exported", card="")
    assert str(caught.value) == "model.name: timm has no tests.models:own: export ONNX instead"
    assert list(tmp_path.iterdir()) == []


# Configs that do not describe the model, so that timm would build another one.
WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other logits": (
        {"heads": 2},
        r"gives other logits: they differ by [\d.]+, and .* is allowed: export ONNX instead",
    ),
    "other tensors": ({"depth": 3}, r"does not load: .*: export ONNX instead"),
    "no model": (
        {"name": "timm/vit_tiny_patch16_224", "args": {"wings": 2}},
        r"timm cannot build vit_tiny_patch16_224 with the model's arguments: .*wings.*: export ONNX instead",
    ),
}


@pytest.mark.parametrize("name", list(WRONG_CONFIGS))
def test_a_failed_export_leaves_no_folder(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fields, said = WRONG_CONFIGS[name]
    made = small_model()
    config = dataclasses.replace(made.config, model=dataclasses.replace(made.config.model, **fields))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "exported", tmp_path / "empty"):
        with pytest.raises(UserError) as caught:
            export_timm(dataclasses.replace(made, config=config), folder, card="")
        assert re.fullmatch(rf"model.name: (vit_tiny as timm's vit_tiny_patch16_224 )?{said}", str(caught.value))
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert list((tmp_path / "empty").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_existing_files_are_never_replaced(tmp_path: Path) -> None:
    folder, file = tmp_path / "exported", tmp_path / "file"
    export_timm(small_model(), folder, card="the first")
    file.write_text("a file")
    for path in (folder, file):
        with pytest.raises(UserError) as caught:
            export_timm(small_model(), path, card="the second")
        assert str(caught.value) == f"{path}: exists already: name a new folder"
    assert (folder / "README.md").read_text() == "the first"
    assert file.read_text() == "a file"
    with pytest.raises(UserError) as caught:
        export_timm(small_model(), tmp_path / "none" / "exported", card="")
    assert str(caught.value).startswith(f"{tmp_path / 'none' / 'exported'}: cannot be written: No such file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "file"]

"""A trained model as a folder that timm and the Hugging Face hub load. It gets its name after timm did."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_dist.config.catalog import is_timm, timm_name
from vit_dist.config.schema import ModelConfig
from vit_dist.errors import UserError, one_line
from vit_dist.export.verify import INTERPOLATION, check_same_logits, random_pixels, silence_libraries
from vit_dist.files import publish, staged
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import eval_mode
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.models.weights import state_tensors

_EPSILON = 1e-6
# Of max(1, largest |logit|), in float64.
_TOLERANCE = 1e-10


def export_timm(trained: TrainedModel, folder: Path, *, card: str) -> None:
    """Writes config.json, model.safetensors and README.md (the card): what timm.create_model("local-dir:…") loads.

    Raises UserError where timm has no such model, the folder holds something or cannot be written, or what timm
    makes of it gives other logits.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already: name a new folder")
    architecture, args = _timms(trained)
    with staged(folder) as hidden:
        hidden.mkdir()
        values = _timm_config(trained, architecture, args)
        (hidden / "config.json").write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (hidden / "README.md").write_text(card, encoding="utf-8")
        try:
            save_file(_timm_tensors(trained.model), hidden / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        shutil.copymode(hidden / "config.json", hidden / "model.safetensors")  # else nobody else may read it
        _load_beside(hidden, trained, architecture)
        publish(hidden, folder)


def _timms(trained: TrainedModel) -> tuple[str, dict[str, Any]]:
    """timm's name of an architecture and the arguments that make it this model. Raises UserError."""
    config = trained.config.model
    built = {
        "img_size": trained.preprocessing.image_size,
        "in_chans": trained.channels,
        "num_classes": len(trained.classes),
    }
    if is_timm(config.name):
        # Rates of dropout are of a training, as timm's own exports have it.
        args = {name: value for name, value in config.args.items() if not ("drop" in name and name.endswith("_rate"))}
        return timm_name(config.name).partition(".")[0], {**args, **built}
    if config.name not in PRESETS:
        raise UserError(f"model.name: timm has no {config.name}: export ONNX instead")
    problems = {
        "model.pre_logits: timm's ViT has no layer before its head": config.pre_logits,
        "model.patch_stride: timm's patches do not overlap": config.patch_stride not in (None, config.patch_size),
        f"model.norm_eps: timm's ViT has {_EPSILON}, not {config.norm_eps}": config.norm_eps != _EPSILON,
    }
    if any(problems.values()):
        raise UserError("\n".join(f"{text}: export ONNX instead" for text, wrong in problems.items() if wrong))
    return f"{config.name}_patch{14 if config.name == 'vit_huge' else 16}_224", {**_vit_args(config), **built}


def _vit_args(config: ModelConfig) -> dict[str, Any]:
    """timm's arguments for our ViT."""
    preset, mean = PRESETS[config.name], config.pool == "mean"
    args: dict[str, Any] = {
        "patch_size": config.patch_size,
        "embed_dim": config.width or preset["width"],
        "depth": config.depth or preset["depth"],
        "num_heads": config.heads or preset["heads"],
        "mlp_ratio": config.mlp_ratio,
        "global_pool": "avg" if mean else "token",
        "class_token": not mean,
        "fc_norm": mean and config.fc_norm,
        "reg_tokens": config.registers,
        "no_embed_class": False,
        "qk_norm": config.qk_norm,
        "pos_embed": "learn",
    }
    return {**args, "init_values": config.layer_scale} if config.layer_scale else args


def _timm_config(trained: TrainedModel, architecture: str, args: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json. Raises UserError where timm does not take the arguments."""
    import timm

    try:
        try:
            built = timm.create_model(architecture, **args)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            args = {name: value for name, value in args.items() if name != "img_size"}
            built = timm.create_model(architecture, **args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model.name: timm does not build {architecture} so: {one_line(error, 200)}: export ONNX instead"
        ) from None
    preprocessing, classes, made = trained.preprocessing, trained.classes, built.pretrained_cfg
    side = preprocessing.image_size
    values: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": built.num_features,
        "model_args": args,
        "label_names": classes,
        "pretrained_cfg": {
            "tag": "vit_dist",
            "custom_load": False,
            "input_size": [trained.channels, side, side],
            "fixed_input_size": bool(made.get("fixed_input_size")) and not args.get("dynamic_img_size"),
            "interpolation": INTERPOLATION,
            "crop_pct": preprocessing.crop,
            "crop_mode": "center",
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "num_classes": len(classes),
            "pool_size": None,
            "first_conv": made.get("first_conv"),
            "classifier": made.get("classifier"),
        },
    }
    if isinstance(getattr(built, "global_pool", None), str):
        values["global_pool"] = built.global_pool
    if trained.names != classes:
        values["label_descriptions"] = dict(zip(classes, trained.names, strict=True))
    return values


def _timm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights as timm names them: positions are among them, fixed ones too."""
    tensors = state_tensors(model)
    if isinstance(model, ViT):
        tensors["pos_embed"] = model.pos_embed.detach().contiguous()
    return tensors


def _load_beside(folder: Path, trained: TrainedModel, architecture: str) -> None:
    """Has timm load the folder. Raises UserError where its tensors or logits in float64 are not the model's."""
    import timm

    what = f"{trained.config.model.name} as timm's {architecture}"
    try:
        with silence_libraries():
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm's own, torch's, safetensors'
        raise UserError(f"model.name: {what} does not load: {one_line(error, 200)}: export ONNX instead") from None
    tensors, found = _timm_tensors(trained.model), loaded.state_dict()
    if found.keys() != tensors.keys() or any(not torch.equal(found[name], tensors[name]) for name in tensors):
        raise UserError(f"model.name: {what} has other tensors: export ONNX instead")
    exact = copy.deepcopy(trained.model).double()
    images = trained.preprocessing.normalise(random_pixels(trained, 4)).double()
    with eval_mode(exact), eval_mode(loaded.double()):
        check_same_logits(loaded(images), exact(images), _TOLERANCE, what, "ONNX")

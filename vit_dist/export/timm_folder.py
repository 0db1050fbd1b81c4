"""Export a trained model as a folder for timm and the Hugging Face Hub, published once timm loaded the same model."""

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
from vit_dist.config.fields import ModelConfig
from vit_dist.errors import UserError, one_line
from vit_dist.export.verify import check_same_logits, random_pixels, silence_libraries
from vit_dist.files import publish, staged
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import eval_mode
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.models.weights import state_tensors

_NORM_EPS = 1e-6
# Relative to max(1, largest |logit|), in float64.
_TOLERANCE = 1e-10


def export_timm(trained: TrainedModel, folder: Path, *, card: str) -> None:
    """Write config.json, model.safetensors and README.md (the card), as timm.create_model("local-dir:…") loads them.

    Raises UserError if timm has no such model, the folder is not empty or cannot be written, or the model that timm
    loads from it gives other logits.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already: name a new folder")
    architecture, args = _architecture(trained)
    with staged(folder) as hidden:
        hidden.mkdir()
        values = _timm_config(trained, architecture, args)
        (hidden / "config.json").write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (hidden / "README.md").write_text(card, encoding="utf-8")
        try:
            save_file(_timm_tensors(trained.model), hidden / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        shutil.copymode(
            hidden / "config.json", hidden / "model.safetensors"
        )  # safetensors makes it readable by its owner alone
        _check_loads(hidden, trained, architecture)
        publish(hidden, folder)


def _architecture(trained: TrainedModel) -> tuple[str, dict[str, Any]]:
    """Return timm's name for the architecture and its arguments for this model. Raises UserError if there is none."""
    config = trained.config.model
    shape = {
        "img_size": trained.preprocessing.image_size,
        "in_chans": trained.channels,
        "num_classes": len(trained.classes),
    }
    if is_timm(config.name):
        # Dropout rates belong to a training run, so timm's own exports leave them out too.
        args = {name: value for name, value in config.args.items() if not ("drop" in name and name.endswith("_rate"))}
        return timm_name(config.name).partition(".")[0], {**args, **shape}
    if config.name not in PRESETS:
        raise UserError(f"model.name: timm has no {config.name}: export ONNX instead")
    problems = {
        "model.pre_logits: timm's ViT has no layer before its head": config.pre_logits,
        "model.patch_stride: timm's patches do not overlap": config.patch_stride not in (None, config.patch_size),
        f"model.norm_eps: timm's ViT has {_NORM_EPS}, not {config.norm_eps}": config.norm_eps != _NORM_EPS,
    }
    if any(problems.values()):
        raise UserError("\n".join(f"{text}: export ONNX instead" for text, wrong in problems.items() if wrong))
    return f"{config.name}_patch{14 if config.name == 'vit_huge' else 16}_224", {**_vit_args(config), **shape}


def _vit_args(config: ModelConfig) -> dict[str, Any]:
    """Return timm's arguments for a ViT of ours."""
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
    """Return the content of config.json. Raises UserError if timm rejects the arguments."""
    model, args = _create(architecture, args)
    classes = trained.classes
    values: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": model.num_features,
        "model_args": args,
        "label_names": classes,
        "pretrained_cfg": _pretrained_cfg(trained, model.pretrained_cfg, args),
    }
    if isinstance(getattr(model, "global_pool", None), str):
        values["global_pool"] = model.global_pool
    if trained.names != classes:
        values["label_descriptions"] = dict(zip(classes, trained.names, strict=True))
    return values


def _create(architecture: str, args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return timm's model, and the arguments without `img_size` if it has no such argument. Raises UserError."""
    import timm

    try:
        try:
            return timm.create_model(architecture, **args), args
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            args = {name: value for name, value in args.items() if name != "img_size"}
            return timm.create_model(architecture, **args), args
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        reason = f"timm cannot build {architecture} with the model's arguments: {one_line(error, 200)}"
        raise UserError(f"model.name: {reason}: export ONNX instead") from None


def _pretrained_cfg(trained: TrainedModel, defaults: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """Return timm's description of the weights and their preprocessing. defaults: those of the architecture."""
    preprocessing = trained.preprocessing
    return {
        "tag": "vit_dist",
        "custom_load": False,
        **preprocessing.to_timm(),
        "fixed_input_size": bool(defaults.get("fixed_input_size")) and not args.get("dynamic_img_size"),
        "num_classes": len(trained.classes),
        "pool_size": None,
        "first_conv": defaults.get("first_conv"),
        "classifier": defaults.get("classifier"),
    }


def _timm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights by timm's names, with the position embedding even if it is fixed."""
    tensors = state_tensors(model)
    if isinstance(model, ViT):
        tensors["pos_embed"] = model.pos_embed.detach()
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _check_loads(folder: Path, trained: TrainedModel, architecture: str) -> None:
    """Load the folder with timm. Raises UserError if its tensors, or its logits in float64, differ from the model's."""
    import timm

    export = f"{trained.config.model.name} as timm's {architecture}"
    try:
        with silence_libraries():
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm's, torch's or safetensors'
        raise UserError(f"model.name: {export} does not load: {one_line(error, 200)}: export ONNX instead") from None
    tensors, theirs = _timm_tensors(trained.model), loaded.state_dict()
    if theirs.keys() != tensors.keys() or any(not torch.equal(theirs[name], tensors[name]) for name in tensors):
        raise UserError(f"model.name: {export} has other tensors: export ONNX instead")
    exact = copy.deepcopy(trained.model).double()
    images = trained.preprocessing.normalise(random_pixels(trained, 4)).double()
    with eval_mode(exact), eval_mode(loaded.double()):
        check_same_logits(loaded(images), exact(images), _TOLERANCE, export, "ONNX")

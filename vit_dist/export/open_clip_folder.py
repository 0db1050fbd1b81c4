"""Export a model of two towers as a folder for open_clip, published once open_clip loaded the same model from it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vit_dist.config.catalog import is_timm, timm_name
from vit_dist.config.fields import ModelConfig
from vit_dist.config.text_fields import TEXT_PRESETS
from vit_dist.data.text.tokenizer import Tokenizer
from vit_dist.errors import UserError, one_line
from vit_dist.export.verify import check_same_logits, random_pixels, silence_libraries
from vit_dist.files import publish, staged
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.zero_shot import tokenizer_of
from vit_dist.models.forward import eval_mode
from vit_dist.models.two_tower import TwoTower
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.models.weights import state_tensors

# Of embeddings of length 1, in float32 arithmetic of another order.
_TOLERANCE = 2e-5
_INSTEAD = "export ONNX instead"
# Names in a block of ours → open_clip's.
_BLOCK = {
    **{"norm1.": "ln_1.", "norm2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj."},
    **{"attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj.", "ls1.": "ls_1.", "ls2.": "ls_2."},
}


def export_open_clip(trained: TrainedModel, folder: Path, *, card: str) -> float | None:
    """Write open_clip_config.json, open_clip_model.safetensors and README.md (the card), as open_clip loads them.

    Return the largest difference between the embeddings of open_clip and ours, or None if open_clip is not installed.
    Raises UserError, a line each, for what open_clip's model cannot express, if the folder is not empty or cannot be
    written, or if open_clip does not load the same model from it.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already: name a new folder")
    towers = trained.model
    assert isinstance(towers, TwoTower)
    problems = list(_problems(trained, towers))
    if problems:
        raise UserError("\n".join(f"{problem}: {_INSTEAD}" for problem in problems))
    tokenizer = tokenizer_of(trained)
    config = {"model_cfg": _model_config(trained, towers, tokenizer), "preprocess_cfg": _preprocess_config(trained)}
    with staged(folder) as hidden:
        hidden.mkdir()
        file = hidden / "open_clip_config.json"
        file.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (hidden / "README.md").write_text(card, encoding="utf-8")
        weights = hidden / "open_clip_model.safetensors"
        try:
            save_file(_tensors(towers), weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        shutil.copymode(file, weights)  # safetensors makes it readable by its owner alone
        difference = _compare(hidden, trained, towers, tokenizer)
        publish(hidden, folder)
    return difference


def _problems(trained: TrainedModel, towers: TwoTower) -> Iterator[str]:
    """Yield what open_clip's model cannot express, a line each."""
    model, text, side = trained.config.model, trained.config.text, trained.preprocessing.image_size
    if isinstance(towers.image, ViT):
        wrong = {
            "model.pool: open_clip's ViT has a class token: only token": model.pool != "token",
            "model.registers: open_clip's ViT has none": model.registers > 0,
            "model.qk_norm: open_clip's norms of queries and keys are others": model.qk_norm,
            "model.pre_logits: open_clip's ViT has no layer before its projection": model.pre_logits,
            "model.patch_stride: open_clip's patches do not overlap": model.patch_stride
            not in (None, model.patch_size),
            f"data: open_clip's images are in colour, these have {trained.channels} channels": trained.channels
            not in (1, 3),
        }
        yield from (problem for problem, is_so in wrong.items() if is_so)
        if text.embed_dim > towers.image.head.in_features:
            yield "text.embed_dim: above the width of the image tower, whose bias open_clip's projection cannot hold"
    elif is_timm(model.name):
        yield from _timm_problems(model, trained.channels, side)
    else:
        yield f"model.name: open_clip has no {model.name}"
    if not text.causal:
        yield "text.causal: open_clip's text tower sees padding where it is not causal, this one does not"
    if text.pool != "end":
        yield "text.pool: open_clip's text tower has no mean over tokens"


def _timm_problems(model: ModelConfig, channels: int, side: int) -> Iterator[str]:
    """Yield why open_clip would build timm's model otherwise: by its name alone."""
    import timm

    defaults = timm.get_pretrained_cfg(timm_name(model.name).partition(".")[0])
    size = defaults.input_size[-1] if defaults is not None else side
    kept = {name: value for name, value in model.args.items() if not ("drop" in name and name.endswith("_rate"))}
    if kept:
        yield f"model.args: open_clip builds timm's models without arguments, these are set: {', '.join(kept)}"
    if channels != 3:
        yield f"data: open_clip's images are in colour, these have {channels} channels"
    if side != size:
        yield f"data.image_size: open_clip builds {model.name} for {size} pixels, this one is for {side}"


def _model_config(trained: TrainedModel, towers: TwoTower, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return open_clip's description of the model."""
    model, text, side = trained.config.model, trained.config.text, trained.preprocessing.image_size
    if isinstance(towers.image, ViT):
        preset = PRESETS[model.name]
        width, heads = model.width or preset["width"], model.heads or preset["heads"]
        vision: dict[str, Any] = {
            **{"image_size": side, "patch_size": model.patch_size, "width": width, "head_width": width // heads},
            **{"layers": model.depth or preset["depth"], "mlp_ratio": model.mlp_ratio, "no_ln_pre": True},
            **{"pool_type": "tok", "norm_kwargs": {"eps": model.norm_eps}},
        }
        if model.layer_scale:
            vision["ls_init_value"] = model.layer_scale
    else:
        image: Any = towers.image
        name, pool = timm_name(model.name).partition(".")[0], getattr(image, "global_pool", None)
        pool = pool if isinstance(pool, str) else "avg"
        vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": "", "image_size": side}
    sizes = TEXT_PRESETS[text.name]
    row = tokenizer(["a"])[0]
    end = int(row[row.nonzero()[0][-1]])
    ends_highest = end == tokenizer.vocabulary_size - 1
    words: dict[str, Any] = {
        **{"context_length": text.context_length, "vocab_size": tokenizer.vocabulary_size},
        **{"width": text.width or sizes["width"], "heads": text.heads or sizes["heads"]},
        **{"layers": text.depth or sizes["depth"], "pool_type": "argmax" if ends_highest else "eos"},
    }
    if not ends_highest:
        words["eos_id"] = end
    made = {"embed_dim": text.embed_dim, "vision_cfg": vision, "text_cfg": words}
    return made if towers.logit_bias is None else {**made, "init_logit_bias": towers.logit_bias.item()}


def _preprocess_config(trained: TrainedModel) -> dict[str, Any]:
    """Return open_clip's description of the input. Its images have three channels: grey ones are repeated."""
    made = trained.preprocessing
    grey = 3 // len(made.mean) if len(made.mean) == 1 else 1
    return {
        **{"size": made.image_size, "mode": "RGB", "mean": [*made.mean] * grey, "std": [*made.std] * grey},
        "interpolation": made.interpolation if made.interpolation in ("bicubic", "bilinear") else "bicubic",
        "resize_mode": {"crop": "shortest", "pad": "longest", "stretch": "squash"}[made.fit],
    }


def _tensors(towers: TwoTower) -> dict[str, Tensor]:
    """Return the weights by open_clip's names."""
    image = towers.image
    if isinstance(image, ViT):
        made = {f"visual.{name}": tensor for name, tensor in _vision_tensors(image).items()}
    else:
        made = {f"visual.trunk.{name}": tensor for name, tensor in state_tensors(image).items()}
    text = state_tensors(towers.text)
    made |= {
        "token_embedding.weight": text.pop("token_embed.weight"),
        "positional_embedding": text.pop("pos_embed"),
        "text_projection": text.pop("head.weight").T,
        **{f"ln_final.{part}": text.pop(f"norm.{part}") for part in ("weight", "bias")},
    }
    made |= _block_tensors(text)
    made["logit_scale"] = towers.logit_scale.detach()
    if towers.logit_bias is not None:
        made["logit_bias"] = towers.logit_bias.detach()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in made.items()}


def _vision_tensors(image: ViT) -> dict[str, Tensor]:
    """Return the weights of our ViT by open_clip's names.

    open_clip's patches have no bias: it is added to their positions. Nor has its projection: it is added to the bias of
    the last norm, by as much as the projection turns into it.
    """
    tensors = state_tensors(image)
    positions = image.pos_embed.detach()[0].clone()
    positions[1:] += tensors.pop("patch_embed.proj.bias")
    patches = tensors.pop("patch_embed.proj.weight")
    if patches.shape[1] == 1:  # grey: the mean of three equal channels
        patches = patches.expand(-1, 3, -1, -1) / 3
    projection, bias = tensors.pop("head.weight"), tensors.pop("head.bias")
    shift = torch.linalg.lstsq(projection.double(), bias.double()[:, None], driver="gelsd").solution[:, 0]
    norm_bias = tensors.pop("norm.bias").double() + shift
    tensors.pop("pos_embed", None)
    return {
        "conv1.weight": patches,
        "class_embedding": tensors.pop("cls_token")[0, 0],
        "positional_embedding": positions,
        "ln_post.weight": tensors.pop("norm.weight"),
        "ln_post.bias": norm_bias.to(projection.dtype),
        "proj": projection.T,
        **_block_tensors(tensors),
    }


def _block_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of blocks by open_clip's names; there must be no others."""
    made = {}
    for name, tensor in tensors.items():
        kind, number, part = name.split(".", 2)
        assert kind == "blocks", name
        old = next(old for old in _BLOCK if part.startswith(old))
        made[f"transformer.resblocks.{number}.{_BLOCK[old]}{part.removeprefix(old)}"] = tensor
    return made


def _compare(folder: Path, trained: TrainedModel, towers: TwoTower, tokenizer: Tokenizer) -> float | None:
    """Return the largest difference between the embeddings of open_clip and ours. Raises UserError if it is too large.

    None if open_clip is not installed.
    """
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    name = trained.config.model.name
    try:
        with silence_libraries():
            loaded: nn.Module = open_clip.create_model(f"local-dir:{folder}")
    except Exception as error:  # of many types
        raise UserError(f"model.name: open_clip does not load {name}: {one_line(error, 200)}: {_INSTEAD}") from None
    pixels = trained.preprocessing.normalise(random_pixels(trained, 4))
    colour = pixels.expand(-1, 3, -1, -1)
    tokens = torch.from_numpy(tokenizer(["a", "a photo of a cat", "x" * tokenizer.context_length]))
    theirs: Any = loaded
    with eval_mode(towers), eval_mode(loaded):
        pairs = [
            (theirs.encode_image(colour, normalize=True), towers.encode_image(pixels), "images"),
            (theirs.encode_text(tokens, normalize=True), towers.encode_text(tokens), "texts"),
        ]
        return max(
            check_same_logits(made, own, _TOLERANCE, f"{name} in open_clip, of {what},", "ONNX")
            for made, own, what in pairs
        )

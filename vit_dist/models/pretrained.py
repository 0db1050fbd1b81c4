"""Pretrained weights: loaded by name and resampled to the model's sizes, with notes on what does not fit."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from vit_dist.config.catalog import is_timm
from vit_dist.config.fields import ModelConfig
from vit_dist.errors import UserError, one_line
from vit_dist.models.timm_models import pretrained_cfg
from vit_dist.models.weights import check_finite, read_tensors

_PATCHES, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
_HUB_FILE = "model.safetensors"
_LISTED = 5


def timm_weights(name: str) -> Path:
    """Return the safetensors file of a timm model's pretrained weights, downloaded once. Raises UserError."""
    from huggingface_hub import hf_hub_download

    place = _hub_id(name)
    try:
        with _without_warnings("huggingface_hub"):  # of each time that it tries again
            return Path(hf_hub_download(place, _HUB_FILE))
    except Exception as error:  # of many kinds: no network, no such file, no permission
        reason = one_line(error, 200)
        raise UserError(
            f"model.pretrained: {place} cannot be downloaded ({reason}): on a machine with internet, "
            f"hf download {place} {_HUB_FILE} --local-dir . fetches it; "
            f"here, --model.pretrained {_HUB_FILE} takes that file"
        ) from None


@contextlib.contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Keep a package from logging warnings."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def timm_weights_are_here(name: str) -> bool:
    """Return whether a timm model's pretrained weights were downloaded before. Raises UserError if timm has none."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(_hub_id(name), _HUB_FILE), str)


def _hub_id(name: str) -> str:
    """Return where the Hugging Face Hub has a timm model's weights. Raises UserError if timm has none."""
    cfg = pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        raise UserError(f"model.pretrained: timm has no safetensors weights for {name}: give a file")
    return str(cfg.hf_hub_id)


def load_pretrained(model: nn.Module, path: Path, *, new_head: bool) -> list[str]:
    """Load a safetensors file into a model, and return a note for each thing that was not loaded unchanged.

    Patch and position embeddings of other sizes, and patches of another number of channels, are resampled as timm
    does. The head starts anew if `new_head`, or if its number of classes differs. Raises UserError if the file's
    weights are of another model, ModelError if they are not finite.
    """
    tensors = read_tensors(path, "model.pretrained")
    wanted = model.state_dict()
    heads = tuple(f"{name}." for name in classifier(model))
    notes: list[str] = []
    head_names = [name for name in wanted if name.startswith(heads)]
    if new_head or any(name not in tensors or tensors[name].shape != wanted[name].shape for name in head_names):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
        notes.append(f"{', '.join(classifier(model))}: starts anew")
    notes += _resample(tensors, wanted)
    unlike = [name for name in tensors if name in wanted and tensors[name].shape != wanted[name].shape]
    loaded = {name: tensor for name, tensor in tensors.items() if name in wanted and name not in unlike}
    if unlike or not loaded:
        shapes = "; ".join(f"{n} is {list(tensors[n].shape)}, the model's {list(wanted[n].shape)}" for n in unlike[:2])
        more = f"; and {len(unlike) - 2} more" if len(unlike) > 2 else ""
        raise UserError(f"model.pretrained: {path} is of another model: {shapes or 'no name is the same'}{more}")
    missing = [name for name in wanted if name not in loaded and name not in head_names]
    unused = [name for name in tensors if name not in wanted]
    if missing:
        notes.append(f"not in the file, so they start anew: {_listed(missing)}")
    if unused:
        notes.append(f"in the file, not in the model: {_listed(unused)}")
    check_finite(loaded, path)
    model.load_state_dict(loaded, strict=False)
    return notes


def classes_and_channels(name: str, path: Path) -> tuple[int, int]:
    """Return (classes, channels) that a file of weights of our ViT, or of timm/NAME, was made for.

    Raises UserError if the weights are of another model.
    """
    head, first = "head", "patch_embed.proj"
    if is_timm(name):
        cfg = pretrained_cfg(name)
        named = (cfg and cfg.classifier) or head, (cfg and cfg.first_conv) or first
        head, first = (layer if isinstance(layer, str) else layer[0] for layer in named)
    tensors = read_tensors(path)
    for layer in (head, first):
        if f"{layer}.weight" not in tensors:
            raise UserError(f"{path}: has no {layer}.weight, so it is not a {name}: set model.name to its model")
    return len(tensors[f"{head}.weight"]), tensors[f"{first}.weight"].shape[1]


def freeze(model: nn.Module, config: ModelConfig) -> list[str]:
    """Freeze what matches `model.freeze`, or all but the head for `model.linear_probe`; return a note on how much.

    Raises UserError if a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.freeze:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"model.freeze: {pattern} matches no parameter; names are as in {names[-1]}")
    heads = tuple(f"{name}." for name in classifier(model))
    frozen = 0
    for name, parameter in model.named_parameters():
        probed = config.linear_probe and not name.startswith(heads)
        if probed or any(re.search(pattern, name) for pattern in config.freeze):
            parameter.requires_grad_(False)
            frozen += 1
    if frozen == len(names):
        raise UserError("model.freeze: leaves nothing to train")
    return [f"{frozen} of {len(names)} parameters are frozen"] if frozen else []


def classifier(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that make logits: timm's, ours, or the last linear one."""
    cfg = getattr(model, "pretrained_cfg", None)
    named = cfg.get("classifier") if isinstance(cfg, Mapping) else getattr(cfg, "classifier", None)
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ("head",) if "head" in linears or not linears else (linears[-1],)


def _resample(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """Resample patch and position embeddings to the model's sizes, in place; yield a note for each."""
    from timm.layers import resample_abs_pos_embed, resample_patch_embed
    from timm.models import adapt_input_conv

    old, new = tensors.get(_PATCHES), wanted.get(_PATCHES)
    if old is not None and new is not None and old.ndim == new.ndim == 4 and old.shape[0] == new.shape[0]:
        if old.shape[1] != new.shape[1] and old.shape[1] == 3:
            old = adapt_input_conv(new.shape[1], old)
            yield f"{_PATCHES}: 3 channels brought to {new.shape[1]}"
        if old.shape[2:] != new.shape[2:]:
            yield f"{_PATCHES}: resampled from {list(old.shape[2:])} to {list(new.shape[2:])}"
            old = resample_patch_embed(old, list(new.shape[2:]))
        tensors[_PATCHES] = old
    old, new = tensors.get(_POSITIONS), wanted.get(_POSITIONS)
    if old is None or new is None or old.shape == new.shape or old.shape[2:] != new.shape[2:] or old.ndim != 3:
        return
    theirs, ours = _prefix(tensors, old.shape[1]), _prefix(wanted, new.shape[1])
    if theirs is None or ours is None or theirs != ours:
        return  # the caller refuses them as weights of another model
    side = math.isqrt(new.shape[1] - ours)
    yield f"{_POSITIONS}: resampled from {old.shape[1]} to {new.shape[1]} tokens"
    tensors[_POSITIONS] = resample_abs_pos_embed(old, [side, side], num_prefix_tokens=ours)


def _prefix(tensors: Mapping[str, Tensor], tokens: int) -> int | None:
    """Return how many positions belong to class and register tokens, the rest a square; None if it is no square."""
    extra = sum(tensors[name].shape[1] for name in ("cls_token", "reg_token", "dist_token") if name in tensors)
    for prefix in (extra, 0):
        if tokens > prefix and math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
            return prefix
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

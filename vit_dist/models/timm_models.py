"""timm's models: build them, check their names, name their classes."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit_dist.config.catalog import is_timm, timm_name
from vit_dist.config.fields import ModelConfig
from vit_dist.config.limits import LIMITS
from vit_dist.errors import UserError, nearest, one_line
from vit_dist.models.vit import PRESETS
from vit_dist.sizing.limits import check_parameters


def check_model_name(name: str) -> None:
    """Check that a name is a preset of ours, a timm model or an import path. Raises UserError with close names."""
    if not is_timm(name):
        if ":" in name:
            return
        if name not in PRESETS:
            import timm

            known = [*PRESETS, "timm/NAME", "package.module:function"]
            hint = f": timm's is timm/{name}" if timm.is_model(name) else nearest(name, known)
            raise UserError(f"model.name: no model {name}{hint}")
        return
    import timm

    name = timm_name(name)
    if not timm.is_model(name):
        close = [f"timm/{model}" for model in difflib.get_close_matches(name, timm.list_models(), 3)]
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"model.name: timm has no model {name}: {hint}")


def untrusted_arguments(config: ModelConfig) -> list[str]:
    """Return the names of the arguments of timm/NAME that are not safe to take from a file.

    Safe are arguments of the classes in timm's own module of the model, if they are numbers, switches, words, or lists
    of these: nothing that can name a file, an address or code, or take all memory.
    """
    from timm.models import model_entrypoint

    check_model_name(config.name)
    module = sys.modules[model_entrypoint(timm_name(config.name).partition(".")[0]).__module__]
    classes = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, nn.Module)]
    known = {name for kind in classes for name in inspect.signature(kind.__init__).parameters}
    known -= {"self", "args", "kwargs", "device", "dtype", *_LOADING}
    return [name for name, value in config.args.items() if name not in known or not _is_plain(value)]


def _check_sizes(name: str, arguments: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse arguments of the user's own that make a model too large for this machine. Raises UserError."""
    import timm

    for argument, value in own.items():
        most = LIMITS["model.depth"] if "depth" in argument or "layers" in argument else _LARGEST
        if isinstance(value, (int, float)) and abs(value) > most:
            raise UserError(f"model.args.{argument}: must be at most {most:,}, not {str(value)[:40]}")
    if not own:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm.create_model(name, **arguments)
    except Exception:  # not every model can be built without memory; if it cannot at all, building it says why
        return
    check_parameters(sum(parameter.numel() for parameter in model.parameters()), "model.args")


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)):
        return depth < 3 and len(value) <= 100 and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z0-9_.-]{0,64}", value) is not None
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) <= _LARGEST)


# Arguments with which timm loads weights by itself, pickles too, or builds something that is no classifier.
_LOADING = frozenset(
    {
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
        *("checkpoint_path", "cache_dir", "model_cfg", "feature_cfg", "features_only", "kwargs_filter"),
    }
)
_LARGEST = 2**16  # of a number among the arguments


def pretrained_cfg(name: str) -> Any:
    """Return timm's configuration (a PretrainedCfg) of timm/NAME's weights; None for other models and without one.

    Raises UserError for a tag that timm does not have.
    """
    if not is_timm(name):
        return None
    import timm

    try:
        return timm.get_pretrained_cfg(timm_name(name))
    except RuntimeError as error:
        raise UserError(f"model.name: {name}: {error}") from None


def imagenet_classes(name: str, classes: int) -> tuple[list[str], list[str]]:
    """Return (identifiers, readable names) of timm/NAME's classes: ImageNet's if their number matches, else numbers."""
    numbers = [str(number) for number in range(classes)]
    if not is_timm(name) or classes not in _IMAGENETS:
        return numbers, numbers
    from timm.data import ImageNetInfo

    info = ImageNetInfo(_IMAGENETS[classes])
    return list(info.label_names()), [info.index_to_description(number).split(",")[0] for number in range(classes)]


# Classes → timm's name for that part of ImageNet.
_IMAGENETS = {1000: "imagenet-1k", 11221: "imagenet-21k-miil", 11821: "imagenet-12k", 21841: "imagenet-22k"}


def build_timm_model(config: ModelConfig, classes: int, channels: int, image_size: int, *, dynamic: bool) -> nn.Module:
    """Build timm/NAME for images [channels, image_size, image_size].

    dynamic: whether it must take other sizes too. Raises UserError.
    """
    import timm

    check_model_name(config.name)
    name = timm_name(config.name)
    for argument in config.args:
        if argument in _LOADING:
            raise UserError(
                f"model.args.{argument}: timm's own loading may read a pickle: leave it out, and set model.pretrained"
            )
    for argument, field in (("img_size", "data.image_size sets"), ("num_classes", "the data's classes set")):
        if argument in config.args:
            raise UserError(f"model.args.{argument}: {field} it: leave it out")
    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": channels, **config.args}
    if dynamic:
        arguments.setdefault("dynamic_img_size", True)
    for argument, value in (("drop_path_rate", config.drop_path), ("drop_rate", config.dropout)):
        if value:
            arguments[argument] = value
    _check_sizes(name, {"img_size": image_size, **arguments}, config.args)
    try:
        try:
            model = timm.create_model(name, img_size=image_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            arguments.pop("dynamic_img_size", None)
            model = timm.create_model(name, **arguments)  # convolutional models take any size
    except Exception as error:  # of any kind, since the arguments may be any
        reason = one_line(error, 300)
        raise UserError(f"model.name: timm/{name} cannot be built for {image_size} pixels: {reason}") from None
    assert isinstance(model, nn.Module)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and image_size % patch[0]:
        raise UserError(
            f"data.image_size: timm/{name} has patches of {patch[0]} pixels: "
            f"set {max(1, round(image_size / patch[0])) * patch[0]}, not {image_size}"
        )
    return model

"""Name → module: our ViT, any timm model, any function of the user's."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vit_dist.config.schema import ModelConfig
from vit_dist.config.validation import image_problems
from vit_dist.config.values import import_function
from vit_dist.errors import UserError, one_line
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.plan.keys import Purpose, key


@dataclass(frozen=True)
class Preprocessing:
    """What a timm model was made for: side in pixels, mean and std per channel, the part of the side it evaluates."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float


def build_model(
    config: ModelConfig,
    *,
    classes: int,
    channels: int,
    image_size: int,
    seed: int,
    sizes: Sequence[int] = (),
    trained: bool = True,
) -> nn.Module:
    """The model on the CPU in float32, its initial weights a function of `seed` alone.

    sizes: other sides than image_size that it must take. trained: whether it will be, which BatchNorm must not.
    Raises UserError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, Purpose.INIT) >> 1)
        if config.name.startswith("timm/"):
            model = _timm(config, classes, channels, image_size, dynamic=bool(sizes))
        elif ":" in config.name:
            build = import_function(config.name, "model.name")
            try:
                model = build(classes=classes, channels=channels, image_size=image_size, **config.args)
            except TypeError as error:
                raise UserError(
                    f"model.name: {config.name} was called with classes, channels, image_size and model.args: {error}"
                ) from error
            if not isinstance(model, nn.Module):
                raise UserError(f"model.name: {config.name} must return a torch.nn.Module, not {type(model).__name__}")
        else:
            model = _vit(config, classes, channels, image_size)
    if trained:
        refuse_batch_norm(model)
    for side in sizes:
        try:
            with evaluating(model):
                model(torch.zeros(1, channels, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = one_line(error)
            raise UserError(f"augment.sizes: {config.name} does not take {side} pixels: {reason}") from None
    return model


def preprocessing(config: ModelConfig) -> Preprocessing | None:
    """What the named timm model was made for; None for any other. Raises UserError for a tag that it does not have."""
    if not config.name.startswith("timm/"):
        return None
    import timm

    try:
        cfg = timm.get_pretrained_cfg(config.name.removeprefix("timm/"))
    except RuntimeError as error:
        raise UserError(f"model.name: {config.name}: {error}") from None
    if cfg is None:
        return None
    return Preprocessing(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std), cfg.crop_pct)


def check_model_name(name: str) -> None:
    """Raises UserError, with near names, where it is neither one of our presets, nor of timm's, nor a path of code."""
    if ":" in name:
        return
    if not name.startswith("timm/"):
        if name not in PRESETS:
            close = difflib.get_close_matches(name, list(PRESETS), 1)
            hint = f"did you mean {close[0]}? " if close else ""
            known = ", ".join([*PRESETS, "timm/NAME", "package.module:function"])
            raise UserError(f"model.name: no model {name}; {hint}known: {known}")
        return
    import timm

    known = name.removeprefix("timm/")
    if not timm.is_model(known):
        close = difflib.get_close_matches(known, timm.list_models(), 3)
        hint = f"did you mean {', '.join(f'timm/{one}' for one in close)}?" if close else "see timm.list_models()"
        raise UserError(f"model.name: timm has no model {known}: {hint}")


def imagenet_classes(name: str, classes: int) -> tuple[list[str], list[str]]:
    """(identifiers, names for people) of timm/NAME's classes: ImageNet's where their number is, else numbers."""
    numbers = [str(number) for number in range(classes)]
    if not name.startswith("timm/") or classes not in _IMAGENETS:
        return numbers, numbers
    from timm.data import ImageNetInfo

    info = ImageNetInfo(_IMAGENETS[classes])
    return list(info.label_names()), [info.index_to_description(number).split(",")[0] for number in range(classes)]


# Classes → timm's name for that part of ImageNet.
_IMAGENETS = {1000: "imagenet-1k", 11221: "imagenet-21k-miil", 11821: "imagenet-12k", 21841: "imagenet-22k"}


def refuse_batch_norm(model: nn.Module) -> None:
    """BatchNorm's statistics would see fillers, and depend on how a batch is split. Raises UserError."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"model.name: BatchNorm ({name}) makes the result depend on how a batch is split over machines: "
                "use a model with LayerNorm or GroupNorm, or freeze its norms (timm's freeze_batch_norm_2d)"
            )


def parameter_count(model: nn.Module) -> int:
    """Trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: nn.Module, *, channels: int, image_size: int) -> int:
    """FLOPs of one image's forward pass, 2 per multiply-add, attention counted."""
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, image_size, image_size, device=device, dtype=dtype))
    return int(counter.get_total_flops())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def drop_path_depth(model: nn.Module) -> int:
    """Blocks that want keyed draws: the depth of our ViT where it drops paths, else 0."""
    rates = getattr(model, "drop_path_rates", None) if isinstance(model, ViT) else None
    return len(rates) if rates and max(rates) > 0 else 0


def _vit(config: ModelConfig, classes: int, channels: int, image_size: int) -> nn.Module:
    check_model_name(config.name)
    preset = PRESETS[config.name]
    width = config.width or preset["width"]
    heads = config.heads or preset["heads"]
    stride = config.patch_stride or config.patch_size
    problems = list(image_problems(stride, image_size))
    if stride != config.patch_size:
        problems = [problem.replace("model.patch_size", "model.patch_stride") for problem in problems]
    if width % heads:
        problems.append(f"model.width: {width} is not divisible by {heads} heads: set model.heads")
    if config.position == "sincos" and width % 4:
        problems.append(f"model.width: {width} must be divisible by 4 with model.position sincos")
    if problems:
        raise UserError("\n".join(problems))
    return ViT(
        image_size=image_size,
        patch_size=config.patch_size,
        channels=channels,
        classes=classes,
        width=width,
        depth=config.depth or preset["depth"],
        heads=heads,
        mlp_ratio=config.mlp_ratio,
        pool=config.pool,
        fc_norm=config.fc_norm,
        pre_logits=config.pre_logits,
        position=config.position,
        patch_stride=config.patch_stride,
        registers=config.registers,
        layer_scale=config.layer_scale,
        qk_norm=config.qk_norm,
        init=config.init,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        drop_path=config.drop_path,
    )


def _timm(config: ModelConfig, classes: int, channels: int, image_size: int, *, dynamic: bool) -> nn.Module:
    import timm

    check_model_name(config.name)
    name = config.name.removeprefix("timm/")
    for argument, field in (("img_size", "data.image_size is"), ("num_classes", "the data's classes are")):
        if argument in config.args:
            raise UserError(f"model.args.{argument}: {field} what says it: leave it out")
    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": channels, **config.args}
    if dynamic:
        arguments.setdefault("dynamic_img_size", True)
    for argument, value in (("drop_path_rate", config.drop_path), ("drop_rate", config.dropout)):
        if value:
            arguments[argument] = value
    try:
        try:
            model = timm.create_model(name, img_size=image_size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            arguments.pop("dynamic_img_size", None)
            model = timm.create_model(name, **arguments)  # convolutional models take any size
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UserError(f"model.name: timm/{name} cannot be built for {image_size} pixels: {error}") from None
    assert isinstance(model, nn.Module)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and image_size % patch[0]:
        raise UserError(
            f"data.image_size: timm/{name} has patches of {patch[0]} pixels: "
            f"set {max(1, round(image_size / patch[0])) * patch[0]}, not {image_size}"
        )
    return model

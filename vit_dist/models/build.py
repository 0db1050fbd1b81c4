"""Build a model by name: our ViT, any timm model, or any function of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vit_dist.config.catalog import is_timm
from vit_dist.config.fields import ModelConfig
from vit_dist.config.validation import vit_problems
from vit_dist.config.values import import_function
from vit_dist.errors import UserError, one_line
from vit_dist.models.forward import eval_mode
from vit_dist.models.keyed_drop_path import key_drop_paths, keyed_depth
from vit_dist.models.residual import timm_bf16_residual
from vit_dist.models.text_transformer import TextTransformer
from vit_dist.models.timm_models import build_timm_model, check_model_name
from vit_dist.models.vit import PRESETS, ViT
from vit_dist.plan.keys import Purpose, key
from vit_dist.sizing.limits import check_parameters
from vit_dist.sizing.towers import towers_of


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
    """Build the model on the CPU in float32; its initial weights depend on `seed` alone.

    sizes: sides in pixels, other than image_size, that it must take as well. trained: whether it will be trained, for
    which BatchNorm is refused. Raises UserError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, Purpose.INIT) >> 1)
        if is_timm(config.name):
            model = build_timm_model(config, classes, channels, image_size, dynamic=bool(sizes))
            if trained:
                key_drop_paths(model, (channels, image_size, image_size))
        elif ":" in config.name:
            build = import_function(config.name, "model.name")
            try:
                model = build(classes=classes, channels=channels, image_size=image_size, **config.args)
            except (Exception, SystemExit) as error:  # of any kind: it is the user's function
                called = f"{config.name} was called with classes, channels, image_size and model.args"
                raise UserError(f"model.name: {called}: {one_line(error, 300)}") from error
            if not isinstance(model, nn.Module):
                raise UserError(f"model.name: {config.name} must return a torch.nn.Module, not {type(model).__name__}")
        else:
            model = _vit(config, classes, channels, image_size)
    if config.residual == "bf16":
        bf16_residual(model)
    if trained:
        refuse_batch_norm(model)
    for side in sizes:
        try:
            with eval_mode(model):
                model(torch.zeros(1, channels, side, side))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = one_line(error)
            raise UserError(f"augment.sizes: {config.name} does not take {side} pixels: {reason}") from None
    return model


def check_outputs(model: nn.Module, *, classes: int, channels: int, image_size: int, field: str) -> None:
    """Check that a model of the user's takes the images and gives a value for each class. Raises UserError."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    shape = [1, channels, image_size, image_size]
    try:
        with eval_mode(model):
            outputs = model(torch.zeros(shape, device=device))
    except Exception as error:  # of any kind: it is the user's model
        raise UserError(
            f"{field}: cannot take images {shape}: {type(error).__name__}: {one_line(error, 200)}"
        ) from error
    if not isinstance(outputs, Tensor) or list(outputs.shape) != [1, classes]:
        found = f"outputs of shape {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"{field}: gives {found} for one image, and must give [1, {classes}], a value for each class")


def refuse_batch_norm(model: nn.Module) -> None:
    """Refuse BatchNorm with a UserError: its statistics would see fillers and depend on how a batch is split."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"model.name: BatchNorm ({name}) makes the result depend on how a batch is split over machines: "
                "use a model with LayerNorm or GroupNorm, or freeze its norms (timm's freeze_batch_norm_2d)"
            )


def drop_path_depth(model: nn.Module) -> int:
    """Return how many pairs of keyed draws a model takes for each sample: the depth of our own if it drops paths."""
    if towers := towers_of(model):
        return sum(map(drop_path_depth, towers.values()))
    if not isinstance(model, (ViT, TextTransformer)):
        return keyed_depth(model)
    return len(model.drop_path_rates) if max(model.drop_path_rates) > 0 else 0


def checkpoint_blocks(model: nn.Module) -> None:
    """Let a model keep its blocks' inputs alone for the backward pass, which computes the rest again.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Raises UserError for a model that cannot.
    """
    if towers := towers_of(model):
        for tower in towers.values():
            checkpoint_blocks(tower)
        return
    if isinstance(model, (ViT, TextTransformer)):
        model.checkpoint_blocks = True
        return
    switch = getattr(model, "set_grad_checkpointing", None)  # timm's
    try:
        assert callable(switch)
        switch()
    except AssertionError:  # timm's own, for a model that cannot, too
        raise UserError("model.checkpoint_blocks: this model cannot: set it false") from None


def bf16_residual(model: nn.Module) -> None:
    """Let a model keep its residual stream in bfloat16 under bf16 autocast. Raises UserError if it cannot."""
    if isinstance(model, ViT):
        model.bf16_residual = True
    else:
        timm_bf16_residual(model)


def _vit(config: ModelConfig, classes: int, channels: int, image_size: int) -> nn.Module:
    check_model_name(config.name)
    preset = PRESETS[config.name]
    width = config.width or preset["width"]
    heads = config.heads or preset["heads"]
    problems = list(vit_problems(replace(config, width=width, heads=heads), image_size))
    if problems:
        raise UserError("\n".join(problems))
    depth = config.depth or preset["depth"]
    tokens = (image_size // (config.patch_stride or config.patch_size)) ** 2
    blocks = depth * (4 * width**2 + 2 * width * int(width * config.mlp_ratio))
    check_parameters(blocks + (channels * config.patch_size**2 + tokens + classes) * width, "model.width")
    return ViT(
        image_size=image_size,
        patch_size=config.patch_size,
        channels=channels,
        classes=classes,
        width=width,
        depth=depth,
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

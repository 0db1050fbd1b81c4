"""Build the model of two towers of a run: its tokenizer, its weights, and what of it is frozen."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vit_dist.config.config import Config
from vit_dist.config.values import parse_size
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.text.tokenizer import Tokenizer
from vit_dist.errors import UserError
from vit_dist.inference.choose import choose_checkpoint
from vit_dist.inference.load import start_from
from vit_dist.models.build import checkpoint_blocks, refuse_batch_norm
from vit_dist.models.pretrained import freeze, load_pretrained
from vit_dist.models.two_tower import TwoTower, build_two_tower, check_image_tower
from vit_dist.models.weights import read_specs


def build_towers(
    config: Config,
    tokenizer: Tokenizer,
    channels: int,
    preprocessing: Preprocessing,
    model: nn.Module | None,
    *,
    load_pretrained: bool,
) -> tuple[TwoTower, list[str]]:
    """Return the model of a contrastive run on the CPU, and notes on pretrained and frozen weights.

    model: used in place of the config's. load_pretrained: False if a checkpoint's weights follow. Raises UserError.
    """
    if model is None:
        model = build_two_tower(
            config.model,
            config.text,
            config.loss.name,
            vocabulary_size=tokenizer.vocabulary_size,
            channels=channels,
            image_size=preprocessing.image_size,
            seed=config.run.seed,
            sizes=[parse_size(text)[0] for text in config.augment.sizes],
        )
    elif not isinstance(model, TwoTower):
        raise UserError(
            f"model: loss.name {config.loss.name} needs a TwoTower of vit_dist.models.two_tower, not "
            f"{type(model).__name__}: wrap it with a text tower"
        )
    elif (model.logit_bias is None) is not (config.loss.name == "clip"):
        raise UserError(f"model: this TwoTower is not made for loss.name {config.loss.name}: build it with that loss")
    else:
        refuse_batch_norm(model)
        side = preprocessing.image_size
        check_image_tower(model.image, config.text.embed_dim, channels=channels, image_size=side)
    if config.model.checkpoint_blocks:
        checkpoint_blocks(model)
    notes = _start_from(model, config) if load_pretrained and config.model.pretrained else []
    notes += freeze(model, config.model)
    model.train()  # a frozen tower stays as at inference
    return model, notes


def _start_from(model: TwoTower, config: Config) -> list[str]:
    """Load model.pretrained: both towers of a contrastive run, or the image tower alone. Return notes."""
    path = Path(config.model.pretrained).expanduser()
    if config.model.pretrained != "timm" and path.is_dir():
        state = choose_checkpoint(path, "model.pretrained")[0].state
        if state.config.contrastive:
            return start_from(model, config.model, state.classes)
    elif path.suffix == ".safetensors" and path.is_file() and "logit_scale" in read_specs(path):
        return load_pretrained(model, path, new_head=False)
    return start_from(model.image, config.model, [])

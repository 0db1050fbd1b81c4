"""Preprocessing: what an image becomes before the model sees it, decided once for a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_dist.config.config import Config
from vit_dist.config.schema import ModelConfig
from vit_dist.data.sources.splits import Data
from vit_dist.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """What a timm model was made for: side in pixels, mean and std per channel, the part of the side it evaluates."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float


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


@dataclass(frozen=True)
class Form:
    """What images become: their side in pixels, mean and std per channel, and the model's keyed drop-path depth.

    crop: the part of the side that evaluation keeps of files.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    drop_path_depth: int = 0
    crop: float = 0.875

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Form:
        """Of plain values, as JSON holds them."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def form_of(config: Config, data: Data) -> Form:
    """Side, mean and std: the config's, else the timm model's where they fit, else the data's. Raises UserError."""
    model = preprocessing(config.model)
    side = config.data.image_size or (model.image_size if model and data.image_size == 224 else data.image_size)
    mean, std = config.data.mean, config.data.std
    if not mean and model and len(model.mean) == data.channels:
        mean, std = model.mean, model.std
    mean, std = mean or data.mean, std or data.std
    if len(mean) != data.channels:
        raise UserError(f"data.mean: has {len(mean)} values and the images {data.channels} channels: give one each")
    return Form(side, tuple(mean), tuple(std), crop=config.data.crop or (model.crop if model else 0.875))

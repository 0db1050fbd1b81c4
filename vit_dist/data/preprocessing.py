"""Preprocessing: what an image becomes before the model sees it, decided once and kept with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vit_dist.config.config import Config
from vit_dist.config.fields import ModelConfig
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.models.timm_models import pretrained_cfg

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocessing:
    """The model's input: side in pixels, mean and std per channel (of values in 0..1).

    crop: the fraction of the side that evaluation keeps of image files (a center crop). interpolation: how image files
    are resized, bicubic or bilinear.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bicubic"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build it from plain values, as JSON holds them."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def normalise(self, pixels: Tensor, image_size: int = 0) -> Tensor:
        """Normalise values 0..255 [n, channels, h, w] to float32 [n, channels, image_size, image_size].

        image_size: another side than the model's own, in pixels; 0: its own.
        """
        mean, std = _constants(self.mean, self.std, pixels.device)
        return normalise(pixels, image_size or self.image_size, mean, std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Turn normalised images [n, channels, h, w] back into uint8 pixels of the same shape."""
        mean, std = _constants(self.mean, self.std, images.device)
        return ((images * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).byte()


@lru_cache(maxsize=32)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std [channels] on a device; cached, so that a batch does not wait for a copy."""
    with torch.inference_mode(False):
        return torch.tensor(mean, device=device), torch.tensor(std, device=device)


def timm_preprocessing(config: ModelConfig) -> Preprocessing | None:
    """Return the preprocessing that timm names for its model; None for other models.

    Raises UserError for a tag that timm does not have.
    """
    cfg = pretrained_cfg(config.name)
    if cfg is None:
        return None
    return Preprocessing(cfg.input_size[-1], tuple(cfg.mean), tuple(cfg.std), cfg.crop_pct)


def resolve_preprocessing(config: Config, data: LabelledSplits) -> Preprocessing:
    """Decide the preprocessing of a run: the config's, else the timm model's where it fits, else the data's.

    Raises UserError.
    """
    model = timm_preprocessing(config.model)
    side = config.data.image_size or (model.image_size if model and data.image_size == 224 else data.image_size)
    mean, std = config.data.mean, config.data.std
    if not mean and model and len(model.mean) == data.channels:
        mean, std = model.mean, model.std
    mean, std = mean or data.mean, std or data.std
    if len(mean) != data.channels:
        raise UserError(f"data.mean: has {len(mean)} values and the images {data.channels} channels: give one each")
    crop, interpolation = config.data.crop or (model.crop if model else 0.875), "bicubic"
    pixels = decoded(data.splits["train"].source)
    if pixels is not None:
        crop = 1.0  # decoded images fill their frame, and are not cropped in training either
        if pixels.shape[2] != side:
            interpolation = "bilinear"  # as the device resizes them
    return Preprocessing(side, tuple(mean), tuple(std), crop, interpolation)

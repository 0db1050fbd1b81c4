"""Preprocessing: what an image becomes before the model sees it, decided once and kept with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.config.config import Config
from vit_dist.config.fields import DataConfig, ModelConfig
from vit_dist.data.augmentation.ops import coefficients, rescale
from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.models.timm_models import pretrained_cfg

# Those of Pillow that timm knows.
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")
# How an image becomes a square → timm's crop_mode.
CROP_MODES = {"crop": "center", "pad": "border", "stretch": "squash"}
FITS = tuple(CROP_MODES)
# Above 1, the image is smaller than the model's input, and black around it: timm has 1.15 for some models.
LARGEST_CROP = 2.0
DEFAULT_CROP, DEFAULT_INTERPOLATION = 0.875, "bicubic"


@dataclass(frozen=True)
class Preprocessing:
    """The model's input: side in pixels, mean and std per channel (of values in 0..1).

    How evaluation resizes images to it, as timm does: the side is cut out of the centre of floor(side / crop) pixels.
    fit: crop resizes an image's shorter side to these, pad the longer one (the border has the mean's colour), stretch
    both. interpolation: Pillow's.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = DEFAULT_CROP
    interpolation: str = DEFAULT_INTERPOLATION
    fit: str = "crop"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build it from plain values, as JSON holds them."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @classmethod
    def from_timm(cls, values: Mapping[str, Any], *, test_size: bool = False) -> Preprocessing:
        """Build it from timm's description of a model's weights (pretrained_cfg).

        test_size: take the side and crop at which timm measures them, where it names other ones than for training.
        Raises ValueError, KeyError, TypeError or IndexError for one that is none, or is not of squares.
        """
        size, crop = values["input_size"], values.get("crop_pct") or DEFAULT_CROP
        if test_size:
            size, crop = values.get("test_input_size") or size, values.get("test_crop_pct") or crop
        interpolation = values.get("interpolation") or DEFAULT_INTERPOLATION
        if size[-1] != size[-2]:
            raise ValueError(f"its images are {size[-2]} × {size[-1]} pixels, and only squares are supported")
        if not 0 < crop <= LARGEST_CROP:
            raise ValueError(f"crop_pct must be above 0 and {LARGEST_CROP:g} at most, not {crop!r}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}")
        fits = [fit for fit, mode in CROP_MODES.items() if mode == values.get("crop_mode")]
        mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        return cls(int(size[-1]), mean, std, float(crop), interpolation, *fits)

    def to_timm(self) -> dict[str, Any]:
        """Return it as fields of timm's pretrained_cfg."""
        return {
            "input_size": [len(self.mean), self.image_size, self.image_size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop,
            "crop_mode": CROP_MODES[self.fit],
            "mean": self.mean,
            "std": self.std,
        }

    def transform(self) -> EvaluationTransform:
        """Return the transform of a decoded image to uint8 pixels, without augmentation."""
        return EvaluationTransform(self.crop, self.interpolation, self.fit, [round(255 * value) for value in self.mean])

    def resizing(self) -> str:
        """Return in words how evaluation makes an image a square."""
        side, target = self.image_size, max(1, math.floor(self.image_size / self.crop))
        sides = {"crop": "shorter side", "pad": "longer side", "stretch": "both sides"}[self.fit]
        cut = f", then the centre of {side} × {side}" if self.fit == "crop" or target > side else ""
        border = ", on a border of the mean's colour" if self.fit == "pad" else ""
        return f"{sides} to {target} pixels ({self.interpolation}){border}{cut}"

    def normalise(self, pixels: Tensor, image_size: int = 0) -> Tensor:
        """Normalise values 0..255 [n, channels, h, w] to float32 [n, channels, image_size, image_size].

        image_size: another side than the model's own, in pixels; 0: its own.
        """
        return rescale(pixels, image_size or self.image_size, *_constants(self.mean, self.std, pixels.device))

    def denormalise(self, images: Tensor) -> Tensor:
        """Turn normalised images [n, channels, h, w] back into uint8 pixels of the same shape."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return ((images * std[:, None, None] + mean[:, None, None]) * 255).round().clamp(0, 255).byte()


@lru_cache(maxsize=32)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what normalises on a device, for `rescale`; cached, so that a batch does not wait for a copy."""
    with torch.inference_mode(False), torch.no_grad():
        return coefficients(torch.tensor(mean, device=device), torch.tensor(std, device=device))


def timm_preprocessing(config: ModelConfig, *, test_size: bool = False) -> Preprocessing | None:
    """Return the preprocessing that timm names for its model; None for other models.

    test_size: as in `Preprocessing.from_timm`. Raises UserError for a tag that timm does not have, and for a model of
    images that are no squares.
    """
    cfg = pretrained_cfg(config.name)
    if cfg is None:
        return None
    try:
        return Preprocessing.from_timm(vars(cfg), test_size=test_size)
    except ValueError as error:
        raise UserError(f"model.name: {config.name}: {error}: choose another model") from None


def _preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that a timm model names itself; None for other models."""
    cfg = getattr(model, "pretrained_cfg", None)
    try:
        return Preprocessing.from_timm(cfg) if isinstance(cfg, Mapping) else None
    except (ValueError, KeyError, TypeError, IndexError):  # whatever it is, it is not timm's
        return None


def input_side(config: DataConfig, data: LabelledSplits, model: Preprocessing | None) -> int:
    """Return the side of the model's input: the config's, else a timm model's for image files, else the data's."""
    of_model = model.image_size if model and data.image_size == 224 else data.image_size
    return config.image_size or of_model


def resized_as(data: DataConfig, model: Preprocessing | None) -> dict[str, Any]:
    """Decide crop, interpolation and fit: the config's, else those of a timm model, else the defaults.

    Where the config asks for pad or stretch, which are there to keep the edges, the crop is 1 unless it is set too.
    """
    keeps_edges = data.fit in ("pad", "stretch")
    default = model or Preprocessing(0, (), ())
    return {
        "crop": data.crop or (1.0 if keeps_edges else default.crop),
        "interpolation": default.interpolation if data.interpolation == "auto" else data.interpolation,
        "fit": default.fit if data.fit == "auto" else data.fit,
    }


def resolve_preprocessing(config: Config, data: LabelledSplits, given: nn.Module | None = None) -> Preprocessing:
    """Decide the preprocessing of a run: the config's, else the timm model's where it fits, else the data's.

    given: a model in place of the config's. Raises UserError.
    """
    model = timm_preprocessing(config.model) if given is None else _preprocessing_of(given)
    side = input_side(config.data, data, model)
    mean, std = config.data.mean, config.data.std
    if not mean and model and len(model.mean) == data.channels:
        mean, std = model.mean, model.std
    mean, std = mean or data.mean, std or data.std
    if len(mean) != data.channels:
        raise UserError(f"data.mean: has {len(mean)} values and the images {data.channels} channels: give one each")
    resizing = resized_as(config.data, model)
    pixels = decoded(data.splits["train"].source)
    if pixels is not None:
        resizing |= _decoded_as(config.data, pixels.shape[2:], side)
    return Preprocessing(side, tuple(mean), tuple(std), **resizing)


def _decoded_as(data: DataConfig, shape: Sequence[int], side: int) -> dict[str, Any]:
    """Return what holds of images in memory: they fill their frame, and are not cropped in training either.

    shape: [height, width]. The device resizes them. Raises UserError for a fit that it does not have.
    """
    height, width = shape
    resizing: dict[str, Any] = {"crop": 1.0}
    if shape[0] != side or height != width:
        resizing["interpolation"] = "bilinear"
    if height != width:
        if data.fit not in ("auto", "stretch"):
            raise UserError(
                f"data.fit: {data.fit} is for image files: images in memory of {width} × {height} pixels are "
                "stretched: leave it out, or make them squares"
            )
        resizing["fit"] = "stretch"
    return resizing

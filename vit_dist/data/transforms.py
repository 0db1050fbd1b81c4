"""Per sample, in workers: a decoded image → uint8 pixels of the model's size."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_dist.config import AugmentConfig

Transform = Callable[[Image.Image, int], Tensor]

_EVALUATED_PART = 0.875


class EvaluationTransform:
    """The short side to image_size / 0.875, then the centre: [3, image_size, image_size], the same for every key."""

    def __init__(self, image_size: int) -> None:
        from torchvision.transforms import v2  # takes a second to import, and images in memory do without

        self.transform = v2.Compose(
            [
                v2.Resize(round(image_size / _EVALUATED_PART), v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(image_size),
                v2.PILToTensor(),
            ]
        )

    def __call__(self, image: Image.Image, of: int) -> Tensor:
        pixels: Tensor = self.transform(image)
        return pixels


class TrainingTransform:
    """A random resized crop (Szegedy et al., 2015) under the sample's key: [3, image_size, image_size]."""

    def __init__(self, image_size: int, crop_min: float) -> None:
        from torchvision.transforms import v2

        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(image_size, (crop_min, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
                v2.PILToTensor(),
            ]
        )

    def __call__(self, image: Image.Image, of: int) -> Tensor:
        seed_generators(of)
        pixels: Tensor = self.transform(image)
        return pixels


def training_transform(config: AugmentConfig, image_size: int) -> Transform:
    """What training does to one decoded image; without augmentation, what evaluation does."""
    return TrainingTransform(image_size, config.crop_min) if config.crop_min else EvaluationTransform(image_size)


def seed_generators(of: int) -> None:
    """Python's, NumPy's and torch's default generators from a key, so that any library's transform is reproducible."""
    random.seed(of)
    np.random.seed(of & 0xFFFFFFFF)
    torch.default_generator.manual_seed(of >> 1)

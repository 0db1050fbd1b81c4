"""Per batch, on the device: uint8 pixels → normalised floats. Draws come as tensors made on the host from keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flip(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Images [n, c, h, w] mirrored left and right where `chosen` [n] is true."""
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


def shift(pixels: Tensor, offsets: Tensor, largest: int) -> Tensor:
    """Images [n, c, h, w] moved down and right by `offsets` int64 [n, 2], -largest … largest; what comes in is 0."""
    windows = F.pad(pixels, [largest] * 4).unfold(2, pixels.shape[2], 1).unfold(3, pixels.shape[3], 1)
    down, right = (largest - offsets).unbind(1)
    return windows[torch.arange(len(pixels), device=pixels.device), :, down, right]


def normalise(pixels: Tensor, image_size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n, c, h, w] → float32 [n, c, image_size, image_size], (value/255 - mean) / std, bilinear if resized."""
    images = pixels.float()
    if images.shape[-1] != image_size or images.shape[-2] != image_size:
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    return torch.addcmul((-mean / std)[:, None, None], images, (1 / (255 * std))[:, None, None])

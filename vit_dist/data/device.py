"""Per batch, on the device: uint8 pixels → normalised floats. Draws come as tensors made on the host from keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flip(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Images [n, c, h, w] mirrored left and right where `chosen` [n] is true."""
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


def shift(pixels: Tensor, offsets: Tensor) -> Tensor:
    """Images [n, c, h, w] moved down and right by `offsets` int64 [n, 2] pixels; what comes in is 0."""
    n, channels, height, width = pixels.shape
    rows = torch.arange(height, device=pixels.device) - offsets[:, :1]
    columns = torch.arange(width, device=pixels.device) - offsets[:, 1:]
    inside = _inside(rows, height)[:, None, :, None] & _inside(columns, width)[:, None, None, :]
    rows = rows.clamp(0, height - 1)[:, None, :, None].expand(n, channels, height, width)
    columns = columns.clamp(0, width - 1)[:, None, None, :].expand(n, channels, height, width)
    return pixels.gather(2, rows).gather(3, columns) * inside


def normalise(pixels: Tensor, image_size: int, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [n, c, h, w] → float32 [n, c, image_size, image_size], (value/255 - mean) / std, bilinear if resized."""
    images = pixels.float()
    if images.shape[-1] != image_size or images.shape[-2] != image_size:
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    return images.mul_(1 / (255 * std)[:, None, None]).sub_((mean / std)[:, None, None])


def _inside(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)

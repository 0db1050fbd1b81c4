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


def warp(pixels: Tensor, maps: Tensor) -> Tensor:
    """Images [n, c, h, w] as floats, seen through affine maps float32 [n, 2, 3], bilinear; what comes in is 0."""
    images = pixels.float()
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normalise(pixels: Tensor, image_size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Values 0 … 255 [n, c, h, w] → float32 [n, c, image_size, image_size], (value/255 - mean) / std.

    Bilinear if resized.
    """
    images = pixels.float()
    if images.shape[-1] != image_size or images.shape[-2] != image_size:
        images = F.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True)
    return torch.addcmul((-mean / std)[:, None, None], images, (1 / (255 * std))[:, None, None])


def erase(images: Tensor, rows: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Images [n, c, h, w] with `colour` [k, c] inside boxes int64 [k, 4] of `rows` int64 [k]."""
    inside = _inside(boxes, images.shape[2], images.shape[3])
    return images.index_copy(0, rows, torch.where(inside, colour[:, :, None, None], images[rows]))


def erase_with_noise(images: Tensor, rows: Tensor, boxes: Tensor, of: Tensor, pixels: int) -> Tensor:
    """Images [n, c, h, w] with standard normal noise inside boxes int64 [k, 4] of `rows` int64 [k], changed in place.

    of: int64 [k], the key of each one's noise. pixels: of all boxes together, which the host knows.
    """
    top, bottom, left, right = boxes.unbind(1)
    wide = right - left
    area = (bottom - top) * wide
    which = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), area, output_size=pixels)
    place = torch.arange(pixels, device=rows.device) - (area.cumsum(0) - area)[which]
    y, x = top[which] + place // wide[which], left[which] + place % wide[which]
    channel = torch.arange(images.shape[1], device=rows.device)
    noise = normal_noise(of[which][:, None], place[:, None] * images.shape[1] + channel)
    return images.index_put_((rows[which][:, None], channel[None], y[:, None], x[:, None]), noise)


def mix(images: Tensor, kept: Tensor, cut: Tensor, boxes: Tensor) -> Tensor:
    """Slots 2k and 2k+1 of images [n, c, h, w] mixed; kept float32, cut bool [n/2], boxes int64 [n/2, 4].

    Each is `kept` of itself and the rest of the other; where `cut`, itself with the other's inside the box.
    """
    both = images.reshape(-1, 2, *images.shape[1:])
    other = both.flip(1)
    part = kept[:, None, None, None, None]
    blended = both * part + other * (1 - part)
    inside = _inside(boxes, images.shape[2], images.shape[3])[:, None]
    pasted = torch.where(inside, other, both)
    return torch.where(cut[:, None, None, None, None], pasted, blended).flatten(0, 1)


def mix_targets(targets: Tensor, classes: int, kept: Tensor) -> Tensor:
    """Class numbers int64 [n] → probabilities float32 [n, classes], mixed like `mix`."""
    both = F.one_hot(targets, classes).float().reshape(-1, 2, classes)
    part = kept[:, None, None]
    return (both * part + both.flip(1) * (1 - part)).flatten(0, 1)


def normal_noise(of: Tensor, count: Tensor) -> Tensor:
    """Standard normal float32 values of keys and counters, int64, broadcast together: SplitMix64, then Φ⁻¹."""
    bits = _shifted(_mixed(of + count * -7046029254386353131), 40)
    # Odd numbers over 2^24, within (-1, 1): float32 holds them all exactly, so none is rounded to an infinity.
    return 1.4142135623730951 * torch.erfinv((2 * (bits >> 1) + 1 - 2**23).float() * 2.0**-23)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in boxes int64 [k, 4]: bool [k, 1, height, width]."""
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(1))
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    tall, wide = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap."""
    values = (values ^ _shifted(values, 30)) * -4658895280553007687
    values = (values ^ _shifted(values, 27)) * -7723592293110705685
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, places: int) -> Tensor:
    """A logical shift to the right."""
    return (values >> places) & ((1 << (64 - places)) - 1)

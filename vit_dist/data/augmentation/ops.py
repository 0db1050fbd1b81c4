"""Operations on a batch on the device: uint8 pixels → normalised floats, from draws made on the host."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vit_dist.data.augmentation.draws import upper_normals


def flip(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the images, uint8 [n, c, h, w], for which `chosen`, bool [n], is true left to right."""
    mirrored, mask = pixels.flip(3), chosen.to(torch.uint8).neg_()[:, None, None, None]  # 255 where it is true
    return mirrored.bitwise_xor_(pixels).bitwise_and_(mask).bitwise_xor_(pixels)  # 15 times as fast as torch.where


def shift(pixels: Tensor, offsets: Tensor, largest: int) -> Tensor:
    """Move images [n, c, h, w] down and right by `offsets` int64 [n, 2], -largest … largest; the gap is 0."""
    windows = F.pad(pixels, [largest] * 4).unfold(2, pixels.shape[2], 1).unfold(3, pixels.shape[3], 1)
    down, right = (largest - offsets).unbind(1)
    return windows[torch.arange(len(pixels), device=pixels.device), :, down, right]


def warp(pixels: Tensor, maps: Tensor) -> Tensor:
    """Sample images [n, c, h, w] through affine maps float32 [n, 2, 3], bilinear, 0 outside; return float32."""
    images = pixels.float()
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def normalise(pixels: Tensor, image_size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32 [n, c, image_size, image_size].

    pixels: 0 … 255, [n, c, h, w], resized by bilinear interpolation. mean, std: [c].
    """
    return rescale(pixels, image_size, *coefficients(mean, std))


def coefficients(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offset and the factor, [c, 1, 1] each, by which `rescale` normalises; mean, std: [c]."""
    return (-mean / std)[:, None, None], (1 / (255 * std))[:, None, None]


def rescale(pixels: Tensor, image_size: int, offset: Tensor, factor: Tensor) -> Tensor:
    """Return offset + pixels · factor as float32 [n, c, image_size, image_size]; see `normalise`."""
    same = pixels.shape[-2:] == (image_size, image_size)
    images = pixels.float() if same else resize(pixels, image_size)
    out = None if pixels.is_floating_point() else images  # nobody else's; fresh memory would cost more than the sums
    return torch.addcmul(offset, images, factor, out=out)


def resize(pixels: Tensor, side: int) -> Tensor:
    """Return images [n, c, h, w], values 0 … 255, as float32 [n, c, side, side]: bilinear, with antialiasing.

    Whole numbers come out the same on every device that has float64: no sum of their products with these weights needs
    more bits than it has, and only the result is rounded.
    """
    kind = torch.float32 if pixels.device.type == "mps" else torch.float64
    down, across = (_resizing(size, side, pixels.device, kind) for size in pixels.shape[2:])
    with torch.autocast(pixels.device.type, enabled=False):
        return (down @ (pixels.to(kind) @ across.mT)).float()


@lru_cache(maxsize=32)
def _resizing(size: int, side: int, device: torch.device, kind: torch.dtype) -> Tensor:
    """Return the matrix [side, size] that resizes a column, made of multiples of 2^-22 whose rows add up to 1."""
    with torch.inference_mode(False):
        basis = torch.eye(size, dtype=torch.float64)[None, None]
        weights = F.interpolate(basis, (side, size), mode="bilinear", antialias=True)[0, 0]
        whole = (weights * 2**22).round()
        whole[torch.arange(side), whole.argmax(1)] += 2**22 - whole.sum(1)
        return (whole / 2**22).to(device, kind)


def erase(images: Tensor, rows: Tensor, boxes: Tensor, colour: Tensor) -> Tensor:
    """Fill boxes int64 [k, 4] in images `rows` int64 [k] of [n, c, h, w] with `colour` [k, c]; return new images."""
    inside = _inside(boxes, images.shape[2], images.shape[3])
    return images.index_copy(0, rows, torch.where(inside, colour[:, :, None, None], images[rows]))


def erase_with_noise(images: Tensor, rows: Tensor, boxes: Tensor, box_keys: Tensor, pixels: int) -> Tensor:
    """Fill boxes int64 [k, 4] in images `rows` int64 [k] of [n, c, h, w] with standard normal noise, in place.

    box_keys: int64 [k], the key of each box's noise. pixels: number in all boxes, known on the host without a wait.
    """
    top, bottom, left, right = boxes.unbind(1)
    wide = right - left
    area = (bottom - top) * wide
    box = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), area, output_size=pixels)
    place = torch.arange(pixels, device=rows.device) - (area.cumsum(0) - area)[box]
    y, x = top[box] + place // wide[box], left[box] + place % wide[box]
    channel = torch.arange(images.shape[1], device=rows.device)
    noise = normal_noise(box_keys[box][:, None], place[:, None] * images.shape[1] + channel)
    return images.index_put_((rows[box][:, None], channel[None], y[:, None], x[:, None]), noise)


def mix(images: Tensor, kept: Tensor, cut: Tensor, boxes: Tensor) -> Tensor:
    """Mix slots 2k and 2k+1 of images [n, c, h, w]; kept float32, cut bool [n/2], boxes int64 [n/2, 4].

    Each becomes `kept` of itself plus the rest of the other; if `cut`, itself with the other's pixels in the box.
    """
    both = images.reshape(-1, 2, *images.shape[1:])
    other = both.flip(1)
    part = kept[:, None, None, None, None]
    blended = both * part + other * (1 - part)
    inside = _inside(boxes, images.shape[2], images.shape[3])[:, None]
    pasted = torch.where(inside, other, both)
    return torch.where(cut[:, None, None, None, None], pasted, blended).flatten(0, 1)


def mix_targets(targets: Tensor, classes: int, kept: Tensor) -> Tensor:
    """Turn class numbers int64 [n] into probabilities float32 [n, classes], mixed as `mix` mixes the images."""
    both = F.one_hot(targets, classes).float().reshape(-1, 2, classes)
    part = kept[:, None, None]
    return (both * part + both.flip(1) * (1 - part)).flatten(0, 1)


def normal_noise(keys: Tensor, count: Tensor) -> Tensor:
    """Return standard normal float32 values from int64 keys and counters, broadcast: SplitMix64, then Φ⁻¹."""
    return normal_of(_shifted(_mixed(keys + count * -7046029254386353131), 41))


def normal_of(bits: Tensor) -> Tensor:
    """Return Φ⁻¹((bits + ½) / 2²³) as float32, the same on every device, of int64 from 0 to 2²³ - 1."""
    upper = bits - 2**22
    below = upper >> 63  # -1 in the lower half, which mirrors the upper
    return _normal_values(bits.device)[upper ^ below] * (1 + 2 * below)


@lru_cache(maxsize=8)
def _normal_values(device: torch.device) -> Tensor:
    """Return the upper half of the values of `normal_of`, float32 [2²²], made on the host: 16 MiB."""
    with torch.inference_mode(False):
        return torch.from_numpy(upper_normals(2**22)).to(device)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels are inside boxes int64 [k, 4]: bool [k, 1, height, width]."""
    top, bottom, left, right = (edge[:, None] for edge in boxes.unbind(1))
    y = torch.arange(height, device=boxes.device)
    x = torch.arange(width, device=boxes.device)
    tall, wide = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def _mixed(values: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64, whose products wrap."""
    values = (values ^ _shifted(values, 30)) * -4658895280553007687
    values = (values ^ _shifted(values, 27)) * -7723592293110705685
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, places: int) -> Tensor:
    """Shift to the right by `places` bits, filling with zeros."""
    return (values >> places) & ((1 << (64 - places)) - 1)

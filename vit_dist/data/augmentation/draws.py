"""The random draws of augmentation, made on the host from keys: the same on every device and for any split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from vit_dist.config.fields import AugmentConfig
from vit_dist.plan.keys import Ints, Keys, Purpose, keys, uniform

Floats = NDArray[np.float32]
# Bounds of an erased rectangle, as in timm: its part of the area, and the logarithm of its aspect ratio.
_ERASED_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ERASING_ATTEMPTS = 10


@dataclass(frozen=True)
class Erasures:
    """Rectangles to erase: the rows of the batch int64 [k], their boxes int64 [k, 4] (top, bottom, left, right).

    colour: float32 [k, channels], standard normal draws, 0 in mode const. noise: keys of each box's pixels, int64 [k].
    """

    rows: Ints
    boxes: Ints
    colour: Floats
    noise: Ints


@dataclass(frozen=True)
class Mixes:
    """The mixing of slots 2k and 2k+1: each keeps the part `kept` float32 [pairs] of itself, 1 for an unmixed pair.

    cut: bool [pairs], true for CutMix, which pastes the other's pixels inside boxes int64 [pairs, 4] (top, bottom,
    left, right).
    """

    kept: Floats
    cut: NDArray[np.bool_]
    boxes: Ints


def affine(config: AugmentConfig, seed: int, epoch: Ints, index: Ints, side: tuple[int, int]) -> Floats:
    """Return one map for rotation, scaling, translation, shift and flip: float32 [n, 2, 3].

    It maps the output's coordinates (-1 … 1, x first) to the input's, as `affine_grid` takes it. Angle, size and
    translation are uniform within their bounds, as in torchvision's RandomAffine.
    """
    height, width = side
    draws = uniform(keys(seed, Purpose.AFFINE, epoch, index), 4).astype(np.float64) * 2 - 1
    angle = np.deg2rad(config.rotate * draws[:, 0])
    size = 1 + config.scale * draws[:, 1]
    moved = config.translate * draws[:, 2:]
    if config.shift:
        moved = moved + shifts(config, seed, epoch, index)[:, ::-1] / np.array([width, height])
    mirror = np.where(flips(config, seed, epoch, index), -1.0, 1.0)
    # A rotation in pixels is not one in -1 … 1 unless the image is square: correct it by the ratio of the sides.
    ratio = height / width
    turned = np.empty((len(index), 2, 2))
    turned[:, 0, 0] = turned[:, 1, 1] = np.cos(angle) / size
    turned[:, 0, 1] = np.sin(angle) / size * ratio
    turned[:, 1, 0] = -np.sin(angle) / size / ratio
    offset = -np.einsum("nij,nj->ni", turned, 2 * moved)
    turned[:, 0] *= mirror[:, None]
    offset[:, 0] *= mirror
    return np.concatenate([turned, offset[:, :, None]], axis=2).astype(np.float32)


def flips(config: AugmentConfig, seed: int, epoch: Ints, index: Ints) -> NDArray[np.bool_]:
    """Return which samples to mirror, bool [n]."""
    chosen: NDArray[np.bool_] = uniform(keys(seed, Purpose.FLIP, epoch, index)) < config.flip
    return chosen


def shifts(config: AugmentConfig, seed: int, epoch: Ints, index: Ints) -> Ints:
    """Return offsets in pixels, down and right: int64 [n, 2], each within ±shift."""
    span = 2 * config.shift + 1
    return np.floor(uniform(keys(seed, Purpose.SHIFT, epoch, index), 2) * span).astype(np.int64) - config.shift


def erasures(config: AugmentConfig, sample_keys: Keys, shape: tuple[int, int, int]) -> Erasures:
    """Draw random erasing (Zhong et al., 2020) as timm does, for keys [n] of images [channels, height, width].

    The first of ten rectangles that fits is used.
    """
    channels, height, width = shape
    draws = uniform(sample_keys, 1 + 4 * _ERASING_ATTEMPTS).astype(np.float64)
    tries = draws[:, 1:].reshape(-1, _ERASING_ATTEMPTS, 4)
    area = (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * tries[..., 0]) * height * width
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * tries[..., 1])
    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    rows = np.flatnonzero((draws[:, 0] < config.erasing) & fits.any(1))
    first = fits[rows].argmax(1)
    tall, wide = tall[rows, first], wide[rows, first]
    top = np.floor(tries[rows, first, 2] * (height - tall + 1))
    left = np.floor(tries[rows, first, 3] * (width - wide + 1))
    boxes = np.stack([top, top + tall, left, left + wide], axis=1).astype(np.int64)
    colour = np.zeros((len(rows), channels), np.float32)
    chosen = sample_keys[rows]
    if config.erasing_mode == "rand":
        colour = ndtri(uniform(keys(chosen, 1), channels).astype(np.float64) + 2.0**-25).astype(np.float32)
    return Erasures(rows, boxes, colour, keys(chosen, 2).view(np.int64))


def mixes(
    config: AugmentConfig, seed: int, position: int, first_pair: int, weight: Floats, side: tuple[int, int]
) -> Mixes:
    """Draw mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) for a micro-batch's pairs, as timm does by pair.

    first_pair: number of its first pair in the global batch at `position`. weight: weights of its slots, float32 [n];
    a pair with a filler is not mixed.
    """
    height, width = side
    pairs = np.arange(first_pair, first_pair + len(weight) // 2, dtype=np.int64)
    draws = uniform(keys(seed, Purpose.MIX, position, pairs), 5).astype(np.float64)
    whole = weight.reshape(-1, 2).all(1) & (draws[:, 0] < config.mix_prob)
    cut = whole & (draws[:, 1] < config.mix_switch if config.mixup and config.cutmix else bool(config.cutmix))
    alpha = np.where(cut, config.cutmix or 1.0, config.mixup or 1.0)
    kept = np.where(whole, betaincinv(alpha, alpha, draws[:, 2]), 1.0)
    root = np.sqrt(1 - kept)
    tall, wide = np.floor(height * root), np.floor(width * root)
    middle_y, middle_x = np.floor(draws[:, 3] * height), np.floor(draws[:, 4] * width)
    edges = [
        np.clip(middle_y - tall // 2, 0, height),
        np.clip(middle_y + (tall + 1) // 2, 0, height),
        np.clip(middle_x - wide // 2, 0, width),
        np.clip(middle_x + (wide + 1) // 2, 0, width),
    ]
    boxes = np.stack(edges, axis=1).astype(np.int64) * cut[:, None]
    part = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width)
    return Mixes(np.where(cut, 1 - part, kept).astype(np.float32), cut, boxes)


def upper_normals(count: int) -> Floats:
    """Return the standard normal's quantiles in the middle of `count` equal parts of ½ … 1: float32 [count]."""
    rest = (np.arange(count, 0, -1) - 0.5) / (2 * count)
    values: Floats = -ndtri(rest).astype(np.float32)
    return values

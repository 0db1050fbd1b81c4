"""Augment a batch on the device: the draws, made on the host from keys, and the operations that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.draws import Floats, affine, erasures, flips, mixes, shifts
from vit_dist.data.augmentation.ops import erase, erase_with_noise, flip, mix, mix_targets, shift, warp
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.plan.keys import Ints, Purpose, keys

Draws = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class BatchAugmentation:
    """The augmentations that run on the device, a batch at a time.

    Draws are arrays by name, which go to the device together; what is not drawn is not done. seed: the run's. classes:
    number of classes, for mixed targets.
    """

    config: AugmentConfig
    preprocessing: Preprocessing
    seed: int
    classes: int

    def draw(self, epoch: Ints, index: Ints, stored: tuple[int, int], side: int) -> Draws:
        """Draw what `images` does to the samples with these keys, int64 [n].

        stored: height and width of the pixels as they are read. side: of the images that are made of them.
        """
        config, seed = self.config, self.seed
        draws: Draws = {}
        if config.rotate or config.translate or config.scale:
            draws["affine"] = affine(config, seed, epoch, index, stored)
        else:
            if config.shift:
                draws["shifts"] = shifts(config, seed, epoch, index)
            if config.flip:
                draws["flips"] = flips(config, seed, epoch, index)
        if config.erasing:
            shape = len(self.preprocessing.mean), side, side
            drawn = erasures(config, keys(seed, Purpose.ERASE, epoch, index), shape)
            if len(drawn.rows):
                draws |= {"erased_rows": drawn.rows, "erased_boxes": drawn.boxes}
                draws |= {"erased_noise": drawn.noise} if config.erasing_mode == "pixel" else {}
                draws |= {"erased_colour": drawn.colour} if config.erasing_mode != "pixel" else {}
        return draws

    def images(self, pixels: Tensor, draws: Mapping[str, Tensor], side: int, erased_pixels: int = 0) -> Tensor:
        """Move, normalise and erase uint8 pixels [n, channels, h, w]; return float32 [n, channels, side, side].

        draws: on the device. erased_pixels: in all boxes together, for noise in each.
        """
        if "affine" in draws:
            pixels = warp(pixels, draws["affine"])
        if "shifts" in draws:
            pixels = shift(pixels, draws["shifts"], self.config.shift)
        if "flips" in draws:
            pixels = flip(pixels, draws["flips"])
        images = self.preprocessing.normalise(pixels, side)
        if "erased_noise" in draws:
            boxes = draws["erased_rows"], draws["erased_boxes"]
            return erase_with_noise(images, *boxes, draws["erased_noise"], erased_pixels)
        if "erased_rows" in draws:
            return erase(images, draws["erased_rows"], draws["erased_boxes"], draws["erased_colour"])
        return images

    def draw_mixes(self, weights: Floats, position: int, first_pair: int, side: int) -> Draws:
        """Draw mixup and CutMix of slots 2k and 2k+1, if set.

        weights: of the slots. first_pair: number of the first pair in the global batch at `position`.
        """
        if not (self.config.mixup or self.config.cutmix):
            return {}
        drawn = mixes(self.config, self.seed, position, first_pair, weights, (side, side))
        return {"mix_kept": drawn.kept, "mix_cut": drawn.cut, "mix_boxes": drawn.boxes}

    def mix(self, images: Tensor, targets: Tensor, draws: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mix images and targets as drawn, if it is; return both.

        targets: classes int64 [n]; where mixing is on, the result is probabilities float32 [n, classes].
        """
        if "mix_kept" not in draws:
            return images, targets
        kept = draws["mix_kept"]
        return mix(images, kept, draws["mix_cut"], draws["mix_boxes"]), mix_targets(targets, self.classes, kept)


def pixels_in(boxes: Ints) -> int:
    """Return the number of pixels in boxes int64 [k, 4] (top, bottom, left, right), all together."""
    top, bottom, left, right = boxes.T
    return int(((bottom - top) * (right - left)).sum())

"""Augment a batch on the device: the draws, made on the host from keys, tied to the operations that use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.draws import Floats, affine, erasures, flips, mixes, shifts
from vit_dist.data.augmentation.ops import erase, erase_with_noise, flip, mix, mix_targets, shift, warp
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.plan.keys import Ints, Purpose, keys


@dataclass(frozen=True)
class BatchAugmentation:
    """The augmentations that run on the device, a batch at a time.

    seed: the run's. classes: number of classes, for mixed targets. to_device: copies a tensor to the device.
    """

    config: AugmentConfig
    preprocessing: Preprocessing
    seed: int
    classes: int
    to_device: Callable[[Tensor], Tensor]

    def images(self, pixels: Tensor, epoch: Ints, index: Ints, side: int) -> Tensor:
        """Move, normalise and erase uint8 pixels [n, channels, h, w]; return float32 [n, channels, side, side].

        epoch, index: int64 [n]; with the seed they are the key of each sample's draws.
        """
        config, seed = self.config, self.seed
        if config.rotate or config.translate or config.scale:
            maps = affine(config, seed, epoch, index, (pixels.shape[2], pixels.shape[3]))
            pixels = warp(pixels, self._copy(maps))
        else:
            if config.shift:
                pixels = shift(pixels, self._copy(shifts(config, seed, epoch, index)), config.shift)
            if config.flip:
                pixels = flip(pixels, self._copy(flips(config, seed, epoch, index)))
        images = self.preprocessing.normalise(pixels, side)
        return self._erase(images, epoch, index) if config.erasing else images

    def mix(
        self, images: Tensor, targets: Tensor, weights: Floats, position: int, first_pair: int
    ) -> tuple[Tensor, Tensor]:
        """Mix slots 2k and 2k+1 by mixup and CutMix, if set; return images and targets.

        targets: classes int64 [n]; where mixing is on, the result is probabilities float32 [n, classes].
        weights: of the slots, on the host. first_pair: number of the first pair in the global batch at `position`.
        """
        if not (self.config.mixup or self.config.cutmix):
            return images, targets
        side = (images.shape[2], images.shape[3])
        drawn = mixes(self.config, self.seed, position, first_pair, weights, side)
        kept = self._copy(drawn.kept)
        mixed = mix(images, kept, self._copy(drawn.cut), self._copy(drawn.boxes))
        return mixed, mix_targets(targets, self.classes, kept)

    def _erase(self, images: Tensor, epoch: Ints, index: Ints) -> Tensor:
        channels, height, width = images.shape[1:]
        drawn = erasures(self.config, keys(self.seed, Purpose.ERASE, epoch, index), (channels, height, width))
        if not len(drawn.rows):
            return images
        rows, boxes = self._copy(drawn.rows), self._copy(drawn.boxes)
        if self.config.erasing_mode == "pixel":
            return erase_with_noise(images, rows, boxes, self._copy(drawn.noise), drawn.pixels)
        return erase(images, rows, boxes, self._copy(drawn.colour))

    def _copy(self, array: NDArray[Any]) -> Tensor:
        return self.to_device(torch.from_numpy(array))

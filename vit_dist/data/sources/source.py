"""Where images come from. Every source is random-access: an index gives an image and its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints


@dataclass(frozen=True)
class MemorySource:
    """A small split held as uint8 pixels, [length, channels, height, width]."""

    pixels: NDArray[np.uint8]
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """An image, grey or RGB by its channels."""
        pixels = self.pixels[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True)
class FileSource:
    """A split of image files, decoded when asked for. mode: Pillow's, RGB or L (grey)."""

    paths: Sequence[Path]
    labels: Ints
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The decoded image in its mode. Raises UserError naming the file where it cannot be decoded."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return eight_bits(image, path).convert(self.mode)
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}): mend or remove the file") from None


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """An image of 16 bits scaled to 8, which Pillow would cut off; others as they are. Raises UserError for floats."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits")
    return image

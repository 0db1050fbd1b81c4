"""Image files: decode them with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints


@dataclass(frozen=True)
class FileSource:
    """A source of image files, decoded when they are read. mode: Pillow's, RGB or L (grey)."""

    paths: Sequence[Path]
    labels: Ints
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image in the source's mode. Raises UserError, naming the file, if it cannot be decoded."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return eight_bits(image, path).convert(self.mode)
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}): mend or remove the file") from None


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale an image of 16 bits to 8, where Pillow would clip it; return others as they are.

    Raises UserError for 32 bits.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits")
    return image

"""Transforms of one sample, run in workers: decoded image → uint8 pixels, reproducible under the sample's key."""

from __future__ import annotations

import contextlib
import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_dist.config.fields import AugmentConfig
from vit_dist.config.values import import_function
from vit_dist.data.sources.crop import Box, OpenedCrop, decode_crop, open_crop, random_box, resized_part
from vit_dist.data.sources.decode import EncodedImage
from vit_dist.errors import UserError

if TYPE_CHECKING:
    from torchvision.transforms.v2 import InterpolationMode

_TIMM = ("rand", "augmix", "original", "v0", "3a")
# An image is resized whole though its centre alone is needed, unless it is elongated (long side / short side) and would
# have more than so many pixels, in 50 MB.
_ELONGATED, _HUGE = 16, 2**24
_in_worker = False


class Transform(Protocol):
    """(image, key, side in pixels) → uint8 [channels, height, width]. sized: whether those become the side."""

    sized: bool

    def __call__(self, image: Image.Image, key: int, side: int) -> Tensor: ...


class EvaluationTransform:
    """Make an image a square as timm's evaluation does, to the pixel: [channels, side, side], whatever the key.

    The target is floor(side / crop) pixels long; the centre of side × side is cut out of what was resized to it.

    fit: crop resizes the shorter side to the target (timm's crop_mode center); stretch both sides (squash); pad the
    longer one, with a border of one colour where there is no image (border). interpolation: Pillow's. border: uint8,
    one value per channel.
    """

    sized = True

    def __init__(
        self, crop: float, interpolation: str = "bicubic", fit: str = "crop", border: Sequence[int] = ()
    ) -> None:
        import torchvision.transforms.v2  # noqa: F401  takes a second: now, rather than in every worker

        self.crop = crop
        self.interpolation = interpolation
        self.fit = fit
        self.border = tuple(border)

    def __call__(self, image: Image.Image, key: int, side: int) -> Tensor:
        from torchvision.transforms import v2

        target = max(1, math.floor(side / self.crop))
        mode = v2.InterpolationMode(self.interpolation)
        if self.fit == "pad":
            square = _centred(_longer_side(image, target, mode), side, self.border)
        elif self.fit == "crop" and max(image.size) > max(_ELONGATED, _HUGE / target**2) * min(image.size):
            square = _resized_centre(image, target, side, Image.Resampling[self.interpolation.upper()])
        else:
            resized = v2.functional.resize(image, [target] if self.fit == "crop" else [target, target], mode)
            square = v2.functional.center_crop(resized, [side, side])
        pixels: Tensor = v2.functional.pil_to_tensor(square)
        return pixels


def _longer_side(image: Image.Image, target: int, mode: InterpolationMode) -> Image.Image:
    """Return an image whose longer side was resized to `target` pixels, as timm's ResizeKeepRatio rounds."""
    from torchvision.transforms import v2

    ratio = max(length / target for length in image.size)
    width, height = (max(1, round(length / ratio)) for length in image.size)
    resized: Image.Image = v2.functional.resize(image, [height, width], mode)
    return resized


def _centred(image: Image.Image, side: int, border: tuple[int, ...]) -> Image.Image:
    """Return the centre of side × side pixels, with a border of one colour where the image is smaller."""
    offsets = [
        (side - length) // 2 if length <= side else -round((length - side) / 2)  # as timm's CenterCropOrPad
        for length in image.size
    ]
    square = Image.new(image.mode, (side, side), border if len(border) > 1 else (*border, 0)[0])
    square.paste(image, (offsets[0], offsets[1]))
    return square


def _resized_centre(image: Image.Image, shorter: int, side: int, resample: Image.Resampling) -> Image.Image:
    """Return the centre of side × side pixels of the resized image, without resizing the rest, which would be huge.

    The same as the two steps one after the other, but for the rounding of coordinates to 24 bits. Black where the
    resized image is smaller.
    """
    box: list[float] = []
    kept: list[int] = []
    for length in image.size:
        resized = shorter if length == min(image.size) else int(shorter * length / min(image.size))
        kept.append(min(side, resized))
        start = round((resized - kept[-1]) / 2)
        box += [start * length / resized, (start + kept[-1]) * length / resized]
    left, right, top, bottom = box
    return _centred(image.resize((kept[0], kept[1]), resample, box=(left, top, right, bottom)), side, ())


class Crop(NamedTuple):
    """A decoded random crop, uint8 [channels, side, side], and the width and height of its image, upright."""

    pixels: Tensor
    size: tuple[int, int]


class TrainingTransform:
    """Random resized crop (Szegedy et al., 2015), auto-augmentation, colour jitter and the user's own, by a key.

    plain: the transform used if there is no random crop; None for decoded pixels, which then keep their size.
    Raises UserError.
    """

    def __init__(self, config: AugmentConfig, mean: Sequence[float], side: int, plain: Transform | None) -> None:
        from torchvision.transforms import v2

        self.crop_min = config.crop_min
        self.plain = plain
        self.sized = bool(config.crop_min) or plain is not None
        self.steps: list[Callable[[Any], Any]] = []
        if config.auto:
            self.steps.append(_auto(config.auto, mean, side))
        if config.color_jitter:
            self.steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
        if config.transform:
            self.steps.append(import_function(config.transform, "augment.transform"))

    def __call__(self, image: Image.Image, key: int, side: int) -> Tensor:
        """Transform a decoded image. Raises UserError."""
        with seeded(key):
            if self.crop_min:
                pixels = resized_part(image, self._draw(*image.size), side)
                return self._stepped(to_image(pixels), side) if self.steps else pixels
            whole = image if self.plain is None else to_image(self.plain(image, key, side))
            return self._stepped(whole, side)

    def open(self, encoded: EncodedImage, key: int, side: int) -> OpenedCrop:
        """Read the header of an image, and draw its random crop if that says enough. Raises ImageError."""
        with seeded(key):
            return open_crop(encoded, self._draw, side)

    def decode(self, encoded: EncodedImage, opened: OpenedCrop, key: int, side: int) -> Tensor:
        """Decode and transform the random crop of an image: as of the decoded image, within rounding.

        opened: what `open` returned for it. Raises ImageError where it cannot be decoded, UserError.
        """
        return self.augment(self.crop(encoded, opened, key, side), key, side)

    def crop(self, encoded: EncodedImage, opened: OpenedCrop, key: int, side: int) -> Crop:
        """Decode the random crop of an image, as `decode` does. Raises ImageError."""
        if opened.box is not None:  # nothing is left to draw
            return Crop(decode_crop(encoded, opened, self._draw, side, alone=_in_worker), opened.size)
        sizes = []

        def draw(width: int, height: int) -> Box:
            sizes.append((width, height))
            return self._draw(width, height)

        with seeded(key):
            pixels = decode_crop(encoded, opened, draw, side, alone=_in_worker)
        return Crop(pixels, sizes[0])

    def augment(self, crop: Crop, key: int, side: int) -> Tensor:
        """Transform a crop, as `decode` does. Raises UserError."""
        if not self.steps:
            return crop.pixels
        with seeded(key):
            self._draw(*crop.size)  # the steps draw what comes after it
            return self._stepped(to_image(crop.pixels), side)

    def _draw(self, width: int, height: int) -> Box:
        return random_box(self.crop_min, width, height)

    def _stepped(self, image: Any, side: int) -> Tensor:
        """Return the pixels of a crop after the steps. Raises UserError."""
        for step in self.steps:
            image = step(image)
        if not isinstance(image, Image.Image) or (self.sized and image.size != (side, side)):
            actual = f"{image.size[0]} × {image.size[1]}" if isinstance(image, Image.Image) else type(image).__name__
            raise UserError(f"augment.transform: must return a PIL image of the size of its input, not {actual}")
        return to_pixels(image)


def to_image(pixels: Tensor) -> Image.Image:
    """Return pixels, uint8 [1 or 3, height, width], as an image in mode L or RGB, which Pillow makes of its bands.

    torchvision's `to_pil_image` first puts the bands side by side, which takes seven times as long.
    """
    bands = [Image.fromarray(band) for band in np.ascontiguousarray(pixels.numpy())]
    return bands[0] if len(bands) == 1 else Image.merge("RGB", bands)


def to_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an image, uint8 [channels, height, width], with each channel by itself in memory."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))


def training_transform(
    config: AugmentConfig, mean: Sequence[float], side: int, plain: Transform | None
) -> Transform | None:
    """Build the transform of one decoded image; None if decoded pixels need none. Raises UserError."""
    if config.crop_min or config.auto or config.color_jitter or config.transform:
        return TrainingTransform(config, mean, side, plain)
    return plain


def enter_worker() -> None:
    """Say that this process does nothing but read data, so that generators need not be restored.

    Nor need what it was started with be looked through for garbage, which took a twentieth of the time.
    """
    global _in_worker
    _in_worker = True
    gc.freeze()


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's default generators from a key, so that any transform is reproducible.

    Their states are restored afterwards, except in a worker, where nothing else draws from them.
    """
    states: Any = None
    if not _in_worker:
        states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key >> 1)
    try:
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])


def _auto(name: str, mean: Sequence[float], side: int) -> Callable[[Any], Any]:
    """Build an automatic augmentation by timm's string, or torchvision's name. Raises UserError."""
    from torchvision.transforms import v2

    if name == "trivial":
        return v2.TrivialAugmentWide()  # type: ignore[no-any-return]
    policies = {f"autoaugment-{policy.value}": policy for policy in v2.AutoAugmentPolicy}
    if name in policies:
        return v2.AutoAugment(policies[name])  # type: ignore[no-any-return]
    known = ", ".join(["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original", "v0", "3a", "trivial", *policies])
    if not name.startswith(_TIMM):
        raise UserError(f"augment.auto: no augmentation {name}; known: {known} (the first five as timm writes them)")
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    # The settings of timm's own transforms_imagenet_train.
    colour = tuple(min(255, round(255 * value)) for value in mean)
    settings: dict[str, Any] = {
        "translate_const": int(side * 0.45),
        "img_mean": colour if len(colour) > 1 else colour[0],
        "interpolation": Image.Resampling.BICUBIC,
    }
    make = auto_augment_transform
    if name.startswith("rand"):
        make = rand_augment_transform
    elif name.startswith("augmix"):
        make, settings["translate_pct"] = augment_and_mix_transform, 0.3
    try:
        return make(name, settings)  # type: ignore[no-any-return]
    except (AssertionError, ValueError, KeyError, IndexError):
        raise UserError(f"augment.auto: timm does not understand {name}: write it as {known}") from None

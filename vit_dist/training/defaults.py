"""Choose the fields of `run.auto` from the data set: docs/defaults.md has the rule in a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vit_dist.config.catalog import is_timm
from vit_dist.config.config import Config
from vit_dist.config.values import Length
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.sources.survey import survey

# Numbers of training images at which the rule changes.
_TINY, SMALL, _LARGE = 2_000, 10_000, 200_000
FEWEST_UPDATES = 3_000
_FEWEST_FINE_TUNING = 500
_EVALUATIONS = 40
_FEWEST_CHARACTERS = 5
# Fields that have a meaning for classes alone.
_OF_CLASSES = ("augment.mixup", "loss.label_smoothing")
_DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


@dataclass(frozen=True)
class Choice:
    """The value that a field was given, and why. JSON can hold it."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Facts:
    """Hold what the rule knows of a data set.

    images, val: of train and val. side: the median of the images' shorter sides, in pixels, where it was measured.
    decoded: whether they are pixels in memory. characters: whether the classes are named like digits or letters.
    sided: whether a class is named after left or right.
    """

    images: int
    val: int
    side: int
    measured: bool
    decoded: bool
    characters: bool
    sided: bool

    @classmethod
    def of(cls, data: LabelledSplits) -> Facts:
        """Take the facts from a data set, and from the headers of at most 500 of its files."""
        sizes = survey(data).sizes
        names = [name.strip().lower() for name in data.classes]
        return cls(
            images=len(data.splits["train"]),
            val=len(data.splits.get("val", ())),
            side=sizes.median if sizes else data.image_size,
            measured=sizes is not None,
            decoded=decoded(data.splits["train"].source) is not None,
            characters=_are_characters(names),
            sided=any({"left", "right"} & set(re.split(r"[^a-z]+", name)) for name in names),
        )

    @property
    def size_text(self) -> str:
        """Return the number of training images in words."""
        return f"{self.images:,} training images"


def _are_characters(names: list[str]) -> bool:
    """Return whether classes are named like digits or letters, and not just counted: 0 and 1, or a and b."""
    counted = len(names) < _FEWEST_CHARACTERS and any(
        sorted(names) == [chr(ord(first) + number) for number in range(len(names))] for first in "01a"
    )
    return not counted and all(re.fullmatch(r"\d{1,2}|[a-z]", name) or name in _DIGITS for name in names)


def choose_defaults(config: Config, data: LabelledSplits) -> tuple[Config, list[Choice]]:
    """Return the config with the fields of `run.auto` chosen for this data, and the choices.

    The rule reads the config and the data alone, never the machine. A field that it leaves as it is, since the model
    decides it, is no choice. What follows from another field follows from its value in the config, whoever set it.
    """
    return choose(config, Facts.of(data)) if config.run.auto else (config, [])


def choose(config: Config, facts: Facts) -> tuple[Config, list[Choice]]:
    """Return the config with the fields of `run.auto` chosen for a data set of these facts, and the choices."""
    choices: list[Choice] = []
    for rule in (_model, _images, _batch, _rate, _duration, _augmentation, _evaluation):
        made = [choice for choice in rule(config, facts) if choice.field in config.run.auto]
        if config.contrastive:
            made = [choice for choice in made if choice.field not in _OF_CLASSES]
        config = _with(config, made)
        choices += made
    return replace(config, run=replace(config.run, auto=())), choices


def _with(config: Config, choices: list[Choice]) -> Config:
    """Return the config with the choices' values."""
    values = config.to_dict()
    for choice in choices:
        section, _, name = choice.field.partition(".")
        values[section][name] = choice.value
    return Config.from_dict(values)


def _ours(config: Config) -> bool:
    """Return whether the model is our ViT, from scratch."""
    return not (config.model.pretrained or is_timm(config.model.name) or ":" in config.model.name)


def _model(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the size of the model from the number of images: a large one learns a small set by heart, slowly."""
    if config.model.pretrained or "model.name" not in config.run.auto:
        return
    if facts.images >= _LARGE:
        yield Choice("model.name", "vit_small", f"from scratch on {facts.size_text}")
        return
    yield Choice("model.name", "vit_tiny", f"from scratch on {facts.size_text}")
    if facts.images < SMALL:
        reason = f"narrow and not deep, for {facts.size_text}"
        fitting, depth = (64, 4) if facts.images < _TINY else (96, 6)
        own_heads = config.model.heads or 1  # where the person set them, the width is a multiple
        width = config.model.width or fitting // own_heads * own_heads or own_heads
        heads = next(heads for heads in range(min(4, max(1, width // 16)), 0, -1) if width % heads == 0)
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            yield Choice(f"model.{name}", value, reason)


def _images(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the side of the input, the patches, and the centre crop of evaluation, from the files' own sides."""
    if not _ours(config):
        return
    if facts.measured and facts.side <= 64:
        yield Choice("data.crop", 1.0, f"images of {facts.side} pixels have no margin to cut off")
    side = config.data.image_size
    if "data.image_size" in config.run.auto:
        side, reason = _side(facts)
        if "model.patch_size" not in config.run.auto:  # the person's own: the side follows
            stride = config.model.patch_stride or config.model.patch_size
            side = max(1, round(side / stride)) * stride
        yield Choice("data.image_size", side, reason)
    side = side or facts.side
    patch = _patch(side, across=4 if facts.characters and side <= 40 else 8)
    if config.model.patch_stride is None and side % patch == 0:
        yield Choice("model.patch_size", patch, f"{(side // patch) ** 2} patches of an image of {side} pixels")


def _side(facts: Facts) -> tuple[int, str]:
    """Return the side of the input in pixels for training from scratch, and why."""
    own = facts.side
    if facts.decoded or own < 4:
        return own, "the images' own"
    if own <= 64:
        step = 4 if own <= 40 else 8  # so that patches fit
        return own // step * step, _own_text(own // step * step, own)
    best = next(side for side, images in ((224, _LARGE // 2), (160, SMALL), (128, 0)) if facts.images >= images)
    side = next((side for side in (64, 128, 160) if own <= side * 1.25 and side <= best), best)
    if own <= side * 1.25:
        return side, _own_text(side, own)
    return side, f"less than the images' own {own}: faster, and enough for {facts.size_text}"


def _own_text(side: int, own: int) -> str:
    return "the images' own" if side == own else f"close to the images' own {own}"


def _patch(side: int, across: int) -> int:
    """Return the side of a patch, a divisor of the image's: about `across` beside each other, 16 pixels at most."""
    wanted = min(16.0, side / across)
    divisors = [patch for patch in range(1, 17) if side % patch == 0]
    nearest = min(divisors, key=lambda patch: (abs(math.log(patch / wanted)), patch))
    return nearest if nearest >= wanted / 2 else 16


def batch_size(images: int, most: int = 1024) -> int:
    """Return the batch for a set: a power of two that grows with its root, at most a quarter of it, at least 2."""
    return _power_of_two(min(1.5 * math.sqrt(images), images / 4, most))


def _batch(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the batch, and micro-batches that fit into a small memory."""
    size = batch_size(facts.images, 256 if config.model.pretrained else 1024)
    yield Choice("batch.global_size", size, f"{facts.size_text}: {facts.images // size:,} updates an epoch")
    if "batch.global_size" not in config.run.auto:
        size = config.batch.global_size
    large = not _ours(config) or config.model.name not in ("vit_tiny", "vit_small")
    micro = min(32 if large else 128, size + size % 2)
    yield Choice("batch.micro_size", micro, "fits into a small memory; changes no result")


def _power_of_two(number: float) -> int:
    """Return the largest power of two up to `number`, at least 2."""
    exponent = max(1, math.floor(math.log2(max(number, 1))))
    return int(2**exponent)


def _rate(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the learning rate from width and batch, as the square root of the batch up to a peak; weight decay."""
    size = config.batch.global_size
    if config.model.linear_probe:
        yield Choice("optimizer.lr", 1e-3, "a linear layer takes a high rate")
    elif config.model.pretrained:
        yield Choice("optimizer.lr", _rounded(5e-4 * math.sqrt(size / 128)), f"5e-4 at 128 samples, here {size}")
    else:
        width = (config.model.width or 192) if config.model.name == "vit_tiny" else 192
        peak = 1e-3 * max(1, 192 / width)
        reason = f"for {width} wide blocks and {size} samples an update"
        yield Choice("optimizer.lr", _rounded(peak * min(1, math.sqrt(size / 64))), reason)
    if not config.model.pretrained:
        decay = 0.3 if facts.images < SMALL else 0.1 if facts.images >= _LARGE else 0.05
        yield Choice("optimizer.weight_decay", decay, f"from scratch on {facts.size_text}")


def _rounded(number: float) -> float:
    return float(f"{number:.2g}")


def _duration(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the length: epochs, but never fewer updates than a model needs to learn at all."""
    if config.model.pretrained:
        epochs, fewest = 20, _FEWEST_FINE_TUNING
    else:
        epochs, fewest = (90 if facts.images >= 500_000 else 100), FEWEST_UPDATES
    updates = epochs * facts.images / config.batch.global_size
    if updates < fewest:
        reason = f"at least {fewest:,} updates; {epochs} epochs would be {math.ceil(updates):,}"
        yield Choice("train.duration", f"{fewest} updates", reason)
    else:
        what = "fine-tuning" if config.model.pretrained else "from scratch"
        yield Choice("train.duration", f"{epochs} epochs", f"{what} on {facts.size_text}")


def _augmentation(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the augmentation from what the classes are and how many images there are."""
    if facts.characters:
        reason = "the classes are named like digits or letters"
        side = config.data.image_size or (facts.side if _ours(config) else 224)
        moves = {"flip": 0.0, "crop_min": 0.0, "auto": "", "shift": max(1, side // 14), "rotate": 10, "scale": 0.1}
        for name, value in moves.items():
            yield Choice(f"augment.{name}", value, reason)
    else:
        if facts.sided:
            yield Choice("augment.flip", 0.0, "a class is named after left or right")
        else:
            yield Choice("augment.flip", 0.5, "most things look the same mirrored")
        large, pretrained = facts.images >= _LARGE, bool(config.model.pretrained)
        what = "fine-tuning" if pretrained else "from scratch"
        reason = f"{what} on {facts.size_text}"
        yield Choice("augment.crop_min", 0.08 if large and not pretrained else 0.35, reason)
        if large or pretrained:
            yield Choice("augment.auto", "rand-m9-mstd0.5-inc1", reason)
        if large:
            yield Choice("augment.mixup", 0.2, reason)
    yield Choice("loss.label_smoothing", 0.1, "keeps the model from being too sure")


def affordable(samples: float, val: int) -> int:
    """Return how many evaluations of so many images take a tenth of a training's time, of so many samples."""
    return round(0.3 * samples / max(val, 1))  # an image costs a third of what it costs in training


def _evaluation(config: Config, facts: Facts) -> Iterator[Choice]:
    """Choose the interval of evaluations: about 40, whole epochs if they are long, at most a tenth of the time."""
    length, size = Length.parse(config.train.duration), config.batch.global_size
    samples = float(length.amount) * {"epochs": facts.images, "updates": size, "samples": 1}[length.unit]
    count = max(1, min(_EVALUATIONS, math.ceil(samples / size), affordable(samples, facts.val)))
    epochs = samples / facts.images / count
    every = f"{round(epochs)} epochs" if epochs >= 1 else f"{_rounded(100 / count):g}%"
    yield Choice("evaluate.every", every, f"about {count} evaluation{'s'[: count != 1]} of {facts.val:,} images")

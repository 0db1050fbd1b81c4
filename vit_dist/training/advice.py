"""Notes on settings that fit a data set badly, whoever set them; each names the field and what to set."""

from __future__ import annotations

from collections.abc import Iterator

from vit_dist.config.config import Config
from vit_dist.config.values import Length, parse_size
from vit_dist.data.preprocessing import input_side, timm_preprocessing
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.sources.survey import survey
from vit_dist.plan.plan import Plan
from vit_dist.training.defaults import FEWEST_UPDATES, SMALL, affordable, batch_size

_FEW_UPDATES, _FEW_EVALUATIONS = 10, 5
# So many times the images' own side; less is common, since patches must fit.
_ENLARGED = 3


def advice(config: Config, data: LabelledSplits) -> Iterator[str]:
    """Yield notes on the settings of a run over this data. Reads the config and the data alone. Raises UserError."""
    plan = Plan.from_config(config, len(data.splits["train"]), 1)
    yield from _on_length(config, plan, len(data.splits.get("val", ())))
    yield from _on_model(config, data)
    if config.augment.flip and set(data.classes) == {str(digit) for digit in range(10)}:
        yield "augment.flip: flipping digits makes them unreadable: set augment.flip 0"
    fit, in_files = config.data.fit, decoded(data.splits["train"].source) is None
    if in_files and config.augment.crop_min and fit in ("pad", "stretch"):
        yield (
            f"augment.crop_min: training takes random parts of the images, evaluation all of each (data.fit {fit}): "
            "set augment.crop_min 0 to train on all of each too"
        )
    size, micro = config.batch.global_size, config.batch.slots
    if micro > size + size % 2:
        yield f"batch.micro_size: {micro - size} of its {micro} slots are never used: set {size + size % 2}"


def precision_advice(config: Config, precision: str) -> Iterator[str]:
    """Yield notes on what has no effect in a precision: fp32, bf16 or fp16."""
    if config.model.residual == "bf16" and precision != "bf16":
        yield f"model.residual: bf16 has no effect in {precision}, whose sums between blocks stay float32"


def _on_length(config: Config, plan: Plan, val: int) -> Iterator[str]:
    """Yield notes on batch and duration, and on how often is evaluated, where more would cost little. val: images."""
    size, images = plan.global_size, plan.samples
    fitting = batch_size(images)
    if size > images:
        yield f"batch.global_size: {size} is more than the {images:,} training images: set {fitting}"
    if plan.updates < _FEW_UPDATES:
        if Length.parse(config.train.duration).unit != "updates":
            smaller = f"batch.global_size {fitting} or " if fitting < size else ""
            yield (
                f"train.duration: {config.train.duration} of {images:,} images, {size} in an update, are only "
                f'{plan.updates} updates, too few to learn from: set {smaller}train.duration "{FEWEST_UPDATES} updates"'
            )
    elif val and plan.total_samples / plan.evaluate_every < _FEW_EVALUATIONS <= affordable(plan.total_samples, val):
        yield (
            f"evaluate.every: {config.evaluate.every} leave fewer than {_FEW_EVALUATIONS} evaluations to choose the "
            "best weights from: set 5%"
        )


def _on_model(config: Config, data: LabelledSplits) -> Iterator[str]:
    """Yield notes on what a model from scratch can learn from these images."""
    model, images = config.model, len(data.splits["train"])
    if model.pretrained:
        yield from _on_sides(config, data, "to what the weights were trained on: a smaller side is faster")
        return
    if model.freeze or model.linear_probe:
        field = "linear_probe" if model.linear_probe else "freeze"
        yield f"model.{field}: frozen parameters stay random without model.pretrained: set that, or leave {field} out"
    if decoded(data.splits["train"].source) is not None or data.channels != 3:
        return
    if images < SMALL:
        yield (
            f"training from scratch on {images:,} images: on so few, pretrained weights are far more accurate: "
            "--model.pretrained timm"
        )
    yield from _on_sides(config, data, "which takes time and shows nothing more")


def _on_sides(config: Config, data: LabelledSplits, judged: str) -> Iterator[str]:
    """Yield a note if the input is far larger than the images. judged: what is to be said of it."""
    sizes = survey(data).sizes
    side = input_side(config.data, data, timm_preprocessing(config.model))
    side = max([side, *(parse_size(text)[0] for text in config.augment.sizes)])
    if sizes is not None and side > _ENLARGED * sizes.median:
        times = f"{side / sizes.median:.0f} times"
        yield f"data.image_size: {side} enlarges images of {sizes.median} pixels {times}, {judged}"

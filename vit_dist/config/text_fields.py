"""The fields of the text tower of a contrastive run, and what is wrong with them: see docs/contrastive.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Union

from vit_dist.config.option import option
from vit_dist.errors import nearest

if TYPE_CHECKING:
    from vit_dist.config.schema import Schema

# Losses of two towers, which compare the images of a global batch with its captions.
CONTRASTIVE = ("clip", "siglip")
# Published sizes: TinyCLIP's text tower, and those of CLIP's ViT-S, B, L and H.
TEXT_PRESETS = {
    "text_tiny": {"width": 256, "depth": 3, "heads": 4},
    "text_small": {"width": 384, "depth": 12, "heads": 6},
    "text_base": {"width": 512, "depth": 12, "heads": 8},
    "text_large": {"width": 768, "depth": 12, "heads": 12},
    "text_huge": {"width": 1024, "depth": 24, "heads": 16},
}


@dataclass(frozen=True)
class TextConfig:
    """The text tower of a contrastive run (loss.name clip or siglip), and the embedding that both towers share."""

    name: str = option("text_base", "text_tiny, text_small, text_base, text_large, text_huge")
    tokenizer: str = option(
        "bytes",
        "bytes; or the path of a tokenizers JSON file, or of CLIP's merges (bpe_simple_vocab_16e6.txt, .gz as well)",
        changes_result=False,  # the content of the file does, and that is part of the data's fingerprint
        at_inference=True,
    )
    context_length: int = option(77, "tokens of a caption; a longer one is cut, its end token kept", at_least=2)
    width: Union[int, None] = option(None, "embedding dimension; empty: the preset's", above=0)
    depth: Union[int, None] = option(None, "number of transformer blocks; empty: the preset's", above=0)
    heads: Union[int, None] = option(None, "attention heads; must divide the width; empty: the preset's", above=0)
    causal: bool = option(True, "each token sees those before it, as in CLIP; false: all of the caption's")
    pool: Literal["end", "mean"] = option("end", "input of the projection: the end token, or the mean of the tokens")
    dropout: float = option(0.0, "dropout on positions, attention output and MLP", at_least=0, at_most=1)
    drop_path: float = option(
        0.0, "stochastic depth of the last block, rising linearly from 0 at the first", at_least=0, below=1
    )
    embed_dim: int = option(512, "size of the embedding that images and texts share", above=0)
    prompts: tuple[str, ...] = option(
        ("a photo of a {}.",),
        "templates from which zero-shot evaluation makes the texts of a class; {} is its name",
        at_inference=True,
    )


def text_problems(config: Schema) -> Iterator[str]:
    """Yield what is wrong with the text tower, or with other fields beside it, a line each."""
    text, plain, loss = config.text, TextConfig(), config.loss
    contrastive = loss.name in CONTRASTIVE
    if not contrastive:
        changed = [field.name for field in dataclasses.fields(text) if getattr(text, field.name) != _of(plain, field)]
        idle = [*(f"text.{name}" for name in changed), *["loss.duplicates"] * (loss.duplicates != "positives")]
        for field in idle:
            yield f"{field}: has no effect without loss.name clip or siglip: set that too, or leave it out"
        return
    if text.name not in TEXT_PRESETS:
        yield f"text.name: no text tower {text.name}{nearest(text.name, TEXT_PRESETS)}"
    else:
        preset = TEXT_PRESETS[text.name]
        width, heads = text.width or preset["width"], text.heads or preset["heads"]
        if width % heads:
            yield f"text.width: {width} is not divisible by {heads} heads: set text.heads"
    if not text.prompts:
        yield 'text.prompts: must hold a template at least, as ["a photo of a {}."]'
    for prompt in text.prompts:
        if "{}" not in prompt:
            yield f"text.prompts: {prompt!r} has no {{}} where the name of the class goes"
    yield from _beside(config)


def _of(plain: TextConfig, field: dataclasses.Field[object]) -> object:
    return getattr(plain, field.name)


def _beside(config: Schema) -> Iterator[str]:
    """Yield which fields have no meaning for pairs of images and captions."""
    name, loss, augment = config.loss.name, config.loss, config.augment
    for field in ("mixup", "cutmix"):
        if getattr(augment, field):
            yield f"augment.{field}: mixes images whose captions cannot be mixed: set it to 0 with loss.name {name}"
    if augment.repeats > 1:
        yield f"augment.repeats: copies of an image would be each other's negatives with loss.name {name}: set it to 1"
    if loss.teacher:
        yield f"loss.teacher: there is no distillation with loss.name {name}: leave it out"
    if loss.label_smoothing:
        yield f"loss.label_smoothing: loss.name {name} has no labels to smooth: set it to 0"
    if config.model.linear_probe:
        yield (
            f"model.linear_probe: is for classifiers: with loss.name {name}, model.freeze [^image\\.] trains the text "
            "tower alone"
        )

"""The README of an exported model of two towers: Markdown for the Hugging Face Hub."""

from __future__ import annotations

from vit_dist.formatting import code_span, markdown, weights_text
from vit_dist.inference.load import TrainedModel
from vit_dist.models.forward import parameter_count

_HEAD = """---
tags:
- clip
- zero-shot-image-classification
library_name: open_clip
pipeline_tag: zero-shot-image-classification
---

"""
_SNIPPET = """import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")  # this folder; "hf-hub:OWNER/NAME"
model.eval()
{tokenizer}
images = preprocess(Image.open("picture.png"))[None]
with torch.inference_mode():
    cosines = model.encode_image(images, normalize=True) @ model.encode_text(tokens, normalize=True).T
"""
_BYTES = """

def tokenize(texts, length={length}):  # the bytes of UTF-8 plus 1, between 257 and 258
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts):
        numbers = [257, *(byte + 1 for byte in text.encode()), 258]
        row[: len(numbers)] = torch.tensor(numbers[:length])
        if len(numbers) > length:
            row[-1] = 258
    return rows


tokens = tokenize(["a cat", "a dog"])"""
_CLIP = '\ntokens = open_clip.get_tokenizer("local-dir:.")(["a cat", "a dog"])'
_JSON = """
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")  # the file that the run was trained with; 0 fills rows
rows = [tokenizer.encode(text).ids for text in ["a cat", "a dog"]]  # cut to {length}, the end token kept
tokens = torch.tensor([row + [0] * ({length} - len(row)) for row in rows])"""


def pair_card(trained: TrainedModel, name: str) -> str:
    """Return Markdown with the Hub's front matter: the model, its input, and how open_clip uses it."""
    config, made = trained.config, trained.preprocessing
    text, side = config.text, made.image_size
    lines = [
        f"# {markdown(name)}\n",
        f"Images and texts in one space of {text.embed_dim} dimensions: {code_span(config.model.name)} and "
        f"{code_span(text.name)}, {parameter_count(trained.model):,} parameters, trained with the loss "
        f"{code_span(config.loss.name)}.",
    ]
    if trained.update is not None:
        lines.append(f"Trained with vit_dist: the {weights_text(trained.weights)} of update {trained.update:,}.")
    lines += [
        "\n## Input\n",
        f"- images: {trained.channels} × {side} × {side}, (value/255 - mean) / std; mean {list(made.mean)}, std "
        f"{list(made.std)}",
        f"- image files: {made.resizing()}; turned upright as EXIF says, what is transparent on white",
        f"- texts: tokenizer {code_span(text.tokenizer)}, {text.context_length} tokens",
    ]
    if made.crop != 1:
        lines.append("- open_clip's own preprocessing resizes to the side of the input, without that margin")
    if trained.channels == 1:
        lines.append("- open_clip takes the grey image three times")
    tokenizer = _BYTES if text.tokenizer == "bytes" else _JSON if text.tokenizer.endswith(".json") else _CLIP
    snippet = _SNIPPET.format(tokenizer=tokenizer.format(length=text.context_length))
    return _HEAD + "\n".join(lines) + f"\n\n## Usage\n\n```python\n{snippet}```\n"

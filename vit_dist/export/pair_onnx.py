"""Export a model of two towers as two ONNX files: images → embeddings, and tokens → embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.export.onnx_file import BATCHES, OnnxCheck, export_onnx, write_graph
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.zero_shot import tokenizer_of
from vit_dist.models.two_tower import TwoTower

_TEXTS = ("a", "a photo of a cat", "two dogs, and a very long caption of them that is cut in the end " * 8)


class ImageTower(nn.Module):
    """Images → embeddings of length 1, float32 [batch, dim]."""

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.towers = towers.image

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.towers(images).float(), dim=1)


class TextTower(nn.Module):
    """Tokens int64 [batch, context_length] → embeddings of length 1, float32 [batch, dim]."""

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.tower = towers.text

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.normalize(self.tower(tokens).float(), dim=1)


def names_of(path: Path) -> tuple[Path, Path]:
    """Return the names of the two files: NAME_image.onnx and NAME_text.onnx."""
    return path.with_name(f"{path.stem}_image.onnx"), path.with_name(f"{path.stem}_text.onnx")


def image_tower(trained: TrainedModel) -> TrainedModel:
    """Return the image tower alone, whose outputs are the numbers of the embedding, before it is normalised."""
    towers = trained.model
    assert isinstance(towers, TwoTower)
    numbers = [str(number) for number in range(trained.config.text.embed_dim)]
    return replace(trained, model=towers.image, classes=numbers, names=numbers)


def export_pair(
    trained: TrainedModel, path: Path, *, preprocess: bool, source: Mapping[str, Any]
) -> dict[Path, OnnxCheck]:
    """Write the files that `names_of` names; return what was found of each. Raises UserError.

    The scale and the bias of the similarities are in the metadata of both, and the tokenizer in that of the texts'.
    """
    towers = trained.model
    assert isinstance(towers, TwoTower)
    bias = None if towers.logit_bias is None else towers.logit_bias.item()
    source = {**source, "logit_scale": towers.logit_scale.exp().item(), "logit_bias": bias}
    of_images, of_texts = names_of(path)
    images = replace(image_tower(trained), model=ImageTower(towers))
    found = {of_images: export_onnx(images, of_images, preprocess=preprocess, source=source, output="embedding")}
    tokenizer, text = tokenizer_of(trained), trained.config.text
    tokens = torch.from_numpy(tokenizer([_TEXTS[number % len(_TEXTS)] for number in range(sum(BATCHES))]))
    model = TextTower(towers)
    about = {
        **{"tokenizer": text.tokenizer, "digest": tokenizer.digest, "vocabulary_size": tokenizer.vocabulary_size},
        **{"context_length": text.context_length, "padding": tokenizer.pad, "output": "embedding"},
    }
    metadata = {name: json.dumps(value) for name, value in (("text", about), ("source", dict(source)))}
    found[of_texts] = write_graph(model, tokens, lambda: model(tokens), of_texts, metadata, text.name)
    return found

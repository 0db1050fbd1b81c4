"""Embeddings of image files, and files of embeddings: safetensors or NumPy's .npz."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.workers import worker_count
from vit_dist.errors import UserError, visible
from vit_dist.files import check_output_path, replacing
from vit_dist.inference.batches import read_batches
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.prediction import Floats
from vit_dist.models.forward import eval_mode
from vit_dist.runtime.runtime import Runtime

ENDINGS = (".safetensors", ".npz")


@dataclass(frozen=True)
class EmbeddedFiles:
    """The embeddings of image files, float32 [paths, dim], of length 1. bad: file → why it could not be read."""

    embeddings: Floats
    paths: list[Path]
    bad: dict[str, str] = field(default_factory=dict)


def encode_files(trained: TrainedModel, paths: Sequence[Path], runtime: Runtime) -> EmbeddedFiles:
    """Embed image files in order, without those that cannot be read. Raises UserError if none can."""
    config, mode = trained.config, "L" if trained.channels == 1 else "RGB"
    source = FileSource(paths, np.zeros(len(paths), np.int64), mode, config.data.max_pixels)
    workers = worker_count(config.data.workers, runtime.cores)
    model: Any = trained.model.to(runtime.device)
    made, kept, bad = [], list[Path](), dict[str, str]()
    for batch in read_batches(trained, source, "leave out", batch_size=config.evaluate.batch_size, workers=workers):
        pixels = trained.preprocessing.normalise(runtime.to_device(batch.pixels))
        with eval_mode(model), runtime.autocast():
            embeddings = model.encode_image(pixels).float().cpu()
        names = [paths[number] for number in batch.ids.tolist()]
        bad |= {str(names[slot]): why.removeprefix(f"{visible(str(names[slot]))}: ") for slot, why in batch.bad.items()}
        real = batch.weights > 0
        made.append(embeddings[real])
        kept += [name for name, counts in zip(names, real.tolist(), strict=True) if counts]
    if not kept:
        raise UserError("predict: none of the images could be read")
    return EmbeddedFiles(torch.cat(made).numpy(), kept, bad)


def check_embeddings_path(path: Path, flag: str) -> None:
    """Check, before the work, that embeddings can be written to a path. Raises UserError that names the flag."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{flag}: name the file .safetensors or .npz, not {path}")
    check_output_path(path, flag)


def write_embeddings(path: Path, images: EmbeddedFiles, texts: Mapping[str, Floats], about: Mapping[str, Any]) -> None:
    """Write embeddings, float32: `images` [n, dim] and, if there are any texts, `texts` [m, dim].

    The names of the images, the texts and `about` are JSON in the metadata of safetensors, or arrays of an .npz:
    `image_names`, `text_names` and `about`, a text. Raises OSError.
    """
    arrays: dict[str, Any] = {"images": images.embeddings}
    if texts:
        arrays["texts"] = np.stack(list(texts.values()))
    names = [str(name) for name in images.paths]
    with replacing(path) as hidden:
        if path.suffix.lower() == ".safetensors":
            content = {**about, "images": names, "texts": list(texts)}
            save_file(arrays, hidden, {"about": json.dumps(content)})
        else:
            arrays |= {"image_names": np.asarray(names), "text_names": np.asarray(list(texts), np.str_)}
            arrays["about"] = np.asarray(json.dumps(dict(about)))
            with hidden.open("wb") as file:
                np.savez(file, **arrays)

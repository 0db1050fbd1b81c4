"""Commands run in this process, and the models, predictions and metrics that their tests expect."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vit_dist.cli import main
from vit_dist.models.forward import eval_mode
from vit_dist.run_folder.metrics import Line, read_metrics

# The flags that describe the model of the digits run, for a file of its weights.
DIGITS_MODEL = ["--model.name", "vit_tiny", "--model.patch_size", "4", "--model.width", "32", "--model.depth", "2"]
DIGITS_MODEL += ["--model.heads", "4", "--model.mlp_ratio", "2", "--model.pool", "mean", "--data.image_size", "8"]
DIGITS_MODEL += ["--data.mean", "[0.3053]", "--data.std", "[0.3760]", "--run.threads", "1", "--run.device", "cpu"]
# The flags that describe a timm model for images of 32×32 pixels.
TIMM_MODEL = ["--model.name", "timm/vit_tiny_patch16_224", "--data.image_size", "32", "--run.threads", "1"]
TIMM_MODEL += ["--run.device", "cpu"]


class CommandResult(NamedTuple):
    """The exit code of a command, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *words: object) -> CommandResult:
    """Run a command in this process; return its exit code and output."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return CommandResult(code, captured.out, captured.err)


def resize_and_crop(path: Path, mode: str, side: int, crop: float) -> np.ndarray[Any, Any]:
    """Return the pixels of a file as they are evaluated, by Pillow alone.

    The short side is resized to side / crop (bicubic), then the centre is cropped.
    """
    image = Image.open(path).convert(mode)
    short = math.floor(side / crop)
    width, height = image.size
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def predict_by_hand(
    model: torch.nn.Module, pixels: np.ndarray[Any, Any], mean: Any, std: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and probabilities for pixels [n, c, side, side], normalised by hand."""
    images = torch.from_numpy(pixels.astype(np.float64) / 255)
    images = (images - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    with eval_mode(model):
        logits = model(images.float())
        return logits, logits.softmax(1)


def metrics_line(run: Path, **fields: object) -> Line:
    """Return the only evaluation in a run's metrics with these fields."""
    lines = [
        line
        for line in read_metrics(run / "metrics.jsonl")
        if all(line.get(name) == value for name, value in {"kind": "eval", **fields}.items())
    ]
    assert len(lines) == 1, fields
    return lines[0]


def numbered_model(folder: Path, classes: int, **more: Any) -> Path:
    """Write a timm folder without class names unless `more` has them; its predictions differ between images."""
    torch.manual_seed(0)
    model = write_timm_folder(folder, classes, **more)
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight, std=2)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def write_timm_folder(folder: Path, classes: int = 3, **more: Any) -> nn.Module:
    """Write by hand a folder as timm saves a model for the hub; return the model."""
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=classes, **args)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": classes, "pretrained_cfg": cfg,
            "model_args": {"img_size": 32, "num_classes": classes, "in_chans": 3, **args}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**content, **more}))
    return model

"""Models for the tests of exports: a small trained run, and small models without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.sharing import made_once
from vit_dist import Config, train
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.inference.load import TrainedModel
from vit_dist.models.build import build_model

DIGITS: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 2,
    "batch.global_size": 48,
    "batch.micro_size": 16,
    "schedule.warmup": "5 updates",
    "train.duration": "60 updates",
    "train.ema": 0.9,
    "log.trackers": "none",
    "run.device": "cpu",
    "run.threads": 1,
}
# A ViT of two blocks for images of 12×12 pixels.
SMALL: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3, "patch_size": 4}


def digits_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of sixty updates on the digits, trained once for all tests."""
    return made_once(
        factory, "run to export", lambda folder: train(Config.load("digits", {**DIGITS, "run.dir": str(folder)}))
    )


def digits_test_images() -> Tensor:
    """Return the digits' test split, uint8 [359, 1, 8, 8]."""
    test = open_data(Config.load("digits").data).splits["test"]
    assert isinstance(test.source, MemorySource)
    return torch.from_numpy(test.source.pixels[test.indices])


def small_model(channels: int = 3, side: int = 12, **model: Any) -> TrainedModel:
    """Return a model for five classes whose logits depend on every parameter. model: fields of the config."""
    fields = {f"model.{name}": value for name, value in {"pool": "token", **SMALL, **model}.items()}
    config = Config.load("folder", {"data.root": ".", **fields})
    network = build_model(config.model, classes=5, channels=channels, image_size=side, seed=0, trained=False)
    scatter(network)
    mean, std = tuple(0.4 + 0.05 * i for i in range(channels)), tuple(0.2 + 0.01 * i for i in range(channels))
    names = ["ant", "bee", "cat", "dog", "eel"]
    return TrainedModel(
        network, Preprocessing(side, mean, std, crop=0.9), list("abcde"), channels, "raw", config, names
    )


def scatter(model: nn.Module) -> None:
    """Add noise to every parameter: as initialised, some have no effect on the logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)

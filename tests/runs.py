"""Trained runs and image files, made once for all tests of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sharing import made_once
from vit_dist import Config, train
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.files import read_json

DIGITS: dict[str, Any] = {
    "model.width": 32,
    "model.depth": 2,
    "batch.global_size": 48,
    "batch.micro_size": 48,
    "optimizer.lr": 1e-3,
    "schedule.warmup": "5 updates",
    "train.duration": "60 updates",
    "train.ema": 0.9,
    "evaluate.every": "30 updates",
    "checkpoint.every": "30 updates",
}
PICTURES: dict[str, Any] = {
    "data.image_size": 16,
    "data.workers": 0,
    "model.width": 24,
    "model.depth": 2,
    "model.heads": 2,
    "model.patch_size": 8,
    "batch.global_size": 14,
    "batch.micro_size": 14,
    "data.crop": 0.875,
    "optimizer.lr": 0.02,
    "schedule.warmup": "2 updates",
    "train.duration": "15 updates",
    "evaluate.every": "5 updates",
}
CAPTIONS: dict[str, Any] = {
    **{"data.name": "digits_captions", "loss.name": "clip", "loss.label_smoothing": 0.0},
    **{"model.pool": "token", "model.width": 32, "model.depth": 1, "model.heads": 2, "model.patch_size": 4},
    **{"text.width": 32, "text.depth": 1, "text.heads": 2, "text.context_length": 40, "text.embed_dim": 24},
    **{"text.prompts": ["a handwritten {}", "the digit {}"], "evaluate.metric": "top1"},
    **{"batch.global_size": 64, "batch.micro_size": 64, "optimizer.lr": 3e-3, "schedule.warmup": "5 updates"},
    **{"train.duration": "50 updates", "evaluate.every": "25 updates", "checkpoint.every": "25 updates"},
    "train.ema": 0.9,
}
QUIET: dict[str, Any] = {"run.device": "cpu", "run.threads": 1, "log.report": False, "log.trackers": "none"}


def train_digits_run(factory: pytest.TempPathFactory) -> Path:
    """Return a run on the digits, trained once for all modules: EMA weights, checkpoints at 30 and 60."""
    return made_once(
        factory, "digits", lambda folder: train(Config.load("digits", {**DIGITS, **QUIET, "run.dir": str(folder)}))
    )


def train_captions_run(factory: pytest.TempPathFactory) -> Path:
    """Return a run on the digits and their captions, trained once for all modules."""
    return made_once(
        factory, "captions", lambda folder: train(Config.load("digits", {**CAPTIONS, **QUIET, "run.dir": str(folder)}))
    )


def train_pictures_run(factory: pytest.TempPathFactory, images: Path) -> Path:
    """Return a run on image files, trained once for all modules; its best weights are not its last."""

    def make(folder: Path) -> None:
        train(Config.load("folder", {**PICTURES, **QUIET, "data.root": str(images), "run.dir": str(folder)}))
        assert read_json(folder / "summary.json")["best"]["update"] < 15

    return made_once(factory, "run on pictures", make)


def digits_as_files(factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the digits' test images as grey PNGs, in folders by class, named by their index."""

    def make(root: Path) -> None:
        test = open_data(Config.load("digits", {}).data).splits["test"]
        assert isinstance(test.source, MemorySource)
        for index in test.indices.tolist():
            path = root / str(test.source.labels[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(test.source.pixels[index, 0]).save(path)

    return made_once(factory, "digits as files", make)

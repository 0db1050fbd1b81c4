"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.sharing import made_once

os.environ.setdefault("WANDB_MODE", "disabled")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests, unless `-m` speaks of them, and those that need a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))
    if "slow" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """Return the folder of MNIST's compressed IDX files; skip the test if it is missing."""
    folder = REAL_DATA / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST files in {folder}")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes of small images of several sizes, split into train and valid."""
    return made_once(tmp_path_factory, "pictures", _write_pictures)


def _write_pictures(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("valid", 7)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 160, (20 + i % 3, 24, 3), dtype=np.uint8)
                pixels[:, :, label] += 90
                Image.fromarray(pixels).save(folder / f"{i:02}.png")

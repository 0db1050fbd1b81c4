"""Flip, shift and normalise against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_dist.data.device import flip, normalise, shift


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8))


def test_flip_mirrors_the_chosen() -> None:
    images = pixels(5, 3, 4, 7)
    chosen = torch.tensor([True, False, False, True, True])
    expected = images.numpy().copy()
    for i in (0, 3, 4):
        for x in range(7):
            expected[i, :, :, x] = images[i, :, :, 6 - x].numpy()
    found = flip(images, chosen)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(flip(found, chosen), images)


@pytest.mark.parametrize("largest", [1, 2, 9])
def test_shift_moves_down_and_right_and_fills_with_black(largest: int) -> None:
    generator = np.random.default_rng(1)
    images = pixels(12, 2, 6, 5)
    offsets = generator.integers(-largest, largest + 1, (12, 2))
    offsets[:3] = [[0, 0], [largest, -largest], [-largest, largest]]
    expected = np.zeros((12, 2, 6, 5), np.uint8)
    for i, (down, right) in enumerate(offsets):
        for y in range(6):
            for x in range(5):
                if 0 <= y - down < 6 and 0 <= x - right < 5:
                    expected[i, :, y, x] = images[i, :, y - down, x - right].numpy()
    found = shift(images, torch.from_numpy(offsets), largest)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(found[0], images[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_value_less_mean_over_std(channels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(channels).reshape(1, channels, 16, 16)
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.2470, 0.2435, 0.2616)[:channels]
    found = normalise(images, 16, torch.tensor(mean), torch.tensor(std))
    assert (found.dtype, found.shape) == (torch.float32, (1, channels, 16, 16))
    for channel in range(channels):
        expected = [(value / 255 - mean[channel]) / std[channel] for value in range(256)]
        np.testing.assert_allclose(found[0, channel].flatten().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_normalise_of_an_image_does_not_depend_on_the_batch() -> None:
    images, mean, std = pixels(7, 3, 13, 13), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    for size in (13, 9, 20):
        whole = normalise(images, size, mean, std)
        for i in range(7):
            assert torch.equal(normalise(images[i : i + 1], size, mean, std)[0], whole[i])


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 12), (8, 8, 4), (6, 10, 6), (10, 6, 6), (7, 5, 28)])
def test_normalise_resizes_to_a_square(height: int, width: int, size: int) -> None:
    mean, std = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.125])
    flat = torch.full((2, 2, height, width), 51, dtype=torch.uint8)
    found = normalise(flat, size, mean, std)
    assert (found.dtype, found.shape) == (torch.float32, (2, 2, size, size))
    np.testing.assert_allclose(found[:, 0].numpy(), (0.2 - 0.5) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1].numpy(), (0.2 - 0.25) / 0.125, rtol=1e-5)


def test_halving_is_the_triangle_filter() -> None:
    images = pixels(1, 1, 8, 8)
    found = normalise(images, 4, torch.tensor([0.0]), torch.tensor([1 / 255]))[0, 0].numpy()
    # Bilinear with antialias at half the size: weights 1 3 3 1 around each pair, renewed at the border.
    rows = np.zeros((4, 8))
    for i in range(4):
        for place, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
            if 0 <= place < 8:
                rows[i, place] = weight
    rows /= rows.sum(1, keepdims=True)
    np.testing.assert_allclose(found, rows @ images[0, 0].numpy() @ rows.T, rtol=1e-5)

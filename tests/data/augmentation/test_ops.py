"""What happens on the device against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import kstest
from torch import Tensor

from vit_dist.data.augmentation.ops import (
    _resizing,
    erase,
    erase_with_noise,
    flip,
    mix,
    mix_targets,
    normal_noise,
    normal_of,
    normalise,
    resize,
    shift,
    warp,
)
from vit_dist.plan.keys import Purpose, keys


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8))


def test_flip_mirrors_the_chosen_images() -> None:
    images = pixels(5, 3, 4, 7)
    chosen = torch.tensor([True, False, False, True, True])
    expected = images.numpy().copy()
    for i in (0, 3, 4):
        for x in range(7):
            expected[i, :, :, x] = images[i, :, :, 6 - x].numpy()
    actual = flip(images, chosen)
    assert actual.dtype == torch.uint8
    assert np.array_equal(actual.numpy(), expected)
    assert torch.equal(flip(actual, chosen), images)


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
    actual = shift(images, torch.from_numpy(offsets), largest)
    assert actual.dtype == torch.uint8
    assert actual.shape == images.shape
    assert np.array_equal(actual.numpy(), expected)
    assert torch.equal(actual[0], images[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_subtracts_the_mean_and_divides_by_std(channels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(channels).reshape(1, channels, 16, 16)
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.2470, 0.2435, 0.2616)[:channels]
    actual = normalise(images, 16, torch.tensor(mean), torch.tensor(std))
    assert (actual.dtype, actual.shape) == (torch.float32, (1, channels, 16, 16))
    for channel in range(channels):
        expected = [(value / 255 - mean[channel]) / std[channel] for value in range(256)]
        np.testing.assert_allclose(actual[0, channel].flatten().numpy(), expected, rtol=1e-5, atol=1e-6)


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
    actual = normalise(flat, size, mean, std)
    assert (actual.dtype, actual.shape) == (torch.float32, (2, 2, size, size))
    np.testing.assert_allclose(actual[:, 0].numpy(), (0.2 - 0.5) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(actual[:, 1].numpy(), (0.2 - 0.25) / 0.125, rtol=1e-5)


def test_halving_is_the_triangle_filter() -> None:
    images = pixels(1, 1, 8, 8)
    actual = normalise(images, 4, torch.tensor([0.0]), torch.tensor([1 / 255]))[0, 0].numpy()
    # Bilinear with antialias at half the size: weights 1 3 3 1 around each pair, renewed at the border.
    rows = np.zeros((4, 8))
    for i in range(4):
        for place, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
            if 0 <= place < 8:
                rows[i, place] = weight
    rows /= rows.sum(1, keepdims=True)
    np.testing.assert_allclose(actual, rows @ images[0, 0].numpy() @ rows.T, rtol=1e-5)


def sampled(image: NDArray[Any], y: float, x: float) -> NDArray[Any]:
    """Return the colour [c] at a point, in pixels, of an image [c, h, w]: bilinear, black outside."""
    height, width = image.shape[1:]
    top, left = math.floor(y), math.floor(x)
    colour = np.zeros(len(image))
    for row, of_row in ((top, top + 1 - y), (top + 1, y - top)):
        for column, of_column in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                colour += of_row * of_column * image[:, row, column]
    return colour


def warped(image: NDArray[Any], affine_map: NDArray[Any]) -> NDArray[Any]:
    """Look up the centre of each output pixel, in -1 … 1, in the input."""
    height, width = image.shape[1:]
    actual = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            x, y = affine_map @ [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1, 1]
            actual[:, row, column] = sampled(image, ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2)
    return actual


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12), (12, 7), (1, 5)])
def test_warp_by_the_identity_changes_nothing(height: int, width: int) -> None:
    images = pixels(3, 2, height, width)
    actual = warp(images, torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(3, 2, 3))
    assert (actual.dtype, actual.shape) == (torch.float32, images.shape)
    np.testing.assert_allclose(actual.numpy(), images.numpy(), atol=2e-4)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_warp_rotates_a_square_by_right_angles(turns: int) -> None:
    images = pixels(2, 3, 9, 9)
    angle = math.pi / 2 * turns
    affine_map = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
    actual = warp(images, torch.tensor([affine_map, affine_map]))
    np.testing.assert_allclose(actual.numpy(), np.rot90(images.numpy(), turns, (2, 3)), atol=1e-3)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -3), (-1, 4), (6, 0), (0, -9), (1, 1)])
def test_warp_moves_by_whole_pixels_as_shift_does(down: int, right: int) -> None:
    images = pixels(1, 2, 6, 9)
    actual = warp(images, torch.tensor([[[1, 0, -2 * right / 9], [0, 1, -2 * down / 6]]]))
    expected = shift(images, torch.tensor([[down, right]]), 9)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-3)


def test_warp_by_half_the_map_doubles_the_size() -> None:
    images = pixels(1, 1, 8, 8)
    actual = warp(images, torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]]))[0, 0].numpy()
    # Output pixels lie a quarter of a pixel off the input's, so weights are 1/4 and 3/4 along each axis.
    weights = np.zeros((8, 8))
    for i in range(8):
        near, far = (2 + i // 2, 1 + i // 2) if i % 2 == 0 else (2 + i // 2, 3 + i // 2)
        weights[i, near], weights[i, far] = 0.75, 0.25
    np.testing.assert_allclose(actual, weights @ images[0, 0].numpy() @ weights.T, rtol=1e-5)


def test_warp_interpolates_each_pixel_bilinearly() -> None:
    generator = np.random.default_rng(2)
    for height, width in ((6, 6), (5, 8)):
        images = pixels(6, 2, height, width)
        affine_map = generator.uniform(-1.3, 1.3, (6, 2, 3)).astype(np.float32)
        actual = warp(images, torch.from_numpy(affine_map))
        for i in range(6):
            np.testing.assert_allclose(
                actual[i].numpy(), warped(images[i].numpy(), affine_map[i].astype(float)), atol=2e-3
            )
            assert torch.equal(warp(images[i : i + 1], torch.from_numpy(affine_map[i : i + 1]))[0], actual[i])


BOXES = [[0, 3, 1, 6], [5, 7, 0, 8], [2, 2, 3, 5], [0, 7, 0, 8], [6, 7, 7, 8]]


@pytest.mark.parametrize("mode", ["const", "rand"])
def test_erase_fills_the_boxes_of_its_rows(mode: str) -> None:
    images = torch.randn(8, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    rows, before = [1, 2, 4, 6, 7], images.clone()
    colour = torch.zeros(5, 3) if mode == "const" else torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = images.numpy().copy()
    for row, (top, bottom, left, right), values in zip(rows, BOXES, colour.numpy(), strict=True):
        for y in range(top, bottom):
            for x in range(left, right):
                expected[row, :, y, x] = values
    actual = erase(images, torch.tensor(rows), torch.tensor(BOXES), colour)
    assert np.array_equal(actual.numpy(), expected)
    assert torch.equal(images, before)


def split_mix(seed: int, number: int) -> int:
    """Return output `number` (from 1) of SplitMix64 (Steele, Lea and Flood, 2014), in Python's own integers."""
    value = (seed + number * 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_noise_is_the_normal_quantile_of_splitmix64() -> None:
    # The published first outputs of seed 1234567.
    assert [split_mix(1234567, number) for number in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    for seed in (1234567, 0, 2**63 - 1, 2**63 + 5, 2**64 - 1):
        signed = seed - 2**64 if seed >= 2**63 else seed
        actual = normal_noise(torch.tensor(signed), torch.arange(500))
        uniform = np.array([((split_mix(seed, number) >> 41) + 0.5) / 2**23 for number in range(500)])
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), ndtri(uniform), atol=1e-4, rtol=1e-4)


def test_each_erased_pixel_gets_its_own_noise_and_others_are_unchanged() -> None:
    images = torch.randn(8, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    rows, box_keys = [1, 2, 4, 6, 7], [5, -6, 7, -(2**63), 2**63 - 1]
    expected = images.numpy().copy()
    for row, (top, bottom, left, right), seed in zip(rows, BOXES, box_keys, strict=True):
        number = 0
        for y in range(top, bottom):
            for x in range(left, right):
                for channel in range(3):
                    uniform = ((split_mix(seed % 2**64, number) >> 40) + 0.5) / 2**24
                    expected[row, channel, y, x] = ndtri(uniform)
                    number += 1
    size = 3 * 5 + 2 * 8 + 0 + 7 * 8 + 1
    actual = erase_with_noise(images.clone(), torch.tensor(rows), torch.tensor(BOXES), torch.tensor(box_keys), size)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-5, rtol=1e-5)
    untouched = torch.from_numpy(expected) == images
    assert torch.equal(actual[untouched], images[untouched])
    assert int((~untouched).sum()) == 3 * size
    # Each image alone, and the rows in another order, give the same to the bit.
    for place in range(5):
        top, bottom, left, right = BOXES[place]
        alone = images[rows[place]][None].clone()
        box, seed = torch.tensor([BOXES[place]]), torch.tensor([box_keys[place]])
        area = (bottom - top) * (right - left)
        assert torch.equal(erase_with_noise(alone, torch.tensor([0]), box, seed, area)[0], actual[rows[place]])
    order = [3, 0, 4, 2, 1]
    turned = erase_with_noise(
        images.clone(), torch.tensor(rows)[order], torch.tensor(BOXES)[order], torch.tensor(box_keys)[order], size
    )
    assert torch.equal(turned, actual)


def test_noise_is_standard_normal_and_independent_between_pixels() -> None:
    count, side = 20, 50
    box_keys = torch.from_numpy(keys(0, Purpose.ERASE, 0, np.arange(count)).view(np.int64))
    boxes = torch.tensor([[0, side, 0, side]]).expand(count, 4)
    noise = erase_with_noise(
        torch.zeros(count, 3, side, side), torch.arange(count), boxes, box_keys, count * side * side
    )
    flat = noise.double().flatten()
    error = math.sqrt(1 / len(flat))
    # Five standard errors of the moments of 150,000 values.
    assert abs(flat.mean()) < 5 * error
    assert abs(flat.var() - 1) < 5 * math.sqrt(2) * error
    assert abs((flat**3).mean()) < 5 * math.sqrt(15) * error
    assert abs((flat**4).mean() - 3) < 5 * math.sqrt(96) * error
    assert kstest(flat.numpy(), "norm").statistic < 1.95 * error
    # Neighbours, channels and images have nothing to do with each other.
    for part, other in (
        (noise[..., 1:], noise[..., :-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
    ):
        assert abs(np.corrcoef(part.flatten(), other.flatten())[0, 1]) < 5 / math.sqrt(part.numel())
    for image in noise:
        assert len(image.unique()) > 0.998 * image.numel()


def test_mix_mixes_each_pair() -> None:
    images = torch.randn(8, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    kept, cut = torch.tensor([0.75, 1.0, 0.6, 0.3]), torch.tensor([False, False, True, False])
    boxes = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 4, 2, 6], [0, 0, 0, 0]])
    plain = images.numpy().astype(np.float64)
    expected = np.zeros(plain.shape)
    for slot in range(8):
        pair, other = slot // 2, slot + 1 - 2 * (slot % 2)
        for y in range(5):
            for x in range(6):
                part = float(kept[pair])
                if cut[pair]:
                    part = 0.0 if 1 <= y < 4 and 2 <= x < 6 else 1.0
                expected[slot, :, y, x] = part * plain[slot, :, y, x] + (1 - part) * plain[other, :, y, x]
    actual = mix(images, kept, cut, boxes)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-6)
    assert torch.equal(actual[2:4], images[2:4])
    for pair in range(4):
        slots = slice(2 * pair, 2 * pair + 2)
        alone = mix(images[slots], kept[pair : pair + 1], cut[pair : pair + 1], boxes[pair : pair + 1])
        assert torch.equal(alone, actual[slots])


def test_mixed_targets_match_the_part_of_the_pixels() -> None:
    classes, side = 5, 8
    targets = torch.tensor([3, 0, 1, 1, 4, 2, 0, 4])
    boxes = torch.tensor([[0, 0, 0, 0], [0, 8, 4, 8], [2, 5, 0, 3], [0, 0, 0, 0]])
    cut = torch.tensor([False, True, True, False])
    kept = torch.tensor([0.3, 0.5, 1 - 9 / 64, 1.0])
    # An image of class c has ones in channel c: the mean of a channel is its part in the picture.
    images = torch.nn.functional.one_hot(targets, classes).float()[:, :, None, None].expand(8, classes, side, side)
    actual = mix_targets(targets, classes, kept)
    assert (actual.dtype, actual.shape) == (torch.float32, (8, classes))
    torch.testing.assert_close(actual, mix(images, kept, cut, boxes).mean((2, 3)))
    torch.testing.assert_close(actual.sum(1), torch.ones(8))
    assert actual[2].tolist() == [0, 1, 0, 0, 0]
    assert actual[7].tolist() == [0, 0, 0, 0, 1]
    torch.testing.assert_close(actual[0], torch.tensor([0.7, 0, 0, 0.3, 0]))
    torch.testing.assert_close(actual[1], torch.tensor([0.3, 0, 0, 0.7, 0]))


def test_noise_is_never_infinite() -> None:
    # The key whose first draw has all its bits set.
    assert normal_noise(torch.tensor(-5793709449841631159), torch.tensor(0)).isfinite()
    top = torch.tensor([0, 1, 2**23 - 1])
    values = 1.4142135623730951 * torch.erfinv((2 * top + 1 - 2**23).float() * 2.0**-23)
    assert values.isfinite().all()
    bits = torch.arange(0, 2**23, 997)
    uniform = (2 * bits.double() + 1) / 2**24
    torch.testing.assert_close(normal_of(bits), torch.special.ndtri(uniform).float(), rtol=2e-7, atol=1e-9)
    assert torch.equal(normal_of(2**23 - 1 - bits), -normal_of(bits))


@pytest.mark.parametrize(("size", "side"), [((32, 32), 48), ((28, 20), 16), ((7, 224), 31)])
def test_resizing_is_exact_in_any_order_of_sums(size: tuple[int, int], side: int) -> None:
    images = pixels(2, 3, *size)
    actual = resize(images, side)
    down, across = (_resizing(length, side, images.device, torch.float64) for length in size)
    for weights in (down, across):
        assert (weights.sum(1) == 1).all()
        assert ((weights * 2**22) % 1 == 0).all()
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(0))
    shuffled = (down @ images.double())[..., order] @ across[:, order].mT
    assert torch.equal(actual, shuffled.float())
    theirs = torch.nn.functional.interpolate(images.double(), (side, side), mode="bilinear", antialias=True)
    assert (actual - theirs).abs().max() < 2e-4  # of 255
    white = torch.full((1, 1, *size), 255, dtype=torch.uint8)
    assert (resize(white, side) == 255).all()


@pytest.mark.gpu
def test_a_gpu_gives_the_same_noise_and_sizes_to_the_bit() -> None:
    bits = torch.arange(2**23)
    assert torch.equal(normal_of(bits.cuda()).cpu(), normal_of(bits))
    for size, side in (((32, 32), 48), ((28, 20), 16), ((224, 224), 160)):
        images = pixels(8, 3, *size)
        assert torch.equal(resize(images.cuda(), side).cpu(), resize(images, side))

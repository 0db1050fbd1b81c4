"""Keyed draws of augmentation: the same for any split and order, and distributed as the libraries' own are."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import beta, ks_2samp, kstest
from timm.data.mixup import Mixup, rand_bbox
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from vit_dist.config.fields import AugmentConfig
from vit_dist.data.augmentation.batch import pixels_in
from vit_dist.data.augmentation.draws import Erasures, Mixes, affine, erasures, flips, mixes, shifts
from vit_dist.data.augmentation.ops import mix, mix_targets, warp
from vit_dist.plan.keys import Purpose, keys, uniform

MOVING = AugmentConfig(rotate=25, translate=0.15, scale=0.2, flip=0.4, shift=2)
MIXING = AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.9)
COUNT = 6000
# Kolmogorov and Smirnov's distance is larger once in a thousand times; the seeds are fixed.
ONE, TWO = 1.95 / math.sqrt(COUNT), 1.95 * math.sqrt(2 / COUNT)


def zeros(count: int) -> NDArray[np.int64]:
    return np.zeros(count, np.int64)


def erased(count: int, shape: tuple[int, int, int], *, seed: int = 0, **augment: Any) -> Erasures:
    return erasures(AugmentConfig(**augment), keys(seed, Purpose.ERASE, 0, np.arange(count)), shape)


def mixed(pairs: int, side: tuple[int, int] = (32, 32), *, seed: int = 0, **augment: Any) -> Mixes:
    return mixes(AugmentConfig(**augment), seed, 0, 0, np.ones(2 * pairs, np.float32), side)


@pytest.mark.parametrize("draw", [affine, flips, shifts])
def test_draws_of_a_sample_depend_only_on_its_key(draw: Any) -> None:
    epochs, ids = np.arange(200) // 60, np.arange(200) * 7919 % 1000

    def drawn(seed: int, rows: Any) -> Any:
        arguments = (MOVING, seed, epochs[rows], ids[rows])
        return draw(*arguments, (20, 30)) if draw is affine else draw(*arguments)

    whole = drawn(0, slice(None))
    order = np.random.default_rng(0).permutation(200)
    assert np.array_equal(drawn(0, order), whole[order])
    for size in (1, 16, 150):
        parts = [drawn(0, slice(start, start + size)) for start in range(0, 200, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(drawn(0, [5, 5, 5]), whole[[5, 5, 5]])
    assert not np.array_equal(drawn(1, slice(None)), whole)
    next_epoch = draw(MOVING, 0, epochs + 1, ids, *([(20, 30)] if draw is affine else []))
    assert not np.array_equal(next_epoch, whole)
    assert len(np.unique(whole.reshape(200, -1), axis=0)) == {affine: 200, flips: 2, shifts: 25}[draw]


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_an_erasure_depends_only_on_its_key(mode: str) -> None:
    config = AugmentConfig(erasing=0.5, erasing_mode=mode)  # type: ignore[arg-type]
    sample_keys = keys(0, Purpose.ERASE, 3, np.arange(100))

    def by_key(chosen: Any) -> dict[int, tuple[Any, ...]]:
        actual = erasures(config, sample_keys[chosen], (3, 20, 24))
        fields = (actual.boxes.tolist(), actual.colour.tolist(), actual.noise.tolist())
        assert pixels_in(actual.boxes) == sum((b - t) * (r - left) for t, b, left, r in actual.boxes.tolist())
        return dict(zip(sample_keys[chosen][actual.rows].tolist(), zip(*fields, strict=True), strict=True))

    whole = by_key(np.arange(100))
    assert 30 < len(whole) < 70
    assert by_key(np.random.default_rng(0).permutation(100)) == whole
    parts: dict[int, tuple[Any, ...]] = {}
    for start in range(0, 100, 7):
        parts |= by_key(np.arange(start, min(start + 7, 100)))
    assert parts == whole
    colours = np.array([colour for _, colour, _ in whole.values()])
    assert colours.shape == (len(whole), 3)
    assert len(np.unique(colours)) == (colours.size if mode == "rand" else 1)
    assert len({noise for *_, noise in whole.values()}) == len(whole)
    assert [fields[0] for fields in whole.values()] != erased(100, (3, 20, 24), seed=1, erasing=0.5).boxes.tolist()


def test_mixing_of_a_pair_depends_only_on_its_number_and_position() -> None:
    ones = np.ones(96, np.float32)
    whole = mixes(MIXING, 3, 17, 0, ones, (16, 20))
    assert 0 < whole.cut.sum() < 48
    assert len(np.unique(whole.kept)) > 30
    for micro_size in (2, 6, 16, 32):
        pairs = micro_size // 2
        parts = [mixes(MIXING, 3, 17, first, ones[:micro_size], (16, 20)) for first in range(0, 48, pairs)]
        for name in ("kept", "cut", "boxes"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    for other in (mixes(MIXING, 4, 17, 0, ones, (16, 20)), mixes(MIXING, 3, 18, 0, ones, (16, 20))):
        assert not np.intersect1d(other.kept[other.kept < 1], whole.kept[~whole.cut & (whole.kept < 1)]).size


@pytest.mark.parametrize("augment", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_pair_with_a_filler_is_not_mixed(augment: dict[str, float]) -> None:
    whole = mixed(200, **augment)
    assert (whole.kept < 1).mean() > 0.9
    weight = np.random.default_rng(0).integers(0, 2, 400).astype(np.float32)
    actual = mixes(AugmentConfig(**augment), 0, 0, 0, weight, (32, 32))  # type: ignore[arg-type]
    real = weight.reshape(-1, 2).sum(1) == 2
    assert 30 < real.sum() < 70
    assert (actual.kept[~real] == 1).all()
    assert not actual.cut[~real].any()
    assert not actual.boxes[~real].any()
    for name in ("kept", "cut", "boxes"):
        assert np.array_equal(getattr(actual, name)[real], getattr(whole, name)[real])
    images, targets = torch.randn(400, 1, 32, 32), torch.arange(400) % 7
    kept, cut, boxes = (torch.from_numpy(array) for array in (actual.kept, actual.cut, actual.boxes))
    still = np.repeat(~real, 2)
    assert torch.equal(mix(images, kept, cut, boxes)[still], images[still])
    plain = torch.nn.functional.one_hot(targets, 7).float()
    assert torch.equal(mix_targets(targets, 7, kept)[still], plain[still])


def parameters_of(maps: NDArray[Any], side: int) -> dict[str, NDArray[Any]]:
    """Recover the parameters of a square's maps under torchvision's names, translations in pixels."""
    turned, offset = maps[:, :, :2].astype(float), maps[:, :, 2].astype(float)
    moved = -np.linalg.solve(turned, offset[:, :, None])[:, :, 0] * side / 2
    return {
        "angle": np.degrees(np.arctan2(turned[:, 0, 1], turned[:, 0, 0])),
        "scale": 1 / np.hypot(turned[:, 0, 0], turned[:, 0, 1]),
        "right": moved[:, 0],
        "down": moved[:, 1],
    }


def test_affine_parameters_are_distributed_as_in_random_affine() -> None:
    config, side = AugmentConfig(rotate=25, translate=0.15, scale=0.2), 1000
    actual = parameters_of(affine(config, 0, zeros(COUNT), np.arange(COUNT), (side, side)), side)
    for name, (low, high) in {
        "angle": (-25, 25),
        "scale": (0.8, 1.2),
        "right": (-150, 150),
        "down": (-150, 150),
    }.items():
        assert low - 1e-3 < actual[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < actual[name].max() < high + 1e-3
        assert kstest(actual[name], "uniform", (low, high - low)).statistic < ONE, name
    between = np.corrcoef(list(actual.values())) - np.eye(4)
    assert np.abs(between).max() < 5 / math.sqrt(COUNT)
    torch.manual_seed(0)
    draws = v2.RandomAffine(25, (0.15, 0.15), (0.8, 1.2))
    image = [torch.empty(1, side, side)]
    theirs = [draws.make_params(image) for _ in range(COUNT)]
    reference = {
        "angle": [drawn["angle"] for drawn in theirs],
        "scale": [drawn["scale"] for drawn in theirs],
        "right": [drawn["translate"][0] for drawn in theirs],
        "down": [drawn["translate"][1] for drawn in theirs],
    }
    for name, values in reference.items():
        assert ks_2samp(actual[name], values).statistic < TWO, name


@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 31), (33, 18)])
def test_an_affine_map_gives_torchvisions_result(height: int, width: int) -> None:
    count = 12
    config = AugmentConfig(rotate=60, translate=0.2, scale=0.3, flip=0.5, shift=2)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))
    # Smooth pictures: a place that is off by a hundredth of a pixel changes little.
    images = v2.functional.gaussian_blur(images, [5, 5])
    epoch, index = zeros(count), np.arange(count)
    actual = warp(images, torch.from_numpy(affine(config, 0, epoch, index, (height, width))))
    draws = 2 * uniform(keys(0, Purpose.AFFINE, epoch, index), 4).astype(float) - 1
    mirrored, moved = flips(config, 0, epoch, index), shifts(config, 0, epoch, index)
    assert 0 < mirrored.sum() < count
    for i, (angle, size, right, down) in enumerate(draws):
        image = images[i].float().flip(2) if mirrored[i] else images[i].float()
        expected = v2.functional.affine(
            image,
            angle=60 * angle,
            translate=[0.2 * right * width + moved[i, 1], 0.2 * down * height + moved[i, 0]],
            scale=1 + 0.3 * size,
            shear=[0.0, 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        np.testing.assert_allclose(actual[i].numpy(), expected.numpy(), atol=0.02)


def test_an_affine_map_of_zero_ranges_is_the_identity_with_the_usual_flip_and_shift() -> None:
    epoch, index = zeros(40), np.arange(40)
    plain = affine(AugmentConfig(), 0, epoch, index, (9, 14))
    assert (plain == np.array([[1, 0, 0], [0, 1, 0]], np.float32)).all()
    config = AugmentConfig(flip=0.5, shift=3)
    maps = affine(config, 0, epoch, index, (9, 14))
    mirrored, moved = flips(config, 0, epoch, index), shifts(config, 0, epoch, index)
    assert np.array_equal(maps[:, 0, 0] == -1, mirrored)
    np.testing.assert_allclose(maps[:, 1, 2], -2 * moved[:, 0] / 9, atol=1e-6)
    np.testing.assert_allclose(np.where(mirrored, -1, 1) * maps[:, 0, 2], -2 * moved[:, 1] / 14, atol=1e-6)


def timms_boxes(height: int, width: int, probability: float) -> NDArray[np.int64]:
    """Return (top, bottom, left, right) of the boxes that timm erases in COUNT images."""
    erase = RandomErasing(probability, mode="const", device="cpu")
    random.seed(0)
    boxes = []
    for _ in range(COUNT):
        image = torch.ones(1, height, width)
        erase(image)
        y, x = (image[0].numpy() == 0).nonzero()
        if len(y):
            boxes.append([y.min(), y.max() + 1, x.min(), x.max() + 1])
    return np.array(boxes)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72)])
def test_erasures_have_timms_distribution(height: int, width: int) -> None:
    # Ours have a probability of 1, so that both have enough boxes; which images are erased is tested separately.
    ours, theirs = erased(COUNT, (3, height, width), erasing=1.0).boxes, timms_boxes(height, width, 1.0)
    assert len(ours) > 0.99 * COUNT
    assert abs(len(ours) - len(theirs)) < 0.005 * COUNT

    def measured(boxes: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        top, bottom, left, right = boxes.T
        tall, wide = bottom - top, right - left
        assert (boxes[:, [0, 2]] >= 0).all()
        assert (bottom <= height).all()
        assert (right <= width).all()
        return {
            "area": tall * wide / (height * width),
            "aspect": np.log(tall / wide),
            # Where in its play, which is uniform.
            "top": top / (height - tall),
            "left": left / (width - wide),
        }

    actual, expected = measured(ours), measured(theirs)
    for name in actual:
        assert ks_2samp(actual[name], expected[name]).statistic < TWO, name
        spread = expected[name].std()
        assert abs(actual[name].mean() - expected[name].mean()) < 5 * spread * math.sqrt(2 / COUNT), name
        quantiles = [np.quantile(draws[name], [0.05, 0.25, 0.5, 0.75, 0.95]) for draws in (actual, expected)]
        np.testing.assert_allclose(*quantiles, atol=0.1 * spread)
    assert actual["area"].min() > 0.015
    assert actual["area"].max() < 0.345


def test_the_fraction_of_erased_images_is_as_configured() -> None:
    for probability in (0.25, 0.6):
        rows = erased(COUNT, (3, 64, 64), erasing=probability).rows
        deviation = math.sqrt(probability * (1 - probability) / COUNT)
        assert abs(len(rows) / COUNT - probability) < 5 * deviation
        assert (np.diff(rows) > 0).all()
        assert abs(len(timms_boxes(64, 64, probability)) / COUNT - probability) < 5 * deviation
    assert not len(erased(COUNT, (3, 64, 64), erasing=0.0).rows)
    # The same key erases the same box, however likely that was.
    few, many = (erased(COUNT, (3, 64, 64), erasing=probability) for probability in (0.25, 0.6))
    assert set(few.rows.tolist()) < set(many.rows.tolist())
    assert np.array_equal(few.boxes, many.boxes[np.isin(many.rows, few.rows)])


def test_erasing_colours_are_standard_normal() -> None:
    colours = erased(COUNT, (3, 64, 64), erasing=1.0, erasing_mode="rand").colour
    assert colours.dtype == np.float32
    assert kstest(colours.ravel(), "norm").statistic < 1.95 / math.sqrt(colours.size)
    assert np.abs(np.corrcoef(colours.T) - np.eye(3)).max() < 5 / math.sqrt(len(colours))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.0, 4.0])
def test_the_part_kept_by_mixup_has_a_beta_distribution(alpha: float) -> None:
    actual = mixed(COUNT, mixup=alpha)
    assert not actual.cut.any()
    assert not actual.boxes.any()
    assert actual.kept.dtype == np.float32
    assert 0 <= actual.kept.min() < actual.kept.max() <= 1
    np.random.seed(0)
    assert ks_2samp(actual.kept, np.random.beta(alpha, alpha, COUNT).astype(np.float32)).statistic < TWO
    timms, _ = Mixup(mixup_alpha=alpha, mode="pair")._params_per_elem(COUNT)
    assert ks_2samp(actual.kept, timms).statistic < TWO


def timms_parts(side: tuple[int, int], **mixup: Any) -> NDArray[Any]:
    """Return λ of COUNT pairs mixed by timm, after CutMix's correction, read from the targets."""
    mixing = Mixup(mode="pair", label_smoothing=0.0, num_classes=2, **mixup)
    images, targets = torch.zeros(2 * COUNT, 1, *side), torch.arange(2 * COUNT) // COUNT
    np.random.seed(0)
    return np.asarray(mixing(images, targets)[1][:COUNT, 0].numpy())


@pytest.mark.parametrize("side", [(32, 32), (12, 30)], ids=["square", "wide"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_part_kept_by_cutmix_equals_timms_after_its_correction(alpha: float, side: tuple[int, int]) -> None:
    actual = mixed(COUNT, side, cutmix=alpha)
    assert actual.cut.all()
    top, bottom, left, right = actual.boxes.T
    area = (bottom - top) * (right - left) / (side[0] * side[1])
    np.testing.assert_allclose(actual.kept, 1 - area, atol=1e-6)
    theirs = timms_parts(side, mixup_alpha=0.0, cutmix_alpha=alpha)
    assert ks_2samp(actual.kept, theirs).statistic < TWO
    assert abs(actual.kept.mean() - theirs.mean()) < 5 * theirs.std() * math.sqrt(2 / COUNT)


def test_mixup_and_cutmix_together_are_distributed_as_timms() -> None:
    shares = {"mix_prob": 0.7, "mix_switch": 0.3}
    actual = mixed(COUNT, mixup=0.8, cutmix=1.0, **shares)
    theirs = timms_parts((32, 32), mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, switch_prob=0.3)
    assert ks_2samp(actual.kept, theirs).statistic < TWO
    deviation = 5 * math.sqrt(0.25 / COUNT)
    assert abs((actual.cut | (actual.kept < 1)).mean() - 0.7) < deviation
    assert abs(actual.cut.mean() - 0.7 * 0.3) < deviation
    assert not mixed(COUNT, mixup=0.8, cutmix=1.0, mix_switch=0.0).cut.any()
    assert mixed(COUNT, mixup=0.8, cutmix=1.0, mix_switch=1.0).cut.all()
    assert (mixed(COUNT, mixup=0.8, cutmix=1.0, mix_prob=0.0).kept == 1).all()


@pytest.mark.parametrize("side", [(9, 9), (7, 12)])
def test_a_cutmix_box_equals_timms_for_the_same_area_and_centre(side: tuple[int, int]) -> None:
    height, width = side
    # Seeds under which timm draws a middle.
    seed_of: dict[tuple[int, int], int] = {}
    for seed in range(3000):
        np.random.seed(seed)
        seed_of.setdefault((np.random.randint(height), np.random.randint(width)), seed)
    assert len(seed_of) == height * width
    pairs = 1500
    actual = mixed(pairs, side, cutmix=0.7)
    draws = uniform(keys(0, Purpose.MIX, 0, np.arange(pairs)), 5).astype(float)
    for pair, (_, _, part, y, x) in enumerate(draws):
        np.random.seed(seed_of[math.floor(y * height), math.floor(x * width)])
        assert rand_bbox((3, height, width), beta.ppf(part, 0.7, 0.7)) == tuple(actual.boxes[pair].tolist())


def test_centres_of_cutmix_boxes_are_uniform() -> None:
    boxes = mixed(COUNT, (8, 8), cutmix=1000.0).boxes
    # A half of the area is 5 × 5 pixels of 8 × 8: cut at the border, each middle shows.
    edges, counts = np.unique(boxes, axis=0, return_counts=True)
    assert len(edges) == 64
    # 63 degrees of freedom: beyond 104 once in a thousand times.
    assert ((counts - COUNT / 64) ** 2 / (COUNT / 64)).sum() < 104

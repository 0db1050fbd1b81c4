"""The contrastive losses and their derivatives against autograd, and against open_clip's where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vit_dist.config.fields import LossConfig
from vit_dist.models import contrastive_loss
from vit_dist.models.contrastive_loss import ContrastiveLoss, Derivatives, Pairs

N = 12


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return embeddings of images and of texts, the logarithm of the scale, and the bias, in float64."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(N, 5, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    scale, bias = torch.tensor(math.log(7.0), dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    return tuple(each.requires_grad_() for each in (image, text, scale, bias))  # type: ignore[return-value]


def clip(image: Tensor, text: Tensor, scale: Tensor, _: Tensor) -> Tensor:
    logits, labels = scale.exp() * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def siglip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale.exp() * image @ text.T + bias
    return -F.logsigmoid(logits * (2 * torch.eye(len(image)) - 1)).sum() / len(image)


def ours(name: str, ids: Tensor | None = None, **config: Any) -> Derivatives:
    image, text, scale, bias = (each.detach() for each in inputs())
    pairs = Pairs(image, text, torch.ones(N, dtype=torch.float64), torch.arange(N) if ids is None else ids)
    loss, offset = ContrastiveLoss(LossConfig(name=name, **config)), bias if name == "siglip" else None
    return loss.derivatives(pairs, torch.arange(N), scale.exp(), offset, lambda own: own)


def assert_equal(found: Derivatives, loss: Callable[..., Tensor], *, has_bias: bool) -> None:
    leaves = inputs()
    value = loss(*leaves)
    value.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.losses.mean(), value.detach(), rtol=1e-12, atol=0)
    expected = [leaf.grad for leaf in leaves]
    for actual, wanted in zip((found.image, found.text, found.log_scale), expected[:3], strict=True):
        torch.testing.assert_close(actual / N, wanted, rtol=1e-11, atol=1e-14)
    if has_bias:
        torch.testing.assert_close(found.bias / N, expected[3], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("duplicates", ["positives", "mask"])
@pytest.mark.parametrize("block", [1, 3 * N, 2**20], ids=["a row", "three rows", "all"])
def test_without_equal_captions_they_are_the_published_losses(
    name: str, duplicates: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contrastive_loss.BLOCKS, "cpu", block)
    found = ours(name, duplicates=duplicates)
    assert_equal(found, clip if name == "clip" else siglip, has_bias=name == "siglip")


def test_where_all_captions_are_equal_nothing_is_compared_that_is_masked() -> None:
    same = torch.zeros(N, dtype=torch.int64)
    masked = ours("clip", same, duplicates="mask")
    for nothing in (masked.losses, masked.image, masked.text, masked.log_scale):
        torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-13)
    spread = ours("clip", same)
    assert spread.losses.mean() > math.log(N)  # the target is even, the softmax is not
    positives = ours("siglip", same, duplicates="mask")
    image, text, scale, bias = inputs()
    alone = -F.logsigmoid(scale.exp() * (image * text).sum(1) + bias)
    torch.testing.assert_close(positives.losses, alone.detach(), rtol=1e-12, atol=0)


def test_they_equal_open_clips() -> None:
    theirs = pytest.importorskip("open_clip").loss
    assert_equal(ours("clip"), lambda i, t, s, _: theirs.ClipLoss()(i, t, s.exp()), has_bias=False)
    assert_equal(ours("siglip"), lambda i, t, s, b: theirs.SigLipLoss()(i, t, s.exp(), b), has_bias=True)

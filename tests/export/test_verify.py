"""The comparison of logits, its random images, and the silence of other libraries."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch

from tests.export.models import small_model
from vit_dist import UserError
from vit_dist.export.verify import check_same_logits, random_pixels, silence_libraries


def test_the_largest_difference_is_measured() -> None:
    expected = torch.tensor([[3.0, -50.0], [1.0, 2.0]])
    assert check_same_logits(expected + torch.tensor([[0.25, 0.0], [0.0, -0.5]]), expected, 0.01, "it", "that") == 0.5
    assert check_same_logits(expected[:, :1], expected[:, :1], 0.01, "it", "that") == 0


@pytest.mark.parametrize(
    ("logits", "problem"),
    [
        ([[0.0, 0.12], [0.0, 0.02]], "gives other logits: they differ by 0.12, and 0.1 is allowed"),
        ([[float("nan"), 0.15], [0.0, 0.02]], "gives other logits: they differ by nan, and 0.1 is allowed"),
        ([[0.09, 0.08], [0.0, 0.02]], "predicts other classes"),
        ([[0.0, 0.15]], r"gives \[1, 2\] logits, not \[2, 2\]"),
    ],
)
def test_other_logits_are_refused(logits: list[list[float]], problem: str) -> None:
    expected = torch.tensor([[0.0, 0.15], [0.0, 0.02]])
    if "0.12" in problem:
        expected[0, 1] = 0.24
    with pytest.raises(UserError, match=rf"^model.name: it {problem}: export that instead$"):
        check_same_logits(torch.tensor(logits), expected, 0.1, "it", "that")
    # If the two largest logits differ only by rounding, either class may be predicted.
    assert check_same_logits(
        torch.tensor([[0.0, 0.15], [0.02, 0.0]]), torch.tensor([[0.0, 0.15], [0.0, 0.02]]), 0.1, "it", "that"
    )


def test_images_are_the_same_at_every_call_and_normalised_as_in_training() -> None:
    trained = small_model(channels=2)
    pixels = random_pixels(trained, 50)
    state = torch.get_rng_state()
    assert torch.equal(pixels, random_pixels(trained, 50))
    assert torch.equal(state, torch.get_rng_state())
    assert (pixels.shape, pixels.dtype) == ((50, 2, 12, 12), torch.uint8)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (trained.preprocessing.mean, trained.preprocessing.std)
    )
    torch.testing.assert_close(
        trained.preprocessing.normalise(pixels), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5
    )


def test_other_libraries_are_silent_only_inside_the_block(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(KeyError), silence_libraries():
        raise _make_noise()
    assert capfd.readouterr() == ("", "")
    assert (caplog.records, list(recwarn)) == ([], [])
    _make_noise()
    assert capfd.readouterr().out == "out\n"
    assert [record.message for record in caplog.records] == ["logged"]
    assert [str(warning.message) for warning in recwarn] == ["warned"]


def _make_noise() -> KeyError:
    print("out")
    print("err", file=sys.stderr)
    logging.getLogger("another").error("logged")
    warnings.warn("warned", stacklevel=1)
    return KeyError("raised")

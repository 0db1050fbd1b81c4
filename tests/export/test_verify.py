"""What may differ beside a model, and what may not."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch

from tests.exports_for_tests import of_no_run
from vit_dist import UserError
from vit_dist.errors import one_line
from vit_dist.export.verify import check_same_logits, random_pixels, silence_libraries


def test_the_largest_difference_is_measured() -> None:
    expected = torch.tensor([[3.0, -50.0], [1.0, 2.0]])
    assert check_same_logits(expected + torch.tensor([[0.25, 0.0], [0.0, -0.5]]), expected, 0.01, "it", "that") == 0.5
    assert check_same_logits(expected[:, :1], expected[:, :1], 0.01, "it", "that") == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([[0.0, 0.12], [0.0, 0.02]], "gives other logits, 0.12 apart where 0.1 may be"),
        ([[float("nan"), 0.15], [0.0, 0.02]], "gives other logits, nan apart where 0.1 may be"),
        ([[0.09, 0.08], [0.0, 0.02]], "chooses other classes"),
        ([[0.0, 0.15]], r"gives \[1, 2\] logits, not \[2, 2\]"),
    ],
)
def test_what_is_too_much_is_refused(found: list[list[float]], said: str) -> None:
    expected = torch.tensor([[0.0, 0.15], [0.0, 0.02]])
    if "0.12" in said:
        expected[0, 1] = 0.24
    with pytest.raises(UserError, match=rf"^model.name: it {said}: export that instead$"):
        check_same_logits(torch.tensor(found), expected, 0.1, "it", "that")
    # Where the best two are as near as rounding, either may be chosen.
    assert check_same_logits(
        torch.tensor([[0.0, 0.15], [0.02, 0.0]]), torch.tensor([[0.0, 0.15], [0.0, 0.02]]), 0.1, "it", "that"
    )


def test_images_are_the_same_at_every_call_and_normalised_as_in_training() -> None:
    made = of_no_run(channels=2)
    pixels = random_pixels(made, 50)
    state = torch.get_rng_state()
    assert torch.equal(pixels, random_pixels(made, 50))
    assert torch.equal(state, torch.get_rng_state())
    assert (pixels.shape, pixels.dtype) == ((50, 2, 12, 12), torch.uint8)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    mean, std = (torch.tensor(one)[:, None, None] for one in (made.preprocessing.mean, made.preprocessing.std))
    torch.testing.assert_close(made.preprocessing.normalise(pixels), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)


def test_others_are_quiet_and_heard_again(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(KeyError), silence_libraries():
        raise _noisily()
    assert capfd.readouterr() == ("", "")
    assert (caplog.records, list(recwarn)) == ([], [])
    _noisily()
    assert capfd.readouterr().out == "out\n"
    assert [record.message for record in caplog.records] == ["logged"]
    assert [str(one.message) for one in recwarn] == ["warned"]


def _noisily() -> KeyError:
    print("out")
    print("err", file=sys.stderr)
    logging.getLogger("another").error("logged")
    warnings.warn("warned", stacklevel=1)
    return KeyError("raised")


def test_errors_are_told_on_one_line() -> None:
    assert one_line(ValueError("one\n  two")) == "one two"
    assert one_line(ValueError("x" * 300), 200) == "x" * 200
    assert one_line(ValueError()) == "ValueError"

"""What cannot fit into this machine's memory is refused before it is allocated."""

from __future__ import annotations

import os

import pytest

from vit_dist import UserError
from vit_dist.runtime.devices import machine_memory
from vit_dist.sizing.limits import check_images, check_parameters


def test_the_machine_says_how_much_memory_it_has() -> None:
    there = machine_memory()
    assert there is not None
    assert 2**28 < there <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_what_is_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.sizing.limits.machine_memory", lambda: 2**34)
    check_images(1000, (3, 512, 512), "batch.micro_size")
    with pytest.raises(UserError) as error:
        check_images(100_000, (3, 512, 512), "batch.micro_size")
    assert str(error.value) == (
        "batch.micro_size: 100,000 images of 512 pixels would take 366 GiB, and this machine has 16: set it smaller"
    )
    check_parameters(2**32, "model.width")
    with pytest.raises(UserError) as error:
        check_parameters(2**33, "model.width")
    assert str(error.value) == (
        "model.width: the model's 8.59G parameters would take 32 GiB, and this machine has 16: set a smaller model"
    )
    monkeypatch.setattr("vit_dist.sizing.limits.machine_memory", lambda: None)
    check_parameters(2**60, "model.width")

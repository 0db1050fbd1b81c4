"""Copies among images: against a comparison of each image with each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vit_dist.checks.copies import Copies, find_copies, to_leave_out
from vit_dist.checks.images import RECORD, Flag, Problem, Records
from vit_dist.checks.looks import ALIKE_BITS

Same = Callable[[int, int], bool]


def records_of(content: list[int], looks: list[int | None], bad: tuple[int, ...] = ()) -> Records:
    records = np.zeros(len(content), RECORD)
    for number, (of_one, look) in enumerate(zip(content, looks, strict=True)):
        records[number]["content"] = (of_one, 7)
        if look is not None:
            records[number]["look"], records[number]["flags"] = look, Flag.HAS_LOOK
    for number in bad:
        records[number]["problem"] = Problem.UNREADABLE
    return records


def by_hand(same: Same, splits: list[int], labels: list[int]) -> tuple[set[int], set[int], set[int]]:
    """Return the images that are leaks, conflicts and repeats, by comparing each with each."""
    every = range(len(splits))
    leaks = {i for i in every for j in every if same(i, j) and splits[j] < splits[i]}
    conflicts = {i for i in every for j in every if same(i, j) and labels[i] != labels[j]}
    repeats = {i for i in every for j in every if same(i, j) and splits[i] == splits[j] and j < i} - conflicts
    return leaks, conflicts, repeats


def check_twins(copies: Copies, same: Same, splits: list[int], labels: list[int]) -> None:
    """Check that the other one of each image is what it is said to be."""
    for twins in copies:
        assert twins.images.tolist() == sorted(twins.images.tolist())
        assert all(same(i, j) for i, j in zip(twins.images.tolist(), twins.others.tolist(), strict=True))
    assert all(splits[j] < splits[i] for i, j in zip(*map(np.ndarray.tolist, copies.leaks), strict=True))
    assert all(labels[i] != labels[j] for i, j in zip(*map(np.ndarray.tolist, copies.conflicts), strict=True))
    assert all(splits[i] == splits[j] and j < i for i, j in zip(*map(np.ndarray.tolist, copies.repeats), strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_copies_are_those_of_a_comparison_of_each_with_each(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = 200
    splits = sorted(generator.choice(3, count, p=[0.7, 0.1, 0.2]).tolist())
    base = generator.integers(0, 2**62, 90, dtype=np.uint64).tolist()
    content = generator.integers(0, 160, count).tolist()
    labels = [of_one % 90 % 3 if generator.random() < 0.9 else 3 for of_one in content]
    # Images of one content look the same; others are alike where they are of one base and few of its bits are flipped.
    looks_of = {
        number: int(base[number % 90]) ^ sum(1 << int(bit) for bit in generator.permutation(64)[: number % 6])
        for number in range(160)
    }
    looks = [looks_of[of_one] if of_one % 11 else None for of_one in content]
    bad = tuple(generator.integers(0, count, 5).tolist())
    records = records_of(content, looks, bad)

    def same(i: int, j: int) -> bool:
        return i != j and content[i] == content[j] and i not in bad and j not in bad

    def alike(i: int, j: int) -> bool:
        a, b = looks[i], looks[j]
        usable = i != j and i not in bad and j not in bad
        return usable and a is not None and b is not None and (a ^ b).bit_count() <= ALIKE_BITS

    copies = find_copies(records, np.asarray(splits, np.uint8), np.asarray(labels))
    exact = by_hand(same, splits, labels)
    assert tuple(set(twins.images.tolist()) for twins in copies.exact) == exact
    check_twins(copies.exact, same, splits, labels)
    leaks, conflicts, repeats = by_hand(alike, splits, labels)
    of_looks = (leaks - exact[0], conflicts - exact[1], repeats - exact[2] - exact[1])
    assert tuple(set(twins.images.tolist()) for twins in copies.alike) == of_looks
    check_twins(copies.alike, alike, splits, labels)
    assert min(map(len, [*exact, *of_looks])) > 0
    gone = to_leave_out(copies, np.asarray(splits, np.uint8))
    kept = [i for i in range(count) if i not in gone and i not in bad]
    again = find_copies(records[kept], np.asarray(splits, np.uint8)[kept], np.asarray(labels)[kept])
    assert len(again.exact.leaks) == len(again.exact.conflicts) == 0
    assert len(again.exact.repeats) > 0
    lost = {content[i] for i in range(count) if i not in bad} - {content[i] for i in kept}
    assert lost == {content[i] for i in exact[1]}


def test_no_images_that_can_be_used_have_no_copies() -> None:
    copies = find_copies(records_of([1, 1], [3, 3], (0, 1)), np.zeros(2, np.uint8), np.zeros(2, np.int64))
    assert [len(twins) for twins in (*copies.exact, *copies.alike)] == [0] * 6
    assert len(to_leave_out(copies, np.zeros(2, np.uint8))) == 0

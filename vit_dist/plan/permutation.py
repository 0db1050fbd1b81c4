"""The order of samples within an epoch: a keyed permutation computed on demand."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vit_dist.plan.keys import Ints, Keys, Purpose, key, mix_bits

_FEISTEL_ROUNDS = 6


CHUNK = 16_384


@lru_cache(maxsize=8)
def order_chunk(seed: int, epoch: int, samples: int, chunk: int) -> Ints:
    """Return the indices at one chunk of an epoch's places, computed together since a call costs more than a place."""
    places = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, samples), dtype=np.int64)
    return permute(places, samples, key(seed, Purpose.ORDER, epoch))


def permute(places: Ints, length: int, order_key: int) -> Ints:
    """Return the images of `places` under a keyed permutation of range(length), computed on demand.

    A balanced Feistel network on the next power of four, with cycle-walking (Black and Rogaway, "Ciphers
    with Arbitrary Finite Domains", 2002): O(1) memory for any length.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    rounds = [np.uint64(key(order_key, number)) for number in range(_FEISTEL_ROUNDS)]

    def encrypt(values: Keys) -> Keys:
        left, right = values >> shift, values & mask
        with np.errstate(over="ignore"):
            for round_key in rounds:
                left, right = right, left ^ (mix_bits(right + round_key) & mask)
        return (left << shift) | right

    values = encrypt(places.astype(np.uint64))
    outside = np.flatnonzero(values >= length)
    while outside.size:
        values[outside] = encrypt(values[outside])
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)

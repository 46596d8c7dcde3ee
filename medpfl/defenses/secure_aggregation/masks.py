"""Masks: a seed of 32 bytes expanded to numbers that are uniform over the ring.

By Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a generator in
counter mode: half of the seed is its key, the other half the upper half of its counter. It passes
the usual tests of randomness and is fast, but is no cipher: a deployment takes AES in counter mode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

Ring = NDArray[np.unsignedinteger[Any]]
"""Numbers modulo 2^32 or 2^64, as the dtype wraps them."""

SEED_BYTES = 32
# Entries expanded at a time: what stays in a core's cache between drawing and adding.
_BLOCK = 2**15


def add_mask(into: Ring, seed: bytes, *, negative: bool = False) -> None:
    """Add the mask of a seed to ring entries, or subtract it; in place.

    Args:
        into: `(D,)` of uint32 or uint64.
        seed: 32 bytes.
        negative: whether to subtract.
    """
    stream = _stream(seed)
    for start in range(0, len(into), _BLOCK):
        block = into[start : start + _BLOCK]
        mask = _entries(stream, len(block), into.dtype)
        if negative:
            block -= mask
        else:
            block += mask


def _stream(seed: bytes) -> Philox:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a mask's seed has {SEED_BYTES} bytes, not {len(seed)}")
    words = np.frombuffer(seed, dtype="<u8").astype(np.uint64)
    return Philox(key=words[:2], counter=np.array([0, 0, *words[2:]], dtype=np.uint64))


def _entries(stream: Philox, count: int, dtype: np.dtype[Any]) -> Ring:
    """Return the next entries; every word of 64 bits holds one or two."""
    words = stream.random_raw(-(-count * dtype.itemsize // 8))
    return np.asarray(words, dtype="<u8").view(dtype.newbyteorder("<"))[:count]

"""Shamir's secret sharing: any t of n shares give the secret, fewer say nothing about it.

The secret is the constant of a random polynomial of degree t - 1 over a prime field, a share its
value at the holder's point (Shamir 1979, "How to share a secret").
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from math import prod

PRIME = 2**256 + 297
"""The smallest prime that 32 bytes lie below."""
SHARE_BYTES = 33
"""Of one value of the polynomial."""
_SECRET_BYTES = 32


def split(secret: bytes, points: Collection[int], quorum: int, seed: bytes) -> dict[int, int]:
    """Return `{point: share}`.

    Args:
        secret: 32 bytes.
        points: the holders' points, distinct and positive.
        quorum: how many shares give the secret, 1 to the number of points.
        seed: what the polynomial's other coefficients are made from, known to nobody else.

    Raises:
        ValueError: no such sharing.
    """
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"a secret has {_SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= quorum <= len(points) or len(set(points)) < len(points) or min(points) < 1:
        raise ValueError(
            f"{quorum} of {len(points)} shares at {list(points)}: there is no such sharing"
        )
    coefficients = [int.from_bytes(secret, "big"), *_coefficients(seed, quorum - 1)]
    return {point: _value(coefficients, point) for point in points}


def reconstruct(shares: Mapping[int, int]) -> bytes:
    """Return the 32 bytes that were split, from `{point: share}` of a quorum or more of holders.

    Raises:
        ValueError: what comes out has more than 32 bytes. Too few shares, or shares of several
            secrets, nearly always give some other 32 bytes: whoever can must check them.
    """
    weights = _weights_at_zero(tuple(shares))
    secret = sum(w * share for w, share in zip(weights, shares.values(), strict=True)) % PRIME
    if secret >= 2 ** (8 * _SECRET_BYTES):
        raise ValueError("these shares are not of one secret, or too few")
    return secret.to_bytes(_SECRET_BYTES, "big")


def _coefficients(seed: bytes, count: int) -> list[int]:
    """Return numbers below the prime, from 64 bytes each: equally likely to 2^-255."""
    stream = hashlib.shake_256(seed).digest(64 * count)
    return [int.from_bytes(stream[64 * i : 64 * (i + 1)], "big") % PRIME for i in range(count)]


def _value(coefficients: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = value * point + coefficient
    return value % PRIME  # once: points are small, and dividing takes longer than multiplying


@lru_cache(maxsize=16)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return what each share counts for in the constant (Lagrange), the same for all secrets."""
    return tuple(
        prod(other for other in points if other != point)
        * pow(prod(other - point for other in points if other != point), -1, PRIME)
        % PRIME
        for point in points
    )

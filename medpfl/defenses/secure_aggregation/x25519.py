"""Key agreement: Diffie-Hellman on Curve25519, as RFC 7748 writes it down.

In plain Python, whose timing depends on the key: a simulation of the protocol, not audited
cryptography.
"""

from __future__ import annotations

KEY_BYTES = 32
"""Of a private key, a public key and a shared secret."""

_P = 2**255 - 19
_A24 = 121_665
_BASE = (9).to_bytes(KEY_BYTES, "little")


def public_key(private: bytes) -> bytes:
    """Return the public key of a private one; both 32 bytes, any 32 bytes are a private key."""
    return _multiply(private, _BASE)


def agree(private: bytes, public: bytes) -> bytes:
    """Return the secret, 32 bytes, that a private key shares with the owner of a public one.

    Raises:
        ValueError: the public key is of low order, so that the secret would be zero whatever the
            private key is (RFC 7748, section 6.1).
    """
    secret = _multiply(private, public)
    if not any(secret):
        raise ValueError("this public key gives everybody the same secret: it is refused")
    return secret


def _multiply(private: bytes, public: bytes) -> bytes:
    """Return the u-coordinate of a multiple of a point, by the Montgomery ladder."""
    scalar = _clamped(private)
    u = int.from_bytes(public, "little") % 2**255 % _P
    x_low, z_low, x_high, z_high = 1, 0, u, 1
    swapped = 0
    for place in reversed(range(255)):
        bit = scalar >> place & 1
        if bit != swapped:
            x_low, x_high, z_low, z_high = x_high, x_low, z_high, z_low
            swapped = bit
        plus, minus = x_low + z_low, x_low - z_low
        plus_squared, minus_squared = plus * plus % _P, minus * minus % _P
        difference = plus_squared - minus_squared
        one, other = (x_high - z_high) * plus % _P, (x_high + z_high) * minus % _P
        x_high = (one + other) ** 2 % _P
        z_high = u * (one - other) ** 2 % _P
        x_low = plus_squared * minus_squared % _P
        z_low = difference * (plus_squared + _A24 * difference) % _P
    if swapped:
        x_low, z_low = x_high, z_high
    return (x_low * pow(z_low, _P - 2, _P) % _P).to_bytes(KEY_BYTES, "little")


def _clamped(private: bytes) -> int:
    if len(private) != KEY_BYTES:
        raise ValueError(f"a private key has {KEY_BYTES} bytes, not {len(private)}")
    scalar = int.from_bytes(private, "little")
    return scalar & ~7 & (2**255 - 1) | 2**254

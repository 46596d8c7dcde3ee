"""Keys from secrets: HKDF with SHA-256, RFC 5869."""

from __future__ import annotations

import hashlib
import hmac

_HASH_BYTES = 32


def derive(secret: bytes, purpose: bytes, *, length: int = 32, salt: bytes = b"") -> bytes:
    """Return bytes that depend on the secret and on what they are for.

    Args:
        secret: what nobody else has.
        purpose: tells the keys made from one secret apart.
        length: how many bytes, 1 to 8,160.
        salt: public; none by default.

    Raises:
        ValueError: more bytes than HKDF has.
    """
    if not 1 <= length <= 255 * _HASH_BYTES:
        raise ValueError(f"HKDF gives 1 to {255 * _HASH_BYTES} bytes, not {length}")
    key = _hmac(salt or bytes(_HASH_BYTES), secret)
    block, made = b"", b""
    for number in range(1, -(-length // _HASH_BYTES) + 1):
        block = _hmac(key, block + purpose + bytes([number]))
        made += block
    return made[:length]


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)

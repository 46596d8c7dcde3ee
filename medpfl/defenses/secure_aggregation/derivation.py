"""Keys from secrets: HKDF with SHA-256 and no salt, RFC 5869."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that depend on the secret and on what they are for.

    Args:
        secret: what nobody else has.
        purpose: tells the keys made from one secret apart.
    """
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)

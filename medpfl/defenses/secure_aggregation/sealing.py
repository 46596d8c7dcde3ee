"""Messages from client to client that the server forwards and cannot read.

AES-256 in Galois/counter mode. The paper asks for any authenticated encryption (Bonawitz et al.
2017, section 3.4).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12
TAG_BYTES = 16


def seal(key: bytes, nonce: bytes, message: bytes) -> bytes:
    """Return a sealed message, `TAG_BYTES` longer.

    Args:
        key: 32 bytes that sender and recipient have, new every round.
        nonce: `NONCE_BYTES` that say from whom to whom; twice under one key, they would give both
            messages away.
        message: what to hide.
    """
    return AESGCM(key).encrypt(nonce, message, None)


def unseal(key: bytes, nonce: bytes, sealed: bytes) -> bytes:
    """Return what was sealed with the same key and nonce.

    Raises:
        ValueError: it was not, or somebody changed it on the way.
    """
    try:
        return AESGCM(key).decrypt(nonce, sealed, None)
    except InvalidTag as error:
        raise ValueError(
            "a sealed message was changed on its way, or is for somebody else"
        ) from error

"""Messages from client to client that the server forwards and cannot read.

Encrypted, then authenticated: a key stream of SHAKE-256, and HMAC-SHA-256 cut to 16 bytes. The
paper asks for any authenticated encryption (Bonawitz et al. 2017, section 3.4).
"""

from __future__ import annotations

import hashlib
import hmac

from medpfl.defenses.secure_aggregation.derivation import derive

TAG_BYTES = 16


def seal(secret: bytes, purpose: bytes, message: bytes) -> bytes:
    """Return a sealed message, `TAG_BYTES` longer.

    Args:
        secret: shared by sender and recipient.
        purpose: sender, recipient and round; the same one twice would use a key stream twice.
        message: what to hide.
    """
    hidden = _xor(message, derive(secret, b"encrypt" + purpose))
    return hidden + _tag(hidden, derive(secret, b"authenticate" + purpose))


def unseal(secret: bytes, purpose: bytes, sealed: bytes) -> bytes:
    """Return what was sealed with the same secret and purpose.

    Raises:
        ValueError: it was not, or somebody changed it on the way.
    """
    hidden, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
    if not hmac.compare_digest(tag, _tag(hidden, derive(secret, b"authenticate" + purpose))):
        raise ValueError("a sealed message was changed on its way, or is for somebody else")
    return _xor(hidden, derive(secret, b"encrypt" + purpose))


def _xor(message: bytes, key: bytes) -> bytes:
    stream = hashlib.shake_256(key).digest(len(message))
    return bytes(one ^ other for one, other in zip(message, stream, strict=True))


def _tag(hidden: bytes, key: bytes) -> bytes:
    return hmac.digest(key, hidden, hashlib.sha256)[:TAG_BYTES]

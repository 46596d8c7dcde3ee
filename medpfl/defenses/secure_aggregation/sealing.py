"""Messages from client to client that the server forwards and cannot read.

AES-256 in Galois/counter mode. The paper asks for any authenticated encryption (Bonawitz et al.
2017, section 3.4).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medpfl.defenses.secure_aggregation.derivation import derive

TAG_BYTES = 16
# A key seals one message alone, so that no nonce ever comes twice under it.
_NONCE = bytes(12)


def seal(secret: bytes, purpose: bytes, message: bytes) -> bytes:
    """Return a sealed message, `TAG_BYTES` longer.

    Args:
        secret: shared by sender and recipient, new every round.
        purpose: sender and recipient; the same one twice would use a key twice.
        message: what to hide.
    """
    return _cipher(secret, purpose).encrypt(_NONCE, message, None)


def unseal(secret: bytes, purpose: bytes, sealed: bytes) -> bytes:
    """Return what was sealed with the same secret and purpose.

    Raises:
        ValueError: it was not, or somebody changed it on the way.
    """
    try:
        return _cipher(secret, purpose).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise ValueError(
            "a sealed message was changed on its way, or is for somebody else"
        ) from error


def _cipher(secret: bytes, purpose: bytes) -> AESGCM:
    return AESGCM(derive(secret, b"seal" + purpose))

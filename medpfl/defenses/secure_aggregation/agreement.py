"""Key pairs, and the secrets that two clients agree on: Diffie-Hellman on Curve25519, RFC 7748."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey


@dataclass(frozen=True)
class KeyPair:
    """A private key and its public one.

    Args:
        private: 32 bytes, any of which are a key.
    """

    private: bytes = field(repr=False)
    public: bytes = field(init=False)
    _key: X25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = X25519PrivateKey.from_private_bytes(self.private)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "public", key.public_key().public_bytes_raw())

    def agree(self, public: bytes) -> bytes:
        """Return the secret shared with the owner of a public key; both are 32 bytes.

        Raises:
            ValueError: the public key is of low order, so that the secret would be zero whatever
                the private key is (RFC 7748, section 6.1), or has not 32 bytes.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ValueError(f"nothing secret can be agreed on with key {public.hex()}") from error

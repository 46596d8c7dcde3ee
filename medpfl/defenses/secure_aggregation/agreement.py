"""Key pairs, and the secrets that two clients agree on: Diffie-Hellman on Curve25519, RFC 7748."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey


class KeyPair:
    """A private key and its public one.

    Args:
        private: 32 bytes, any of which are a key.
    """

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

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

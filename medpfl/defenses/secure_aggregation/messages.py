"""What clients and the server send each other, and how many bytes that takes on the wire.

A client's number takes 4 bytes wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medpfl.defenses.secure_aggregation.sharing import SHARE_BYTES

ID_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """What a client advertises.

    Args:
        sealing: agrees on keys for messages between clients.
        masking: agrees on the seeds of pairwise masks.
    """

    sealing: bytes
    masking: bytes

    @property
    def size(self) -> int:
        """Bytes of the keys and of whose they are."""
        return ID_BYTES + len(self.sealing) + len(self.masking)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """One holder's shares of one client's two secrets: of the server, it will see one at most.

    Args:
        self_seed: of the seed of the client's own mask.
        masking_key: of the private key behind its pairwise masks.
    """

    self_seed: int
    masking_key: int

    def to_bytes(self, sender: int, holder: int) -> bytes:
        """Return what is sealed, with the two clients' numbers as the paper has it."""
        ids = (sender.to_bytes(ID_BYTES, "big"), holder.to_bytes(ID_BYTES, "big"))
        values = (n.to_bytes(SHARE_BYTES, "big") for n in (self.self_seed, self.masking_key))
        return b"".join((*ids, *values))

    @classmethod
    def from_bytes(cls, message: bytes, sender: int, holder: int) -> Shares:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is about other clients.
        """
        ids = message[: 2 * ID_BYTES]
        if ids != sender.to_bytes(ID_BYTES, "big") + holder.to_bytes(ID_BYTES, "big"):
            raise ValueError(f"shares from client {sender} to client {holder} name other clients")
        first, second = message[2 * ID_BYTES :][:SHARE_BYTES], message[-SHARE_BYTES:]
        return cls(
            self_seed=int.from_bytes(first, "big"), masking_key=int.from_bytes(second, "big")
        )


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """One holder's answer when the server asks for shares.

    Args:
        self_seeds: `{client: share}` of those whose masked update arrived.
        masking_keys: `{client: share}` of those who dropped out before.
    """

    self_seeds: Mapping[int, int]
    masking_keys: Mapping[int, int]

    @property
    def size(self) -> int:
        """Bytes of the shares and of whose they are."""
        return (len(self.self_seeds) + len(self.masking_keys)) * (ID_BYTES + SHARE_BYTES)

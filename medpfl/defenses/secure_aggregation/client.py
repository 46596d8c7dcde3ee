"""A client's side of the protocol."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from medpfl.defenses.secure_aggregation.agreement import KeyPair
from medpfl.defenses.secure_aggregation.derivation import derive
from medpfl.defenses.secure_aggregation.masks import Ring, add_mask
from medpfl.defenses.secure_aggregation.messages import PublicKeys, Shares, Unmasking
from medpfl.defenses.secure_aggregation.sealing import NONCE_BYTES, seal, unseal
from medpfl.defenses.secure_aggregation.sharing import split

PAIRWISE = b"pairwise mask"
"""What the seeds of pairwise masks are derived for."""


class Client:
    """Masks one update, and answers one request for shares.

    Args:
        number: the client's, from 0.
        seed: 32 bytes that nobody else knows, new every round: all of its secrets come from them.
        quorum: how many shares give a secret.
    """

    def __init__(self, number: int, seed: bytes, quorum: int) -> None:
        self.number = number
        self._seed = seed
        self._quorum = quorum
        self._sealing = KeyPair(derive(seed, b"sealing key"))
        self._masking = KeyPair(derive(seed, b"masking key"))
        self._self_seed = derive(seed, b"self mask")
        self._others: Mapping[int, PublicKeys] = {}
        self._sealing_keys: dict[int, bytes] = {}
        self._held: dict[int, Shares] = {}
        self._answered = False

    def advertise_keys(self) -> PublicKeys:
        """Return the public keys (round 0)."""
        return PublicKeys(sealing=self._sealing.public, masking=self._masking.public)

    def share_keys(self, directory: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Share both secrets among all who advertised keys (round 1); its own shares stay here.

        Args:
            directory: `{client: its keys}`, this client included.

        Returns:
            `{holder: sealed shares}`.

        Raises:
            ValueError: fewer clients than the quorum, two with the same key, or a key with which
                nothing secret can be agreed on.
        """
        if len(directory) < self._quorum:
            raise ValueError(f"{len(directory)} clients cannot be a quorum of {self._quorum}")
        keys = [key for one in directory.values() for key in (one.sealing, one.masking)]
        if len(set(keys)) < len(keys):
            raise ValueError("two of the advertised keys are the same: somebody is two clients")
        self._others = {n: keys for n, keys in directory.items() if n != self.number}
        self._sealing_keys = {n: self._sealing_key(k) for n, k in self._others.items()}
        shares = self._split(directory)
        self._held[self.number] = shares.pop(self.number)
        return {holder: self._seal(share, holder) for holder, share in shares.items()}

    def mask(self, encoded: Ring, arrived: Mapping[int, bytes]) -> Ring:
        """Add the self mask and the pairwise masks (round 2).

        With each client whose shares arrived, the one of the larger number adds what the other
        subtracts.

        Args:
            encoded: `(D,)`; left as it is.
            arrived: `{client: sealed shares for this one}`.

        Returns:
            `(D,)`, uniform over the ring for whoever lacks a mask.
        """
        self._held |= {sender: self._unseal(sealed, sender) for sender, sealed in arrived.items()}
        masked = encoded.copy()
        add_mask(masked, self._self_seed)
        for other in arrived:
            secret = self._masking.agree(self._others[other].masking)
            add_mask(masked, derive(secret, PAIRWISE), negative=self.number < other)
        return masked

    def unmask(self, survivors: Collection[int], dropped: Collection[int]) -> Unmasking:
        """Give the server its shares: of each client one kind, never both (round 3).

        Args:
            survivors: whose masked updates arrived, as the server says.
            dropped: whose did not, though they shared their keys.

        Raises:
            ValueError: the request would uncover a client, or the survivors are fewer than the
                quorum.
        """
        both = sorted(set(survivors) & set(dropped))
        if both:
            raise ValueError(f"both secrets of clients {both} would uncover what they sent")
        if self._answered:
            raise ValueError("a second request could ask for the other secrets: it is refused")
        if len(set(survivors)) < self._quorum:
            raise ValueError(f"{len(set(survivors))} survivors are no quorum of {self._quorum}")
        self._answered = True
        return Unmasking(
            self_seeds={n: self._held[n].self_seed for n in survivors},
            masking_keys={n: self._held[n].masking_key for n in dropped},
        )

    def _split(self, holders: Collection[int]) -> dict[int, Shares]:
        points = [holder + 1 for holder in holders]
        first, second = (
            split(secret, points, self._quorum, derive(self._seed, purpose))
            for secret, purpose in (
                (self._self_seed, b"shares of the self mask"),
                (self._masking.private, b"shares of the masking key"),
            )
        )
        return {
            point - 1: Shares(self_seed=first[point], masking_key=second[point]) for point in points
        }

    def _sealing_key(self, other: PublicKeys) -> bytes:
        return derive(self._sealing.agree(other.sealing), b"sealed messages")

    def _seal(self, shares: Shares, holder: int) -> bytes:
        message = shares.to_bytes(self.number, holder)
        return seal(self._sealing_keys[holder], _way(self.number, holder), message)

    def _unseal(self, sealed: bytes, sender: int) -> Shares:
        message = unseal(self._sealing_keys[sender], _way(sender, self.number), sealed)
        return Shares.from_bytes(message, sender, self.number)


def _way(sender: int, holder: int) -> bytes:
    """Return the nonce of the one message that goes this way in a round."""
    half = NONCE_BYTES // 2
    return sender.to_bytes(half, "big") + holder.to_bytes(half, "big")

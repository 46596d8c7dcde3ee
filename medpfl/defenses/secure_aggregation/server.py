"""The server's side of the protocol: all that it holds is here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medpfl.defenses.secure_aggregation.agreement import KeyPair
from medpfl.defenses.secure_aggregation.client import PAIRWISE
from medpfl.defenses.secure_aggregation.derivation import derive
from medpfl.defenses.secure_aggregation.masks import Ring, add_mask
from medpfl.defenses.secure_aggregation.messages import PublicKeys, Unmasking
from medpfl.defenses.secure_aggregation.sharing import reconstruct
from medpfl.errors import MedpflError


class Server:
    """Forwards keys and shares, adds up masked updates, and removes the masks that are left.

    Args:
        quorum: how many clients must send a masked update, and answer afterwards.
        directory: `{client: its keys}` of all who advertised keys and shared their secrets.
    """

    def __init__(self, quorum: int, directory: Mapping[int, PublicKeys]) -> None:
        self.directory = dict(directory)
        self._quorum = quorum
        self._arrived: list[int] = []
        self._total: Ring = np.zeros(0, dtype=np.uint64)

    def receive(self, number: int, masked: Ring) -> None:
        """Add a client's masked update to the sum.

        Args:
            number: the client's.
            masked: `(D,)`; left as it is.

        Raises:
            ValueError: it has sent one before.
        """
        if number in self._arrived:
            raise ValueError(f"client {number} has sent its masked update before")
        if self._arrived:
            self._total += masked
        else:
            self._total = masked.copy()
        self._arrived.append(number)

    @property
    def survivors(self) -> tuple[int, ...]:
        """Whose masked updates arrived."""
        return tuple(sorted(self._arrived))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Who shared keys, so that others masked for them, and sent nothing."""
        return tuple(sorted(self.directory.keys() - set(self._arrived)))

    def unmask(self, answers: Mapping[int, Unmasking]) -> Ring:
        """Remove the self masks of survivors and the pairwise masks of those who dropped out.

        Args:
            answers: `{client: its shares}`.

        Returns:
            `(D,)`: the sum of what the survivors encoded.

        Raises:
            MedpflError: fewer clients than the quorum are left.
        """
        self.check_quorum(len(self.survivors), "sent a masked update")
        self.check_quorum(len(answers), "answered when asked for shares")
        total = self._total.copy()
        for survivor in self.survivors:
            shares = {n + 1: answer.self_seeds[survivor] for n, answer in answers.items()}
            add_mask(total, reconstruct(shares), negative=True)
        for gone in self.dropped:
            shares = {n + 1: answer.masking_keys[gone] for n, answer in answers.items()}
            self._remove_pairwise(total, gone, reconstruct(shares))
        return total

    def check_quorum(self, left: int, what: str) -> None:
        """Refuse to go on with fewer clients than the quorum.

        Raises:
            MedpflError: these are fewer.
        """
        if left < self._quorum:
            raise MedpflError(
                f"only {left} of {len(self.directory)} clients {what}, and secure aggregation "
                f"needs {self._quorum}: the masks cannot be removed, so this round has no sum. "
                "Lower defense.secure_aggregation.threshold (above 0.5), or lose fewer clients"
            )

    def _remove_pairwise(self, total: Ring, gone: int, private: bytes) -> None:
        """Undo what survivors added for a client whose own half of these masks never came."""
        pair = KeyPair(private)
        if pair.public != self.directory[gone].masking:
            raise ValueError(f"the shares of client {gone} do not give its key: some are wrong")
        for survivor in self.survivors:
            secret = pair.agree(self.directory[survivor].masking)
            add_mask(total, derive(secret, PAIRWISE), negative=survivor > gone)

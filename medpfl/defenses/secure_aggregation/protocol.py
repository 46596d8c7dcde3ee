"""One run of the protocol, all clients and the server in this process.

Rounds 0 to 2 and 4 of Bonawitz et al. 2017, figure 4, against a server that is curious and keeps to
the protocol; the signatures and the consistency check, against one that lies, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from medpfl.defenses.secure_aggregation.client import Client
from medpfl.defenses.secure_aggregation.cost import Ledger
from medpfl.defenses.secure_aggregation.masks import Ring
from medpfl.defenses.secure_aggregation.messages import ID_BYTES
from medpfl.defenses.secure_aggregation.server import Server


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the server ends up with.

    Args:
        total: `(D,)`: the exact sum of what the survivors encoded.
        masked: `{survivor: (D,)}`: what each sent; empty where it was not kept.
        survivors: whose updates are in the sum.
        dropped: whose are not.
    """

    total: Ring
    masked: Mapping[int, Ring]
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


def run(
    seeds: Sequence[bytes],
    encode: Callable[[int], Ring],
    quorum: int,
    ledger: Ledger,
    *,
    dropped: Collection[int] = (),
    silent: Collection[int] = (),
    keep_masked: bool = True,
) -> Outcome:
    """Add up what clients encode, so that the server sees masked updates and their sum alone.

    Args:
        seeds: 32 secret bytes a client, new every time.
        encode: from a client's number to its `(D,)`; asked for one at a time, of survivors only;
            counts its own seconds.
        quorum: how many clients must stay to the end.
        ledger: where bytes and seconds are counted.
        dropped: who leaves after sharing keys and before sending a masked update; the others have
            masked for them by then.
        silent: who sends a masked update and leaves before unmasking; it is in the sum.
        keep_masked: whether the masked updates are kept, D ring elements a client.

    Raises:
        MedpflError: fewer clients than the quorum are left.
    """
    with ledger.timing("advertise_keys", "client"):
        clients = [Client(n, seed, quorum) for n, seed in enumerate(seeds)]
    server = _advertise(clients, quorum, ledger)
    mailbox = _share(clients, server, ledger)
    here = [client for client in clients if client.number not in dropped]
    kept: dict[int, Ring] = {}
    for client in here:
        masked = _send_masked(client, encode, mailbox[client.number], ledger)
        with ledger.timing("masked_input", "server"):
            server.receive(client.number, masked)
        if keep_masked:
            kept[client.number] = masked
    answering = [client for client in here if client.number not in silent]
    return Outcome(
        total=_unmask(answering, server, ledger),
        masked=kept,
        survivors=server.survivors,
        dropped=server.dropped,
    )


def _advertise(clients: Sequence[Client], quorum: int, ledger: Ledger) -> Server:
    """Round 0: every client learns every client's public keys."""
    directory = {client.number: client.advertise_keys() for client in clients}
    everybody = sum(keys.size for keys in directory.values())
    for number, keys in directory.items():
        ledger.sends("advertise_keys", number, keys.size)
        ledger.receives("advertise_keys", number, everybody)
    return Server(quorum, directory)


def _share(
    clients: Sequence[Client], server: Server, ledger: Ledger
) -> dict[int, dict[int, bytes]]:
    """Round 1: every client's shares go to every other one.

    Returns:
        `{holder: {sender: sealed shares}}`.
    """
    mailbox: dict[int, dict[int, bytes]] = {client.number: {} for client in clients}
    for client in clients:
        with ledger.timing("share_keys", "client"):
            shares = client.share_keys(server.directory)
        for holder, sealed in shares.items():
            mailbox[holder][client.number] = sealed
            ledger.sends("share_keys", client.number, ID_BYTES + len(sealed))
            ledger.receives("share_keys", holder, ID_BYTES + len(sealed))
    return mailbox


def _send_masked(
    client: Client, encode: Callable[[int], Ring], arrived: Mapping[int, bytes], ledger: Ledger
) -> Ring:
    """Round 2: the masked update of one client."""
    encoded = encode(client.number)
    with ledger.timing("masked_input", "client"):
        masked = client.mask(encoded, arrived)
    ledger.sends("masked_input", client.number, masked.nbytes)
    return masked


def _unmask(answering: Sequence[Client], server: Server, ledger: Ledger) -> Ring:
    """Last round: the server says who is left, and gets the shares that remove the masks."""
    survivors, dropped = server.survivors, server.dropped
    server.check_quorum(len(survivors), "sent a masked update")
    answers = {}
    for client in answering:
        with ledger.timing("unmasking", "client"):
            answers[client.number] = answer = client.unmask(survivors, dropped)
        ledger.receives("unmasking", client.number, ID_BYTES * len(survivors))
        ledger.sends("unmasking", client.number, answer.size)
    with ledger.timing("unmasking", "server"):
        return server.unmask(answers)

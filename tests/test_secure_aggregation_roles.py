"""What a client and the server of secure aggregation do, and what they refuse to do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest

from medpfl.defenses.secure_aggregation.client import Client
from medpfl.defenses.secure_aggregation.messages import Unmasking
from medpfl.defenses.secure_aggregation.server import Server


def meeting(count: int, quorum: int) -> tuple[list[Client], dict[int, Mapping[int, bytes]]]:
    """Return clients who have shared their keys, and what is in their mailboxes."""
    seeds = [hashlib.sha256(bytes([n])).digest() for n in range(count)]
    clients = [Client(n, seed, quorum) for n, seed in enumerate(seeds)]
    directory = {one.number: one.advertise_keys() for one in clients}
    sent = {one.number: one.share_keys(directory) for one in clients}
    mail = {n: {m: sent[m][n] for m in sent if m != n} for n in range(count)}
    return clients, mail


def test_a_client_never_gives_both_secrets_of_one_client_away():
    clients, mail = meeting(4, 3)
    client = clients[0]
    client.mask(np.zeros(3, np.uint64), mail[0])
    with pytest.raises(ValueError, match=r"both secrets of clients \[2\]"):
        client.unmask([0, 1, 2], [2, 3])
    with pytest.raises(ValueError, match="2 survivors are no quorum of 3"):
        client.unmask([0, 1, 1], [2, 3])
    answer = client.unmask([0, 1, 2], [3])
    assert (set(answer.self_seeds), set(answer.masking_keys)) == ({0, 1, 2}, {3})
    with pytest.raises(ValueError, match="second request"):
        client.unmask([0, 1, 3], [2])


def test_a_client_does_not_share_with_too_few_or_with_one_that_is_two():
    clients, _ = meeting(3, 3)
    directory = {one.number: one.advertise_keys() for one in clients}
    with pytest.raises(ValueError, match="2 clients cannot be a quorum of 3"):
        clients[0].share_keys({n: directory[n] for n in (0, 1)})
    with pytest.raises(ValueError, match="somebody is two clients"):
        clients[0].share_keys({**directory, 2: directory[1]})


def test_the_server_takes_one_update_a_client_and_notices_wrong_shares():
    clients, mail = meeting(3, 2)
    server = Server(2, {one.number: one.advertise_keys() for one in clients})
    masked = {n: clients[n].mask(np.zeros(3, np.uint64), mail[n]) for n in (0, 1)}
    for number, one in masked.items():
        server.receive(number, one)
    with pytest.raises(ValueError, match="client 1 has sent its masked update before"):
        server.receive(1, masked[1])
    answers = {n: clients[n].unmask([0, 1], [2]) for n in (0, 1)}
    assert not server.unmask(answers).any()
    wrong = Unmasking(
        self_seeds=answers[0].self_seeds, masking_keys={2: answers[0].masking_keys[2] ^ 1}
    )
    with pytest.raises(ValueError, match="shares of client 2 do not give its key"):
        server.unmask({**answers, 0: wrong})


def test_what_the_server_forwards_does_not_hold_the_shares():
    clients, mail = meeting(3, 2)
    clients[1].mask(np.zeros(1, np.uint64), mail[1])
    held = clients[1].unmask([0, 1], [2])
    share = held.self_seeds[0].to_bytes(33, "big")
    assert share not in mail[1][0]
    swapped = {0: mail[1][2], 2: mail[1][0]}
    with pytest.raises(ValueError, match="changed on its way"):
        clients[1].mask(np.zeros(1, np.uint64), swapped)

"""Which updates of a federation are captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.source import Planned, capture_name


@checked("capture")
@dataclass(frozen=True, kw_only=True)
class Capturing:
    """Say in which rounds, of which clients, and what of their updates is captured.

    Args:
        rounds: rounds that the global model was trained for; 0 is the model before any.
        clients: their numbers, from 0; None captures all.
        parameters: names of the parameters whose updates are seen, ``*`` for any letters; None
            shows all.
    """

    rounds: Sequence[Annotated[int, Range(0, 1_000_000)]] = (0,)
    clients: Sequence[Annotated[int, Range(0, 1_000_000)]] | None = None
    parameters: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "clients", "parameters"):
            listed = getattr(self, name)
            if listed is None:
                continue
            if not listed:
                raise ConfigurationError(f"capture.{name}=[]: name at least one")
            if len(set(listed)) < len(listed):
                raise ConfigurationError(f"capture.{name}={list(listed)}: name each once")

    def clients_of(self, count: int) -> list[int]:
        """Return the captured ones of so many clients.

        Raises:
            ConfigurationError: there is no such client.
        """
        if self.clients is None:
            return list(range(count))
        beyond = [client for client in self.clients if client >= count]
        if beyond:
            raise ConfigurationError(
                f"capture.clients={list(self.clients)}: there are {count} clients, numbered 0 to "
                f"{count - 1}: leave out {beyond[0]}, or set federation.clients"
            )
        return sorted(self.clients)

    def check_rounds(self, rounds: int) -> None:
        """Raise a `ConfigurationError` where a round is never reached."""
        late = [r for r in self.rounds if r > rounds]
        if late:
            raise ConfigurationError(
                f"capture.rounds={list(self.rounds)}: round {late[0]} is never reached, as "
                f"federation.rounds={rounds}. Set federation.rounds={max(late)}, or leave it out"
            )

    def names_of(self, parameters: Sequence[str]) -> tuple[str, ...]:
        """Return the captured ones of a network's parameters, in its order.

        Raises:
            ConfigurationError: a name is none of the network's.
        """
        if self.parameters is None:
            return tuple(parameters)
        for wanted in self.parameters:
            if not any(fnmatchcase(name, wanted) for name in parameters):
                shown = ", ".join(list(parameters)[:8])
                raise ConfigurationError(
                    f"capture.parameters: the network has no parameter {wanted!r}; it has {shown}"
                    f"{' and more' if len(parameters) > 8 else ''}"
                )
        return tuple(n for n in parameters if any(fnmatchcase(n, w) for w in self.parameters))


def each_its_own(selected: Sequence[str], batch_size: int) -> tuple[Planned, ...]:
    """Plan one round in which every update has a client of its own.

    Args:
        selected: ids of the attacked images; a rest too small for a batch is left.
        batch_size: images behind an update.
    """
    count = len(selected) // batch_size
    return tuple(
        Planned(
            capture_name(0, client),
            0,
            client,
            tuple(selected[client * batch_size : (client + 1) * batch_size]),
        )
        for client in range(count)
    )


def probes(
    own: Sequence[Sequence[str]],
    capturing: Capturing,
    *,
    batch_size: int,
    n_images: int | None,
    most: int,
    seen: int | None = None,
    spare: Sequence[Sequence[str]] | None = None,
) -> tuple[Planned, ...]:
    """Plan updates of a few images of each captured client, the same ones in every round.

    Args:
        own: of each client the ids of its images that may be attacked.
        capturing: which rounds and clients.
        batch_size: images behind an update.
        n_images: to attack, over all captures; None for `most` at most.
        most: where `n_images` is None.
        seen: clients of a round whose images count; None counts those of all captured ones.
        spare: of each client all that the selection visits: what is taken from where too few of
            `own` have fallen to it; None where there is no more.

    Raises:
        ConfigurationError: a client has too few images.
    """
    clients, rounds = capturing.clients_of(len(own)), sorted(capturing.rounds)
    seen = len(clients) if seen is None else seen
    pairs = seen * len(rounds)
    wanted = (most if n_images is None else n_images) // batch_size
    if n_images is not None and wanted < pairs:
        raise ConfigurationError(
            f"n_images={n_images}: {len(rounds)} rounds of {seen} clients are captured, "
            f"{batch_size} images each: {pairs * batch_size} at least. Raise n_images, or set "
            "capture.rounds or capture.clients"
        )
    each = max(1, wanted // pairs)
    if n_images is None:
        each = max(1, min(each, *(len(own[c]) // batch_size for c in clients)))
    needed = each * batch_size
    if spare is not None:
        both = zip(own, spare, strict=True)
        own = [few if len(few) >= needed else more for few, more in both]
    for client in clients:
        if len(own[client]) < needed:
            raise ConfigurationError(
                f"client {client} has {len(own[client])} images that dataset.select visits, and "
                f"{needed} of its images are to be attacked in each captured round: "
                "lower n_images or federation.batch_size, visit more images with dataset.stride, "
                "or leave the client out of capture.clients"
            )
    chosen = {client: _spread(own[client], needed) for client in clients}
    return tuple(
        Planned(
            capture_name(round_, client, batch if each > 1 else None),
            round_,
            client,
            chosen[client][batch * batch_size : (batch + 1) * batch_size],
        )
        for round_ in rounds
        for client in clients
        for batch in range(each)
    )


def _spread(ids: Sequence[str], count: int) -> tuple[str, ...]:
    """Choose images evenly spread over a client's, which are in class order."""
    return tuple(ids[i * len(ids) // count] for i in range(count))


def whole(own: Sequence[Sequence[str]], capturing: Capturing) -> tuple[Planned, ...]:
    """Plan the updates that the captured clients really send, of all their images."""
    return tuple(
        Planned(capture_name(round_, client), round_, client, tuple(own[client]))
        for round_ in sorted(capturing.rounds)
        for client in capturing.clients_of(len(own))
    )

"""Where attacked updates come from: a simulated federation, or files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medpfl.types import Capture, Privacy, ServerPayload, Truth

if TYPE_CHECKING:  # the federation imports this file
    from medpfl.federated.diary import Diary


@dataclass(frozen=True)
class Planned:
    """A capture that is going to be made.

    Args:
        capture_id: its name; says nothing of its images.
        round: rounds that the global model is trained for by then, counted from 0.
        client: number of the client, counted from 0; None where several are in it.
        image_ids: names of the images behind it, for the record; none where nobody knows them.
        unknown: how many images nobody knows.
        members: of a sum, what each of its clients sends; their images are its images, one client
            after another.
    """

    capture_id: str
    round: int
    client: int | None
    image_ids: tuple[str, ...]
    unknown: int = 0
    members: tuple[Planned, ...] = ()

    @property
    def images(self) -> int:
        """How many images are behind it."""
        return len(self.image_ids) or self.unknown


@dataclass(frozen=True, kw_only=True)
class Described:
    """A source in words, for people.

    Args:
        model: name of the network.
        defense: what clients do to their updates, a line a part.
        noise: that they add, or None without.
        federation: who trains with whom, in lines; none where every client sends one gradient.
        privacy: what the defense guarantees, or None without one, or where nobody knows.
        stopped: that a privacy budget ends training early, or None where it does not.
        undefended: whether updates are known to leave as they are.
    """

    model: str
    defense: str
    noise: str | None
    federation: tuple[str, ...]
    privacy: Privacy | None = None
    stopped: str | None = None
    undefended: bool = False


class CaptureSource(Protocol):
    """Makes captures, one by one, as they are asked for."""

    @property
    def plan(self) -> Sequence[Planned]:
        """All captures, in the order in which they are made."""
        ...

    def captures(
        self, leave_out: Collection[str] = (), diary: Diary | None = None
    ) -> Iterator[Capture]:
        """Yield the captures in their order.

        Args:
            leave_out: ids of those that are not wanted.
            diary: told of the rounds of training in between, where there are any.
        """
        ...

    def truth(self, planned: Planned) -> Truth | None:
        """Return the images behind a capture, where they are known."""
        ...

    def describe(self) -> Described:
        """Say where the updates come from."""
        ...

    def sample(self) -> Capture:
        """Return one capture of the first model, which nobody has to be trained for."""
        ...

    def example(self) -> ServerPayload:
        """Return what the first captured client is sent, for who wants to look at the network."""
        ...


def capture_name(round_: int, client: int | None, batch: int | None = None) -> str:
    """Return a capture's id: ``round-005/client-2``, and where a client has several, its batch.

    Without a client it is that of a sum over clients: ``round-005/aggregate``.
    """
    who = "aggregate" if client is None else f"client-{client}"
    name = f"round-{round_:03d}/{who}"
    return name if batch is None else f"{name}/batch-{batch}"

"""Which captures are of the same images, and what was seen of these before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from medpfl.errors import ConfigurationError
from medpfl.source import Planned
from medpfl.types import Observation

Images = tuple[int | None, tuple[str, ...]]


@dataclass
class Seen:
    """What was seen of the same client's same images, as captures are made.

    A capture stands for what an attacker has by then: its own update and all those of the same
    images before it. So those before are made again where a run goes on that has them on record.

    Fields:
        plan: all captures, in the order in which they are made.
        before: by client and images, what was seen of them so far.
    """

    plan: Sequence[Planned]
    before: dict[Images, list[Observation]] = field(default_factory=dict)

    def needed(self, wanted: Collection[str]) -> list[Planned]:
        """Return the captures that are wanted, by id, and all that those look back to."""
        last = {_images(p): p.round for p in self.plan if p.capture_id in wanted}
        return [p for p in self.plan if p.round <= last.get(_images(p), -1)]

    def of(self, planned: Planned) -> tuple[Observation, ...]:
        """Return what was seen before of a capture's images, first to last."""
        return tuple(self.before.get(_images(planned), ()))

    def add(self, planned: Planned, observation: Observation) -> None:
        """Take note of what a capture shows."""
        self.before.setdefault(_images(planned), []).append(observation)

    def most(self) -> int:
        """Return in how many captures the same images are, at most."""
        counts: dict[Images, int] = {}
        for planned in self.plan:
            counts[_images(planned)] = counts.get(_images(planned), 0) + 1
        return max(counts.values(), default=0)


def check_repeated(plan: Sequence[Planned], *, shared: bool, summed: bool) -> None:
    """Raise a `ConfigurationError` where no images are in several captures.

    Args:
        plan: all captures.
        shared: whether clients share the images and train together.
        summed: whether sums over clients are captured.
    """
    setting = "threat.knows=[same_images]"
    if summed:
        raise ConfigurationError(
            f"{setting}: rounds are matched together that show one client's own updates, and under "
            "secure aggregation the server sees sums. Leave same_images out"
        )
    if not shared:
        raise ConfigurationError(
            f"{setting}: every update has a client of its own, and is sent once. Set "
            "federation.clients, federation.rounds and several capture.rounds, or leave "
            "same_images out"
        )
    if Seen(plan).most() < 2:
        raise ConfigurationError(
            f"{setting}: no images are captured twice: name several rounds, such as "
            "capture.rounds=[0,1] (with federation.rounds=1 at least), or leave same_images out"
        )


def _images(planned: Planned) -> Images:
    return planned.client, planned.image_ids

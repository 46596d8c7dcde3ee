"""How often an image, or a client, has a part in what is released, at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from medpfl.accounting import Mechanism, Releases
from medpfl.defenses.privacy import Claim
from medpfl.training import LocalTraining

_MOST = 8


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What one update of a client releases of one of its images.

    Args:
        rate: the probability with which a step takes it.
        steps: that may take it.
    """

    rate: float
    steps: int

    @classmethod
    def of(
        cls, training: LocalTraining, images: int, claim: Claim, *, order_known: bool
    ) -> Exchange:
        """Return the exchange of a client with so many images.

        Poisson samples hide whether an image was in a step from whoever does not know the order;
        to others each step may have it for certain. Epochs take each image in one step, so that of
        an epoch one release tells of it, for certain.

        Args:
            training: what the client does.
            images: how many it has; public.
            claim: of a client's whole update, a round releases one.
            order_known: whether the attacker knows which images a step takes.
        """
        if claim.unit == "client" or training.algorithm == "fedsgd":
            return cls(rate=1.0, steps=1)
        if training.sampling == "poisson":
            rate = 1.0 if order_known else training.rate(images)
            return cls(rate=rate, steps=training.steps(images))
        return cls(rate=1.0, steps=training.epochs)


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Everything that is released of an image of one client.

    Args:
        trained: one round of training.
        rounds: of training that the client takes part in.
        attacked: one attacked update that is not sent in training.
        attacks: how many of these there are.
    """

    trained: Exchange
    rounds: int
    attacked: Exchange
    attacks: int = 0

    def releases(self, noise: Mechanism, *, attacks: bool) -> Releases:
        """Return all releases of a mechanism, those of the attacked updates included or not."""
        found: Counter[Mechanism] = Counter()
        pairs = [(self.trained, self.rounds)]
        pairs += [(self.attacked, self.attacks)] if attacks else []
        for exchange, times in pairs:
            found[_sampled(noise, exchange.rate)] += exchange.steps * times
        return found

    @property
    def _numbers(self) -> tuple[float, ...]:
        return (
            self.trained.rate,
            self.trained.steps * self.rounds,
            self.attacked.rate,
            self.attacked.steps * self.attacks,
        )

    def covers(self, other: Exposure) -> bool:
        """Tell whether at least as much is released as of another: more often, or more surely."""
        return all(a >= b for a, b in zip(self._numbers, other._numbers, strict=True))

    def joined(self, other: Exposure) -> Exposure:
        """Return an exposure that covers both."""
        mine, others = self._numbers, other._numbers
        most = [max(a, b) for a, b in zip(mine, others, strict=True)]
        return Exposure(
            trained=Exchange(rate=most[0], steps=int(most[1])),
            rounds=1,
            attacked=Exchange(rate=most[2], steps=int(most[3])),
            attacks=1,
        )


def largest(exposures: Collection[Exposure]) -> list[Exposure]:
    """Return few exposures, one of which covers each of these: whose epsilon holds for all.

    Args:
        exposures: at least one.
    """
    ordered = sorted(set(exposures), key=lambda e: e._numbers, reverse=True)
    kept: list[Exposure] = []
    for exposure in ordered:
        if not any(other.covers(exposure) for other in kept):
            kept.append(exposure)
    while len(kept) > _MOST:
        kept = _paired(kept)
    return kept


def _paired(exposures: Sequence[Exposure]) -> list[Exposure]:
    pairs = [exposures[first : first + 2] for first in range(0, len(exposures), 2)]
    return [pair[0].joined(pair[-1]) for pair in pairs]


def _sampled(noise: Mechanism, rate: float) -> Mechanism:
    return Mechanism(
        noise_multiplier=noise.noise_multiplier,
        sample_rate=rate,
        law=noise.law,
        neighbours=noise.neighbours,
    )

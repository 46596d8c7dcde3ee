"""The account of a federation's privacy: noise for a target, rounds within a budget, and epsilon.

What is hidden from the server, which sees every client's own update:

- of ``dp_sgd``, whether one image of a client counts or is left out of every sum; how many images a
  client has is public, and so are the sizes of steps that follow from it. An image of one client is
  in no other's update but through the global model, which is made of updates that were noised
  before: epsilon is that of the client of whose images most is released, and no sum over clients.
- of ``[clipping,perturbation]``, which data a client has at all: replacing them moves its update by
  up to twice the norm that it is clipped to.

Attacked updates may be probes, which clients do not send in training: those of a few images, which
a step takes for certain. They are releases of their own, and are accounted for beside training, so
that what is measured does not change what it is measured on. The bound on attacks counts both.
Labels that a threat model grants, and the number of images, are the attacker's own knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from medpfl.accounting import Accountant, Mechanism, Releases, noise_multiplier_for, profile
from medpfl.accounting import epsilon as epsilon_of
from medpfl.bounds.reconstruction_robustness import from_profile
from medpfl.defenses import Defenses, DpSgd
from medpfl.defenses.privacy import Claim
from medpfl.errors import ConfigurationError
from medpfl.federated.exposure import Exchange, Exposure, largest
from medpfl.source import Planned
from medpfl.training import LocalTraining
from medpfl.types import Privacy

CLIENT_DELTA = 1e-5
"""How probably the epsilon of a client's whole update may fail: such parts have no setting."""


@dataclass(frozen=True, kw_only=True)
class Sending:
    """Who sends what, and how often.

    Args:
        training: what clients do.
        sizes: of each client that trains with others, how many images it has; empty without.
        rounds: of training.
        participants: the clients of a round.
        planned: the attacked updates.
        are_sent: whether these are what clients send in training, too.
        order_known: whether the attacker knows which images a step takes.
        statistics: whether BatchNorm's leave with the updates.
    """

    training: LocalTraining
    sizes: Mapping[int, int]
    rounds: int
    participants: Callable[[int], Collection[int]]
    planned: Sequence[Planned]
    are_sent: bool
    order_known: bool
    statistics: bool

    def within(self, rounds: int) -> Sending:
        """Return the same, with training ended early; what would be attacked later is left out."""
        last = rounds - 1 if self.are_sent else rounds
        kept = tuple(p for p in self.planned if p.round <= last)
        return replace(self, rounds=rounds, planned=kept)

    def exposures(self, claim: Claim) -> list[Exposure]:
        """Return what is released of images, or of clients: one or more exposures of each."""
        return largest([*self._exposures(claim)])

    def _exposures(self, claim: Claim) -> Iterator[Exposure]:
        def exchange(images: int) -> Exchange:
            return Exchange.of(self.training, images, claim, order_known=self.order_known)

        if not self.sizes:
            for planned in self.planned:
                one = exchange(planned.images)
                yield Exposure(trained=one, rounds=0, attacked=one, attacks=1)
            return
        drawn = [client for r in range(self.rounds) for client in self.participants(r)]
        for client, images in self.sizes.items():
            trained, rounds = exchange(images), drawn.count(client)
            yield Exposure(trained=trained, rounds=rounds, attacked=trained)
            own = [p for p in self._updates() if p.client == client and not self._is_trained(p)]
            for size in {p.images for p in own}:
                attacks = len({p.round for p in own if p.images == size})
                yield Exposure(
                    trained=trained, rounds=rounds, attacked=exchange(size), attacks=attacks
                )

    def _updates(self) -> list[Planned]:
        """Return the updates that are attacked: those of a sum one by one, as they are sent."""
        return [update for planned in self.planned for update in (planned.members or (planned,))]

    def _is_trained(self, planned: Planned) -> bool:
        return self.are_sent and planned.round < self.rounds


@dataclass(frozen=True, kw_only=True)
class Account:
    """What privacy a federation has, and what follows for it.

    Args:
        defense: with the noise that its target takes.
        rounds: of training that a budget allows.
        planned: the attacked updates that are reached.
        privacy: what is guaranteed; None without a defense.
        stopped: that a budget ends training, in words; None where it does not.
    """

    defense: Defenses
    rounds: int
    planned: tuple[Planned, ...]
    privacy: Privacy | None
    stopped: str | None = None


def open_account(defense: Defenses, sending: Sending, network: Callable[[], nn.Module]) -> Account:
    """Account for a federation before any of it is computed.

    Args:
        defense: what clients do.
        sending: what they send.
        network: makes one like theirs.

    Raises:
        ConfigurationError: no noise reaches the target, or the budget is spent in the first round.
    """
    claim = defense.claim(lambda: len(list(network().parameters())))
    if sending.statistics and any(b.is_floating_point() for b in network().buffers()):
        claim = "BatchNorm's statistics leave with the update, without noise"
    part = defense.dp_sgd
    planned = tuple(sending.planned)
    if isinstance(claim, str):
        _refuse_promises(part, claim)
        privacy = None if defense.is_none else Privacy(epsilon=math.inf, reason=claim)
        return Account(defense=defense, rounds=sending.rounds, planned=planned, privacy=privacy)
    books = _Books(claim=claim, part=part)
    noise = books.noise_for(sending)
    if claim.noise_multiplier is None:
        claim, defense = replace(claim, noise_multiplier=noise), defense.with_noise(noise)
        books = replace(books, claim=claim)
    rounds = books.affordable(sending)
    stopped = None
    if rounds < sending.rounds:
        shorter = sending.within(rounds)
        stopped = books.stopped(sending, shorter)
        sending = shorter
    return Account(
        defense=defense,
        rounds=rounds,
        planned=tuple(sending.planned),
        privacy=books.privacy(sending),
        stopped=stopped,
    )


def _refuse_promises(part: DpSgd | None, why: str) -> None:
    for name in ("target_epsilon", "budget_epsilon"):
        value = None if part is None else getattr(part, name)
        if value is not None:
            raise ConfigurationError(f"defense.dp_sgd.{name}={value:g}: epsilon is infinite: {why}")


@dataclass(frozen=True, kw_only=True)
class _Books:
    """How releases are accounted for.

    Args:
        claim: the theorem.
        part: whose settings say how; None for a client's whole update.
    """

    claim: Claim
    part: DpSgd | None

    @property
    def _by(self) -> Accountant:
        return "pld" if self.part is None else self.part.accountant

    @property
    def _delta(self) -> float:
        return CLIENT_DELTA if self.part is None else self.part.target_delta

    def _mechanism(self, *, as_absence: bool = False) -> Mechanism:
        of_client = self.claim.unit == "client" and not as_absence
        return Mechanism(
            noise_multiplier=self.claim.noise_multiplier or 1.0,
            law=self.claim.law,
            neighbours="replace" if of_client else "add_remove",
        )

    def _epsilon(self, releases: Releases) -> float:
        return epsilon_of(releases, delta=self._delta, accountant=self._by)

    def spent(self, sending: Sending, *, attacks: bool) -> tuple[float, Exposure]:
        """Return epsilon of the image, or client, of which most is released, and its exposure."""
        noise = self._mechanism()
        spent = [
            (self._epsilon(e.releases(noise, attacks=attacks)), e)
            for e in sending.exposures(self.claim)
        ]
        return max(spent, key=lambda one: one[0])

    def noise_for(self, sending: Sending) -> float:
        """Return the noise multiplier: as set, or the least that keeps to the target."""
        if self.claim.noise_multiplier is not None or self.part is None:
            return self.claim.noise_multiplier or 1.0
        target = self.part.target_epsilon or math.inf
        least = []
        for exposure in sending.exposures(self.claim):
            found = exposure.releases(self._mechanism(), attacks=not sending.rounds)
            for mechanism, steps in found.items():
                if steps:
                    least.append(self._noise(target, mechanism, steps))
        return max(least)

    def _noise(self, target: float, mechanism: Mechanism, steps: int) -> float:
        try:
            return noise_multiplier_for(
                target, delta=self._delta, mechanism=mechanism, steps=steps, accountant=self._by
            )
        except ConfigurationError as fault:
            raise ConfigurationError(
                str(fault).replace("accounting.", "defense.dp_sgd.")
            ) from fault

    def affordable(self, sending: Sending) -> int:
        """Return how many rounds of training a budget allows.

        Raises:
            ConfigurationError: it is spent by the first round, or by an attacked update.
        """
        budget = None if self.part is None else self.part.budget_epsilon
        if budget is None or self.spent(sending, attacks=not sending.rounds)[0] <= budget:
            return sending.rounds
        fits, too_many = 0, sending.rounds
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.spent(sending.within(middle), attacks=False)[0] <= budget:
                fits = middle
            else:
                too_many = middle
        if fits == 0 or not sending.within(fits).planned:
            first = sending.within(1) if sending.rounds else sending
            cost = self.spent(first, attacks=not sending.rounds)[0]
            raise ConfigurationError(
                f"defense.dp_sgd.budget_epsilon={budget:g}: "
                + self._too_small(cost, budget, fits, sending)
            )
        return fits

    @staticmethod
    def _too_small(cost: float, budget: float, fits: int, sending: Sending) -> str:
        what = "one round of training" if sending.rounds else "one attacked update"
        if cost > budget:
            return (
                f"it is spent before anything is sent, as {what} costs epsilon {cost:.4g}. Raise "
                "it, or defense.dp_sgd.noise_multiplier"
            )
        return (
            f"training ends after round {fits}, before any of the updates of capture.rounds is "
            "reached: choose earlier ones, or raise it"
        )

    def stopped(self, sending: Sending, shorter: Sending) -> str:
        """Say that a budget ends training, and what is never reached."""
        budget = 0.0 if self.part is None else self.part.budget_epsilon or 0.0
        reached = {p.capture_id for p in shorter.planned}
        missed = sorted({p.round for p in sending.planned if p.capture_id not in reached})
        numbers = ", ".join(map(str, missed))
        unreached = f"; updates of round {numbers} are never reached" if missed else ""
        return (
            f"the budget of epsilon {budget:g} ends training after round {shorter.rounds} of "
            f"{sending.rounds}, and what was trained by then is kept{unreached}"
        )

    def privacy(self, sending: Sending) -> Privacy:
        """Return what is guaranteed."""
        total, worst = self.spent(sending, attacks=not sending.rounds)
        one_round = [
            self._epsilon(replace(e, rounds=1).releases(self._mechanism(), attacks=False))
            for e in sending.exposures(self.claim)
        ]
        candidates = 1000 if self.part is None else self.part.candidates
        exact = self._by == "pld" and self.claim.law == "gaussian" and _is_certain(worst)
        return Privacy(
            epsilon=total,
            reason=self._reason(sending, worst),
            unit=self.claim.unit,
            delta=self._delta,
            accountant="exact" if exact else self._by,
            epsilon_round=max(one_round) if sending.rounds else None,
            epsilon_attacked=self.spent(sending, attacks=True)[0],
            rero=max(self._rero(e, candidates) for e in sending.exposures(self.claim)),
            candidates=candidates,
        )

    def _rero(self, exposure: Exposure, candidates: int) -> float:
        # The bound compares with a release that has no part of it, C away, for images and clients.
        releases = exposure.releases(self._mechanism(as_absence=True), attacks=True)
        return from_profile(profile(releases, presence=True), kappa=1 / candidates)

    def _reason(self, sending: Sending, worst: Exposure) -> str:
        noise = f"{self.claim.law.capitalize()} noise of {self.claim.noise_multiplier:.4g}"
        if self.claim.unit == "client":
            hidden = "client-level: hides which images a client has, whose whole update is clipped"
        else:
            hidden = "hides whether one image of a client is in its updates"
        exchange, times = worst.trained, worst.rounds
        if not sending.rounds:
            exchange, times = worst.attacked, worst.attacks
        steps = "" if exchange.steps == 1 else f" of {exchange.steps} steps"
        what = "round" if sending.rounds else "update"
        return (
            f"{hidden}; {noise} x the norm, {times} {what}{'' if times == 1 else 's'}{steps}, "
            f"{self._sampled(sending, exchange)}"
        )

    def _sampled(self, sending: Sending, exchange: Exchange) -> str:
        training = sending.training
        if exchange.rate < 1:
            return f"Poisson samples at rate {exchange.rate:.3g}"
        if self.claim.unit == "client" or training.algorithm == "fedsgd":
            return "nothing is sampled"
        if training.sampling == "epochs" and training.batch_size is not None:
            return (
                "each image in one step an epoch, at rate 1: batches of an epoch are no Poisson "
                "samples (federation.local.sampling=poisson)"
            )
        if sending.order_known and training.sampling == "poisson":
            return "at rate 1, as the attacker knows the order of the images"
        return "each image is taken at rate 1"


def _is_certain(exposure: Exposure) -> bool:
    return exposure.trained.rate == 1 and exposure.attacked.rate == 1

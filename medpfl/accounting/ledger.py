"""What training has spent so far, and what a budget still allows."""

from __future__ import annotations

from collections import Counter

from medpfl.accounting.epsilon import Accountant, epsilon
from medpfl.accounting.mechanism import Mechanism, neighbours_of
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Budget, Delta, Steps

_MOST_STEPS = 10_000_000


class Ledger:
    """The releases of one contribution's data, round by round.

    Args:
        delta: the probability with which every epsilon of this ledger may fail.
        accountant: see `medpfl.accounting.epsilon`.
    """

    def __init__(self, *, delta: float, accountant: Accountant = "pld") -> None:
        check_value("accounting.delta", delta, Delta)
        self.delta, self.accountant = delta, accountant
        self._rounds: list[Counter[Mechanism]] = [Counter()]

    def record(self, mechanism: Mechanism, steps: int = 1) -> None:
        """Write down releases of the current round.

        Raises:
            ConfigurationError: no whole number of steps, or neighbours other than before.
        """
        check_value("accounting.steps", steps, Steps)
        neighbours_of({**self._total(), mechanism: steps})
        self._rounds[-1][mechanism] += steps

    def end_round(self) -> float:
        """End the current round; return the epsilon of its releases alone."""
        ended = self._rounds[-1]
        self._rounds.append(Counter())
        return self._epsilon(ended)

    @property
    def steps(self) -> int:
        """Number of releases so far."""
        return self._total().total()

    @property
    def epsilon(self) -> float:
        """What all releases so far cost together: less than the sum of the rounds."""
        return self._epsilon(self._total())

    def epsilon_of_round(self, index: int) -> float:
        """Return what the releases of one round cost by themselves; 0 is the first round.

        Raises:
            ConfigurationError: there was no such round.
        """
        if not 0 <= index < len(self._rounds):
            raise ConfigurationError(
                f"accounting.round={index}: the ledger has rounds 0 to {len(self._rounds) - 1}"
            )
        return self._epsilon(self._rounds[index])

    def left(self, budget: float) -> float:
        """Return how much of a budget is not spent, at least 0.

        What is left says not how many releases fit: see `steps_left`.
        """
        check_value("accounting.target_epsilon", budget, Budget)
        return max(0.0, budget - self.epsilon)

    def steps_left(self, mechanism: Mechanism, budget: float) -> int:
        """Return how many more releases of a mechanism fit into a budget; at most ten million."""
        if not self.left(budget):
            return 0
        fits, too_many = 0, 1
        while self._with(mechanism, too_many) <= budget:
            fits, too_many = too_many, 2 * too_many
            if too_many > _MOST_STEPS:
                return _MOST_STEPS
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self._with(mechanism, middle) <= budget:
                fits = middle
            else:
                too_many = middle
        return fits

    def _total(self) -> Counter[Mechanism]:
        return sum(self._rounds, Counter())

    def _with(self, mechanism: Mechanism, steps: int) -> float:
        return self._epsilon(self._total() + Counter({mechanism: steps}))

    def _epsilon(self, releases: Counter[Mechanism]) -> float:
        return epsilon(releases, delta=self.delta, accountant=self.accountant)

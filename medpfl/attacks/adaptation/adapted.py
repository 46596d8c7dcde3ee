"""From what is known of a defense to an attack that matches through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from medpfl.attacks.adaptation.dp_sgd import through_dp_sgd
from medpfl.attacks.adaptation.noise import through_noise
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

Adaptation = Callable[[DefenseFacts, Parts, Search, Problem], tuple[Parts, Search]]
"""From one part's facts to the parts and the search of an attack that knows of it."""

_ADAPTATIONS: Mapping[str, Adaptation] = {
    "dp_sgd": through_dp_sgd,
    "perturbation": through_noise,
}
"""By the name of the defense's part; what is not here is matched as if it were not there."""


def adapted(parts: Parts, search: Search, problem: Problem) -> tuple[Parts, Search]:
    """Return an attack as one that knows the defense, part by part in the client's order.

    Args:
        parts: of the attack that knows nothing of it.
        search: of the same.
        problem: the updates; its `defense` is empty where none is known.
    """
    for facts in problem.defense:
        adaptation = _ADAPTATIONS.get(facts.name)
        if adaptation is not None:
            parts, search = adaptation(facts, parts, search, problem)
    return parts, search

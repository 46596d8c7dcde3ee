"""From what is known of a defense to an attack that matches through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from medpfl.attacks.adaptation.clipping import through_clipping
from medpfl.attacks.adaptation.dp_sgd import through_dp_sgd
from medpfl.attacks.adaptation.ending import fitting
from medpfl.attacks.adaptation.masking import through_masking
from medpfl.attacks.adaptation.noise import through_noise
from medpfl.attacks.adaptation.quantise import through_quantise
from medpfl.attacks.adaptation.sign import through_sign
from medpfl.attacks.adaptation.soteria import through_soteria
from medpfl.attacks.adaptation.sparse import through_pruning, through_randomk, through_topk
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts

Adaptation = Callable[[DefenseFacts, Parts, Search, Problem], tuple[Parts, Search]]
"""From one part's facts to the parts and the search of an attack that knows of it."""

_ADAPTATIONS: Mapping[str, Adaptation] = {
    "clipping": through_clipping,
    "dp_sgd": through_dp_sgd,
    "masking": through_masking,
    "perturbation": through_noise,
    "pruning": through_pruning,
    "quantise": through_quantise,
    "randomk": through_randomk,
    "sign": through_sign,
    "soteria": through_soteria,
    "topk": through_topk,
}
"""By the name of the defense's part; what is not here is matched as if it were not there."""


def adapted(parts: Parts, search: Search, problem: Problem) -> tuple[Parts, Search]:
    """Return an attack as one that knows the defense, part by part in the client's order.

    Args:
        parts: of the attack that knows nothing of it.
        search: of the same.
        problem: the updates; its `defense` is empty where none is known.

    Raises:
        ConfigurationError: the attack's optimiser cannot follow the objective that comes of it.
    """
    told = [facts.name for facts in problem.defense if facts.name in _ADAPTATIONS]
    for facts in problem.defense:
        adaptation = _ADAPTATIONS.get(facts.name)
        if adaptation is not None:
            parts, search = adaptation(facts, parts, search, problem)
    return parts, fitting(search, parts, told) if told else search

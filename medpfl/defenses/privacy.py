"""Which theorem of differential privacy holds for a composition, and why none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from medpfl.defenses.clipping import Clipping
from medpfl.defenses.dp_sgd import DpSgd
from medpfl.defenses.noise import law_of
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import Perturbation
from medpfl.settings.slots import is_ours

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e6


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Noise on contributions that are clipped each by itself.

    Args:
        unit: whose contribution: one ``image``'s gradient, or a ``client``'s whole update.
        noise_multiplier: the noise's scale over the norm that it is clipped to; None where that is
            still to be found from a target.
        law: of the noise.
    """

    unit: Literal["image", "client"]
    noise_multiplier: float | None
    law: Literal["gaussian", "laplace"] = "gaussian"


def claim_of(parts: Sequence[object], tensors: Callable[[], int]) -> Claim | str:
    """Return the theorem that holds for parts in their order, or why none does.

    A finite epsilon takes a bound on what one image, or one client, adds, noise that is scaled to
    it, and an account of all releases (Abadi et al. 2016, Theorem 1). Parts that see nothing but
    what was noised cannot undo it (Dwork and Roth 2014, Proposition 2.1).

    Args:
        parts: in their order.
        tensors: tells how many there are in an update, for a clipping of each by itself.
    """
    if all(isinstance(part, NoDefense) for part in parts):
        return "there is no defense"
    unknown = [type(part).__name__ for part in parts if not is_ours(part)]
    if unknown:
        return f"nothing is known of what {', '.join(unknown)} guarantees"
    for part in parts:
        if isinstance(part, DpSgd):
            if part.multiplier == 0:
                return "no noise is added that could hide one image among others"
            return Claim(unit="image", noise_multiplier=part.multiplier, law=part.mechanism)
    return _of_the_client(parts, tensors)


def _of_the_client(parts: Sequence[object], tensors: Callable[[], int]) -> Claim | str:
    """Return the theorem of an update that is clipped as a whole and then noised."""
    clips = [place for place, part in enumerate(parts) if isinstance(part, Clipping)]
    noisy = [(place, p) for place, p in enumerate(parts) if isinstance(p, Perturbation)]
    if not noisy:
        return "no noise is added that could hide one image among others"
    if not clips:
        return "the update is not clipped, so noise of no scale hides what one image may add to it"
    place, noise = noisy[0]
    if clips[0] > place:
        return (
            "the noise is added before the clipping, to an update that nothing bounds: clip first"
        )
    clip = parts[place - 1]
    if noise.relative_to:
        return "the scale of the noise follows the update, and so tells of it"
    if not isinstance(clip, Clipping):
        return (
            f"{type(clip).__name__} changes the update between the clipping and the noise: clip "
            "right before the noise"
        )
    if law_of(noise.noise) != "gaussian":
        return (
            "the noise is not Gaussian, and the clipping bounds the update's Euclidean norm alone: "
            "choose noise=gaussian, or defense=dp_sgd with defense.dp_sgd.mechanism=laplace"
        )
    bound = clip.max_norm * (math.sqrt(tensors()) if clip.per == "layer" else 1)
    if noise.noise.scale < _LEAST_NOISE * bound:
        return (
            f"the noise is less than {_LEAST_NOISE:g} of the norm that updates are clipped to, "
            "which hides nobody"
        )
    return Claim(unit="client", noise_multiplier=min(noise.noise.scale / bound, _MOST_NOISE))

"""Which differential privacy a composition guarantees, and why it guarantees no more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medpfl.defenses.clipping import Clipping
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import Perturbation
from medpfl.settings.slots import is_ours
from medpfl.types import Privacy


def privacy_of(parts: Sequence[object]) -> Privacy:
    """Return the guarantee of parts in their order.

    A finite epsilon takes a bound on what one image adds to an update, noise that is scaled to it,
    and an account of all releases (Abadi et al. 2016, Theorem 1). Clipping a whole update bounds
    what a client adds to a sum of clients, not what one image adds to the client's update.
    """
    return Privacy(epsilon=math.inf, reason=_reason(parts))


def _reason(parts: Sequence[object]) -> str:
    clips = [place for place, part in enumerate(parts) if isinstance(part, Clipping)]
    noisy = [place for place, part in enumerate(parts) if isinstance(part, Perturbation)]
    if all(isinstance(part, NoDefense) for part in parts):
        return "there is no defense"
    unknown = [type(part).__name__ for part in parts if not is_ours(part)]
    if unknown:
        return f"nothing is known of what {', '.join(unknown)} guarantees"
    if not noisy:
        return "no noise is added that could hide one image among others"
    if not clips:
        return "the update is not clipped, so noise of no scale hides what one image may add to it"
    if clips[0] > noisy[0]:
        return (
            "the noise is added before the clipping, to an update that nothing bounds: clip first"
        )
    if any(isinstance(part, Perturbation) and part.relative_to for part in parts):
        return "the scale of the noise follows the update, and so tells of it"
    return (
        "the update is clipped as a whole, not image by image, and no account is kept of its "
        "releases"
    )

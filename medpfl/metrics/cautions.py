"""What keeps a run's numbers from saying what they seem to: sentences that stand beside them.

Each rule below looks at the scores and returns a sentence, or None where all is well. A rule that
is added to `_RULES` is heard on the console, in ``run.json`` and in the tables of sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from medpfl.image_score import ImageScore
from medpfl.metrics.grades import FEWEST_OTHERS, Grading
from medpfl.metrics.rates import is_zero_gradient, wilson
from medpfl.outcomes import Grade, Status

WIDEST = 0.3
"""An interval of a rate that is wider than this says little."""

Rule = Callable[[Sequence[ImageScore]], str | None]


def cautions(scores: Sequence[ImageScore], grading: Grading | None = None) -> tuple[str, ...]:
    """Return what a reader must know before believing the rates, most important first.

    Args:
        scores: the rows of ``metrics.csv``.
        grading: what they were graded with, or None.
    """
    judged = [score for score in scores if score.judged]
    found = [rule(judged) for rule in _RULES] if judged else []
    found.append(_unknown(len(scores) - len(judged), len(scores)))
    found.append(None if grading is None else _few_others(grading))
    return tuple(sentence for sentence in found if sentence is not None)


def _cut_short(scores: Sequence[ImageScore]) -> str | None:
    count = _unsolved(scores, Status.OUT_OF_STEPS)
    if not count:
        return None
    return (
        f"{count} of {len(scores)} images ran out of steps below the threshold: the attack was cut "
        "short there, not beaten. Raise attack.optimizer.max_steps before reading this as safety"
    )


def _left_open(scores: Sequence[ImageScore]) -> str | None:
    count = _unsolved(scores, Status.UNDETERMINED)
    if not count:
        return None
    left_open = [s for s in scores if s.status == Status.UNDETERMINED]
    told = (
        f"{count} of {len(scores)} images fit their update and are not rebuilt: at the distance "
        f"reached it determines {100 * median(s.determined for s in left_open):.0f} % of the "
        "unknowns (median)"
    )
    if all(s.closed_form for s in left_open):
        return f"{told}, as far as the rounding of a float32 client lets it; priors may know more"
    if all(s.defense.get("share_sent", 1.0) < 1 for s in left_open):
        return f"{told}, as its defense did not send the other entries; priors may know more"
    return f"{told}. Lower attack.optimizer.objective_below before reading this as safety"


def _at_rest(scores: Sequence[ImageScore]) -> str | None:
    count = sum(
        s.status == Status.STALLED and not s.success and s.closed_form is False for s in scores
    )
    if not count:
        return None
    return (
        f"{count} of {len(scores)} images came to rest below the threshold, and no closed form was "
        "found for them: a search that ends is no proof. More attack.restarts, or "
        "attack=scale_free or second_order where this is another, may find them"
    )


def _lost(scores: Sequence[ImageScore]) -> str | None:
    count = _unsolved(scores, Status.NON_FINITE)
    if not count:
        return None
    return (
        f"the attack broke down on {count} of {len(scores)} images (numbers that are not finite): "
        "these are failures of the attack, not of the defense"
    )


def _stood_in_for(scores: Sequence[ImageScore]) -> str | None:
    count = sum(not s.matched for s in scores)
    if not count:
        return None
    return (
        f"fewer images were handed in than are behind the updates: {count} of {len(scores)} are "
        "left without, and a black image stands in for theirs in the means"
    )


def _merely_below(scores: Sequence[ImageScore]) -> str | None:
    count = sum(s.grade == Grade.RECOGNISABLE and not s.success for s in scores)
    if not count:
        return None
    return (
        f"{count} of {len(scores)} images stay below the threshold and are recognisable all the "
        "same: look at the gallery"
    )


def _vanishing(scores: Sequence[ImageScore]) -> str | None:
    count = sum(is_zero_gradient(s.gradient_norm) and s.gradient_norm > 0 for s in scores)
    if not count:
        return None
    return (
        f"{count} of {len(scores)} gradients are tiny but not zero: an attack that does not square "
        "them in float32 (attack=scale_free) may rebuild these images"
    )


def _few_images(scores: Sequence[ImageScore]) -> str | None:
    n = len(scores)
    low, high = wilson(sum(s.success for s in scores), n)
    if high - low <= WIDEST:
        return None
    images = "1 image says" if n == 1 else f"{n} images say"
    return (
        f"{images} little: the success rate's interval spans {100 * (high - low):.0f} points. "
        "Attack more (n_images) before comparing"
    )


def _unknown(count: int, n: int) -> str | None:
    if not count:
        return None
    return (
        f"nobody knows {count} of {n} images: a low objective says that a reconstruction explains "
        "its update, not that it shows the image"
    )


def _few_others(grading: Grading) -> str | None:
    if grading.pairs == 0:
        return "no grades below diagnostic: there is no other image to tell a reconstruction from"
    if grading.others < FEWEST_OTHERS:
        return (
            f"recognisable is told from only {grading.others} other images: one guess in "
            f"{grading.others + 1} passes by chance"
        )
    return None


def _unsolved(scores: Sequence[ImageScore], status: Status) -> int:
    return sum(s.status == status and not s.success for s in scores)


_RULES: tuple[Rule, ...] = (
    _cut_short,
    _left_open,
    _at_rest,
    _lost,
    _stood_in_for,
    _merely_below,
    _vanishing,
    _few_images,
)

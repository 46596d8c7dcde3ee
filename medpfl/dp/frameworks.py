"""What the privacy settings of other people's frameworks are worth."""

from __future__ import annotations

import math

from medpfl.accounting import Mechanism
from medpfl.bounds import reconstruction_robustness as bounds
from medpfl.dp import words
from medpfl.dp.answers import CANDIDATES, Answer, Cost, cost, infinite, robustness
from medpfl.dp.flags import Asked
from medpfl.errors import ConfigurationError

_UPDATE = "client's whole update"


def flower(asked: Asked) -> Answer:
    """Account for Flower's ``LocalDpMod(clipping_norm, sensitivity, epsilon, delta)`` (1.41).

    It clips a client's whole update to the L2 norm C and adds Gaussian noise of standard deviation
    S sqrt(2 ln(1.25 / delta)) / epsilon to every entry of the model. The formula is Dwork and Roth
    2014, Theorem A.1, which asks for epsilon below 1; S is what the user says, while the update
    moves by C where it is there or not, and by 2C where another takes its place. Every round is one
    more release.
    """
    need = {flag: asked.need(flag, f"LocalDpMod takes it, {what}") for flag, what in _LOCAL_DP}
    norm, sensitivity = need["--clipping-norm"], need["--sensitivity"]
    claimed, delta = need["--epsilon"], need["--delta"]
    rounds, candidates = asked.get("--rounds", 1), asked.get("--candidates", CANDIDATES)
    std = sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / claimed
    what = {
        "mod": f"Flower's LocalDpMod, {rounds:,} {'round' if rounds == 1 else 'rounds'}",
        "noise": f"Gaussian, standard deviation {std:.5g}, {std / norm:.5g} x the clipping norm",
        "clipping": f"each {_UPDATE}, to norm {norm:g}; sensitivity given as {sensitivity:g}",
    }
    if std == 0:
        return infinite(asked, why=words.NO_SENSITIVITY, what=what, unit=_UPDATE)
    if not 1e-3 <= std / norm <= 1e6:
        raise ConfigurationError(
            f"--epsilon={claimed:g}: it makes the noise {std / norm:.3g} times the clipping norm, "
            "and 0.001 to 1e+06 can be accounted for; is --sensitivity in the unit of "
            "--clipping-norm?"
        )
    shown = asked.get("--neighbours", "replace").replace("-", "_")
    others = [name for name in ("add_remove", "replace") if name != shown]
    costs = []
    for neighbours in (*others, shown):
        mechanism = Mechanism(noise_multiplier=std / norm, neighbours=neighbours)
        costs.append(cost(mechanism, 1, delta, "a round"))
        if rounds > 1:
            costs.append(cost(mechanism, rounds, delta, f"all {rounds:,} rounds"))
    return Answer(
        what=what,
        settings={"noise": "gaussian", "noise_multiplier": std / norm, "rounds": rounds},
        unit=_UPDATE,
        costs=tuple(costs),
        delta=delta,
        accountant="exact",
        candidates=candidates,
        rero=robustness(mechanism, rounds, candidates),
        claimed=claimed,
        claimed_words="a round, by the mod's own epsilon",
        notes=_flower_notes(claimed, sensitivity, norm),
    )


_LOCAL_DP = (
    ("--clipping-norm", "the norm that updates are clipped to"),
    ("--sensitivity", "and does not compare it with the clipping norm"),
    ("--epsilon", "the claimed epsilon"),
    ("--delta", "such as 1e-5"),
)


def _flower_notes(claimed: float, sensitivity: float, norm: float) -> tuple[str, ...]:
    notes = []
    if claimed > 1:
        notes.append("the mod's formula holds for epsilon below 1 only; nothing checks that")
    if sensitivity < 2 * norm:
        notes.append(
            f"sensitivity {sensitivity:g} is less than the {2 * norm:g} by which an update clipped "
            f"to {norm:g} moves where another takes its place"
        )
    return tuple(notes)


def sparse_vector(asked: Asked) -> Answer:
    """Account for NVFlare's ``SVTPrivacy`` (2.9), as a pure epsilon of one client's update.

    It clips every entry to gamma, chooses `n` entries by the sparse vector technique under
    `epsilon` (threshold and queries; Dwork and Roth 2014, section 3.6, with sensitivity gamma), and
    sends them with Laplace noise of scale 2 gamma n / epsilon_release, where epsilon_release is
    n x noise_var unless it is given. The two add up, and so do rounds. Two updates that differ by 2
    gamma in each chosen entry spend all of epsilon_release, so that the sum is at most `epsilon`
    too large.
    """
    parameters = asked.need("--parameters", "how many the network has: the filter sends a part")
    chosen, noise = asked.get("--epsilon", 0.1), asked.get("--noise-var", 0.1)
    fraction, rounds = asked.get("--fraction", 0.1), asked.get("--rounds", 1)
    candidates = asked.get("--candidates", CANDIDATES)
    entries = min(math.ceil(parameters * fraction), parameters)
    release = asked.get("--epsilon-release", entries * noise)
    total = chosen + release
    costs = [Cost(releases=1, words="a round", neighbours="replace", pld=total)]
    if rounds > 1:
        words_ = f"all {rounds:,} rounds"
        costs.append(Cost(releases=rounds, words=words_, neighbours="replace", pld=rounds * total))
    return Answer(
        what={
            "filter": f"NVFlare's SVTPrivacy, {rounds:,} {'round' if rounds == 1 else 'rounds'}",
            "sent": f"{entries:,} of {parameters:,} entries, each clipped",
            "epsilon": f"{chosen:g} to choose them, {release:,g} to send them",
        },
        settings={"noise": "laplace", "entries": entries, "rounds": rounds},
        unit=_UPDATE,
        costs=tuple(costs),
        delta=0.0,
        accountant="pure",
        candidates=candidates,
        rero=bounds.pure_dp(epsilon=rounds * total, kappa=1 / candidates),
        claimed=chosen,
        claimed_words="by the filter's epsilon, which pays for the choice of entries alone",
        notes=("entries without a dimension, such as BatchNorm's counters, are sent as they are",),
    )


def percentile(asked: Asked) -> Answer:
    """Say why NVFlare's ``PercentilePrivacy`` (2.9) is no differential privacy.

    It drops the smallest entries of the update and truncates the others to gamma: deterministic.
    """
    what = {"filter": "NVFlare's PercentilePrivacy", "noise": "none"}
    return infinite(asked, why=words.PERCENTILE_IS_EXACT, what=what, unit=_UPDATE)

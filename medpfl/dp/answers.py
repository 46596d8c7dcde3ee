"""From flags to an epsilon and a bound."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from medpfl.accounting import Accountant, Mechanism, epsilon, noise_multiplier_for, profile
from medpfl.accounting.epsilon import knows_renyi
from medpfl.bounds import reconstruction_error
from medpfl.bounds import reconstruction_robustness as bounds
from medpfl.dp import words
from medpfl.dp.flags import FLOWER, PERCENTILE, SVT, Asked
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import NoiseMultiplier

CANDIDATES = 1000
_UNITS = {"example": "image", "update": "client's whole update"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Epsilon of some of the releases.

    Args:
        releases: how many.
        words: which, for people.
        neighbours: what epsilon hides: ``add_remove`` or ``replace``; None where it is infinite.
        pld: epsilon, by privacy loss distributions, or exact.
        rdp: epsilon by Renyi divergences; None where they are not known.
    """

    releases: int
    words: str
    neighbours: str | None
    pld: float
    rdp: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What somebody's noise is worth.

    Args:
        what: the mechanism, in lines ``{name: text}``.
        settings: the mechanism, for scripts.
        unit: what epsilon is about: one image, one client's whole update.
        costs: epsilon of one release or round, and last of all of them.
        delta: of every epsilon here; None where it is infinite.
        accountant: where the last cost's `Cost.pld` comes from: ``exact``, ``pld``, ``pure``.
        candidates: how many images the attacker has to choose from.
        rero: how probably it can at most choose the right one.
        unbiased_mse: the least mean squared error a pixel of an attacker without a prior; None
            where it is not known.
        claimed: the epsilon that the settings name; None where they name none.
        claimed_words: what that epsilon was claimed for.
        why: why epsilon is infinite.
        notes: what must hold for all this to be true.
    """

    what: Mapping[str, str]
    settings: Mapping[str, float | int | str]
    unit: str
    costs: tuple[Cost, ...]
    delta: float | None
    accountant: str
    candidates: int
    rero: float
    unbiased_mse: float | None = None
    claimed: float | None = None
    claimed_words: str = ""
    why: str | None = None
    notes: tuple[str, ...] = field(default=())


def answer(asked: Asked) -> Answer:
    """Account for what a command line describes.

    Raises:
        ConfigurationError: something is missing, or does not go together.
    """
    from medpfl.dp.frameworks import flower, percentile, sparse_vector

    ways: dict[str, Callable[[Asked], Answer]] = {
        FLOWER: flower,
        SVT: sparse_vector,
        PERCENTILE: percentile,
    }
    try:
        return ways.get(asked.mode, _federation)(asked)
    except ConfigurationError as fault:  # settings that bear the names of flags
        raise ConfigurationError(_SETTING.sub(_as_flag, str(fault))) from fault


_SETTING = re.compile(r"\baccounting\.([a-z_]+)")


def _as_flag(found: re.Match[str]) -> str:
    return f"--{found[1].replace('_', '-')}"


def infinite(asked: Asked, *, why: str, what: Mapping[str, str], unit: str = "image") -> Answer:
    """Return the answer for what hides nothing, and why it does not."""
    candidates = asked.get("--candidates", CANDIDATES)
    cost = Cost(releases=1, words="any release", neighbours=None, pld=math.inf, rdp=math.inf)
    return Answer(
        what=what,
        settings={},
        unit=unit,
        costs=(cost,),
        delta=None,
        accountant="none",
        candidates=candidates,
        rero=1.0,
        why=why,
    )


def cost(mechanism: Mechanism, releases: int, delta: float, words: str) -> Cost:
    """Return what releases of one mechanism cost, by both accountants where both know it."""
    spent = {mechanism: releases}
    known = knows_renyi(mechanism)
    return Cost(
        releases=releases,
        words=words,
        neighbours=mechanism.neighbours,
        pld=epsilon(spent, delta=delta),
        rdp=epsilon(spent, delta=delta, accountant="rdp") if known else None,
    )


def robustness(mechanism: Mechanism, releases: int, candidates: int) -> float:
    """Return how probably any attacker at most picks the right one of the candidates."""
    one = replace(mechanism, neighbours="add_remove")  # the bound is for a release without it
    noise, kappa = one.noise_multiplier, 1 / candidates
    if one.law == "gaussian" and one.sample_rate == 1:
        return bounds.gaussian(noise_multiplier=noise, releases=releases, kappa=kappa)
    if one.law == "laplace" and one.sample_rate == 1 and releases == 1:
        return bounds.laplace(epsilon=1 / noise, kappa=kappa)
    return bounds.from_profile(profile({one: releases}, presence=True), kappa=kappa)


def _federation(asked: Asked) -> Answer:
    clipping = asked.get("--clipping", "example")
    law: Literal["gaussian", "laplace"] = asked.get("--noise", "gaussian")
    what = {"noise": law.capitalize(), "clipping": _clipped(asked, clipping)}
    target = asked.get("--target-epsilon", None)
    _refuse_two_noises(asked)
    if clipping in ("none", "batch"):
        if target is not None:
            raise ConfigurationError(
                f"--target-epsilon={target:g}: no noise reaches it with --clipping {clipping}; "
                "choose --clipping example, or update"
            )
        why = words.NOT_CLIPPED if clipping == "none" else words.BATCH_CLIPPED
        return infinite(asked, why=why, what=what)
    if target is None and _noise_multiplier(asked) == 0:
        return infinite(asked, why=words.NO_NOISE, what=what, unit=_UNITS[clipping])
    steps = _steps(asked)
    delta = asked.need("--delta", "how probably epsilon may fail, such as 1e-5")
    mechanism = _mechanism(asked, law)
    if target is not None:
        found = noise_multiplier_for(
            target,
            delta=delta,
            mechanism=mechanism,
            steps=steps,
            accountant=_target_accountant(asked, mechanism),
        )
        mechanism = replace(mechanism, noise_multiplier=found)
    return _accounted(asked, mechanism, steps, delta, what, _UNITS[clipping])


def _accounted(
    asked: Asked,
    mechanism: Mechanism,
    steps: int,
    delta: float,
    what: Mapping[str, str],
    unit: str,
) -> Answer:
    candidates = asked.get("--candidates", CANDIDATES)
    noise, q = mechanism.noise_multiplier, mechanism.sample_rate
    everything = mechanism.law == "gaussian" and q == 1
    symbol = "standard deviation" if mechanism.law == "gaussian" else "b"
    target = asked.get("--target-epsilon", None)
    lines = {
        "noise": f"{what['noise']}, {symbol} {_up(noise)} x the clipping norm",
        "clipping": what["clipping"],
        "sampling": "everything takes part" if q == 1 else f"Poisson, rate {q:.5g}",
    }
    if target is not None:
        lines["target"] = f"epsilon {target:g}: the noise is the least that keeps to it"
    rounds = asked.get("--rounds", None)
    part = steps // rounds if rounds else 1
    name = "a round" if rounds else "a release"
    costs = [cost(mechanism, part, delta, name)] if part < steps else []
    total = "all " + (f"{rounds:,} rounds" if rounds and rounds > 1 else f"{steps:,} releases")
    costs.append(cost(mechanism, steps, delta, total if part < steps else name))
    return Answer(
        what=lines,
        settings={
            "noise": mechanism.law,
            "noise_multiplier": noise,
            "sample_rate": q,
            "steps": steps,
        },
        unit=unit,
        costs=tuple(costs),
        delta=delta,
        accountant="exact" if everything else "pld",
        candidates=candidates,
        rero=robustness(mechanism, steps, candidates),
        unbiased_mse=_unbiased_mse(mechanism, steps),
        notes=_notes(mechanism, unit),
    )


def _unbiased_mse(mechanism: Mechanism, steps: int) -> float | None:
    if mechanism.law != "gaussian" or mechanism.sample_rate < 1:
        return None
    return reconstruction_error.gaussian(
        noise_multiplier=mechanism.noise_multiplier, releases=steps
    )


def _up(noise: float) -> str:
    """Write a noise multiplier with five digits, the last one not below it."""
    unit = 10.0 ** (math.floor(math.log10(noise)) - 4)
    return f"{math.ceil(noise / unit * (1 - 1e-12)) * unit:.5g}"


def _notes(mechanism: Mechanism, unit: str) -> tuple[str, ...]:
    if mechanism.sample_rate == 1:
        return ()
    if unit == "image":
        return (
            "samples must be Poisson: shuffled batches of a fixed size are not covered, and nobody "
            "may see which images a step used",
        )
    return (
        "a server that knows which clients take part gains nothing from their sampling: "
        "--sample-rate 1 is its view",
    )


def _mechanism(asked: Asked, law: Literal["gaussian", "laplace"]) -> Mechanism:
    """Return one release; its noise multiplier is 1 where it is looked for."""
    noise = 1.0 if "--target-epsilon" in asked.values else _noise_multiplier(asked)
    flag = "--noise-multiplier" if "--noise-multiplier" in asked.values else "--noise-std"
    if "--noise-std" in asked.values and not 1e-3 <= noise <= 1e6:
        raise ConfigurationError(
            f"--noise-std={asked.values['--noise-std']:g}: it is {noise:g} times the clipping "
            "norm, and must be 0.001 to 1e+06 times it; are both in the same unit?"
        )
    check_value(flag, noise, NoiseMultiplier)
    neighbours = asked.get("--neighbours", "add-remove").replace("-", "_")
    rate = asked.get("--sample-rate", 1.0)
    if law == "laplace" and neighbours == "replace" and rate < 1:
        raise ConfigurationError(
            "--neighbours=replace: not known for Laplace noise on samples; choose add-remove, or "
            "--sample-rate 1"
        )
    return Mechanism(noise_multiplier=noise, sample_rate=rate, law=law, neighbours=neighbours)


def _target_accountant(asked: Asked, mechanism: Mechanism) -> Accountant:
    by: Accountant = asked.get("--accountant", "pld")
    if by == "rdp" and not knows_renyi(mechanism):
        raise ConfigurationError(
            "--accountant=rdp: not known for Laplace noise, nor for --neighbours replace on "
            "samples; choose pld"
        )
    return by


def _refuse_two_noises(asked: Asked) -> None:
    ways = ("--noise-multiplier", "--noise-std", "--target-epsilon")
    given = [flag for flag in ways if flag in asked.values]
    if len(given) > 1:
        raise ConfigurationError(
            f"{given[1]}={asked.values[given[1]]:g}: give only one of {' and '.join(given)}"
        )
    if "--accountant" in asked.values and "--target-epsilon" not in asked.values:
        raise ConfigurationError(
            f"--accountant={asked.values['--accountant']}: it goes with --target-epsilon; both "
            "accountants are printed anyway"
        )


def _noise_multiplier(asked: Asked) -> float:
    if "--noise-std" in asked.values:
        norm = asked.need("--clipping-norm", "what --noise-std is compared with")
        return float(asked.values["--noise-std"] / norm)
    return float(
        asked.need(
            "--noise-multiplier",
            "the noise over the clipping norm; or give --noise-std with --clipping-norm, or "
            "--target-epsilon to look for it",
        )
    )


def _steps(asked: Asked) -> int:
    steps, rounds = asked.get("--steps", None), asked.get("--rounds", None)
    local = asked.get("--local-steps", None)
    if steps is not None and (rounds, local) != (None, None):
        other = "--rounds" if rounds is not None else "--local-steps"
        raise ConfigurationError(f"--steps={steps}: give either it or {other}")
    if rounds is None and local is not None:
        raise ConfigurationError(f"--local-steps={local}: it goes with --rounds")
    if steps is None:
        if rounds is None:
            raise ConfigurationError(
                "--steps is missing: how often noise is added; or give --rounds and --local-steps"
            )
        steps = rounds * (local or 1)
    if steps > 10_000_000:
        raise ConfigurationError(f"--rounds={rounds}: with --local-steps that is {steps:,} steps")
    return int(steps)


def _clipped(asked: Asked, clipping: str) -> str:
    told = {
        "example": "each image's gradient",
        "update": "each client's whole update",
        "batch": "the mean over a batch",
        "none": "none",
    }[clipping]
    norm = asked.get("--clipping-norm", None)
    return told if norm is None or clipping == "none" else f"{told}, to norm {norm:g}"

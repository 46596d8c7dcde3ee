"""Epsilon of releases, by Renyi divergences and by privacy loss distributions (dp-accounting)."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Literal, get_args

from absl import logging as absl_logging
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from medpfl.accounting.gaussian import gaussian_delta, gaussian_epsilon
from medpfl.accounting.grid import loss_interval, sampled_loss
from medpfl.accounting.mechanism import Mechanism, Releases, neighbours_of
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import check_value
from medpfl.settings.ranges import Delta, Steps

# It took the stream of the moment it was made, which may be somebody's for a while, and would close
# that with all of logging's handlers.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

Accountant = Literal["pld", "rdp"]

_AT_ONCE = 10_000
_CUT = 1e-15
_RELATION = {
    "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace": NeighboringRelation.REPLACE_ONE,
}


def epsilon(releases: Releases, *, delta: float, accountant: Accountant = "pld") -> float:
    """Return an epsilon for which all these releases together are (epsilon, delta)-DP.

    Args:
        releases: how often each mechanism releases; none costs nothing.
        delta: the probability with which epsilon may fail.
        accountant: ``pld``, privacy loss distributions (Doroshenko et al. 2022, "Connect the
            dots"; Koskela et al. 2020), tight up to the grid, and exact for plain Gaussian noise
            (`gaussian_epsilon`); ``rdp``, Renyi divergences of the sampled Gaussian (Mironov et
            al. 2019, section 3.3; they add up: Mironov 2017, Proposition 1), an upper bound.

    Raises:
        ConfigurationError: delta out of range; an accountant that is not known, or not for these.
    """
    check_value("accounting.delta", delta, Delta)
    if accountant not in get_args(Accountant):
        raise ConfigurationError(f"accounting.accountant={accountant}: choose pld or rdp")
    counted = _counted(releases)
    if not counted:
        return 0.0
    if accountant == "rdp":
        return _renyi_epsilon(counted, delta)
    mu = _gaussian_mu(counted)
    if mu is not None:
        return gaussian_epsilon(delta, mu)
    try:
        found = float(_distribution(counted).get_epsilon_for_delta(delta))
    except OverflowError:  # losses whose exponential no float holds
        found = _renyi_epsilon(counted, delta) if _all_renyi(counted) else math.inf
    return min(found, _pure_epsilon(counted))


def knows_renyi(mechanism: Mechanism) -> bool:
    """Tell whether ``rdp`` can account for a mechanism."""
    on_samples = mechanism.neighbours == "replace" and mechanism.sample_rate < 1
    return mechanism.law == "gaussian" and not on_samples


def profile(releases: Releases, *, presence: bool = False) -> Callable[[float], float]:
    """Return epsilon -> delta of all these releases together, for epsilon of either sign.

    Args:
        releases: how often each mechanism releases.
        presence: delta(epsilon) is the largest P(E) - e^epsilon Q(E) over events E, where P and Q
            are any two neighbours; with `presence`, P has the contribution and Q has it not.

    Returns:
        A function that is an upper bound of delta; it is 1 where losses are too large to tell.
    """
    counted = _counted(releases)
    if not counted:
        return lambda epsilon: max(0.0, -math.expm1(epsilon))
    mu = _gaussian_mu(counted)
    if mu is not None:
        return lambda epsilon: gaussian_delta(epsilon, mu)
    try:
        losses = _distribution(counted)
    except OverflowError:
        return lambda epsilon: 1.0
    if presence:  # without the attribute: both directions, whose maximum is as safe
        losses = getattr(losses, "_pmf_remove", losses)
    return lambda epsilon: float(losses.get_delta_for_epsilon(epsilon))


_Counted = tuple[tuple[Mechanism, int], ...]


def _counted(releases: Releases) -> _Counted:
    neighbours_of(releases)
    for count in releases.values():
        if count != 0:
            check_value("accounting.releases", count, Steps)
    return tuple((mechanism, count) for mechanism, count in releases.items() if count)


def _gaussian_mu(counted: _Counted) -> float | None:
    """Return mu of the one Gaussian release that these amount to; None where they do not."""
    if any(m.law != "gaussian" or m.sample_rate < 1 for m, _ in counted):
        return None
    return math.sqrt(math.fsum(n * (m.moves / m.noise_multiplier) ** 2 for m, n in counted))


def _renyi_epsilon(counted: _Counted, delta: float) -> float:
    if not _all_renyi(counted):
        raise ConfigurationError(
            "accounting.accountant=rdp: not known for Laplace noise, nor for neighbours=replace on "
            "samples; choose pld"
        )
    accountant = RdpAccountant()
    with _quiet():
        for mechanism, count in counted:
            noise = GaussianDpEvent(mechanism.noise_multiplier / mechanism.moves)
            accountant.compose(PoissonSampledDpEvent(mechanism.sample_rate, noise), count)
        return float(accountant.get_epsilon(delta))


def _all_renyi(counted: _Counted) -> bool:
    return all(knows_renyi(mechanism) for mechanism, _ in counted)


def _pure_epsilon(counted: _Counted) -> float:
    """Return epsilon at delta 0: the largest losses, which Gaussian noise does not bound."""
    if any(mechanism.law == "gaussian" for mechanism, _ in counted):
        return math.inf
    return math.fsum(
        count * sampled_loss(mechanism.moves / mechanism.noise_multiplier, mechanism.sample_rate)
        for mechanism, count in counted
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence absl: orders whose series does not converge are left out, which is safe."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


@lru_cache(maxsize=8)
def _distribution(counted: _Counted) -> pld.PrivacyLossDistribution:
    """Return the distribution of the privacy loss of all these releases."""
    interval = loss_interval(counted)
    parts = (_repeated(_single(mechanism, interval), count) for mechanism, count in counted)
    return reduce(lambda a, b: a.compose(b), parts)


def _repeated(
    losses: pld.PrivacyLossDistribution, count: int, cut: float = _CUT
) -> pld.PrivacyLossDistribution:
    """Return the loss of that many releases, composed in stages.

    dp-accounting reserves room for a sum of losses by Chernoff bounds that become very wide where
    many are summed at once: ten million releases would take 30 GB.

    Args:
        losses: of one release.
        count: how many.
        cut: probability of the tails that may be counted as infinite losses, in all of this.
    """
    if count <= _AT_ONCE:
        return losses.self_compose(count, cut)
    whole, rest = divmod(count, _AT_ONCE)
    stage = losses.self_compose(_AT_ONCE, cut * _AT_ONCE / count / 2)
    repeated = _repeated(stage, whole, cut / 4)
    return repeated.compose(losses.self_compose(rest, cut / 4), cut / 4) if rest else repeated


def _single(mechanism: Mechanism, interval: float) -> pld.PrivacyLossDistribution:
    if mechanism.law == "laplace":
        return pld.from_laplace_mechanism(
            mechanism.noise_multiplier,
            sensitivity=mechanism.moves,
            value_discretization_interval=interval,
            sampling_prob=mechanism.sample_rate,
        )
    # The sensitivity stays 1: under `replace` dp-accounting itself sets x against -x.
    return pld.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=mechanism.sample_rate,
        neighboring_relation=_RELATION[mechanism.neighbours],
    )

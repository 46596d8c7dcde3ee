"""Epsilon against published values, and against integrals and sums of our own."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import laplace, norm

from medpfl.accounting import Ledger, Mechanism, epsilon, noise_multiplier_for, profile
from medpfl.accounting.gaussian import gaussian_delta, gaussian_epsilon
from medpfl.errors import ConfigurationError


def sampled(sigma: float, q: float, **kwargs: object) -> Mechanism:
    return Mechanism(noise_multiplier=sigma, sample_rate=q, **kwargs)


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "delta", "rdp", "tight"),
    [
        (3, 0.2, 50, 1 / 48000, "2.169", "1.961"),
        (1.54, 1024 / 50000, 1464, 1e-5, "2.608", "2.386"),
        (1.1, 256 / 60000, 14062, 1e-5, "2.597", "2.382"),
        (4, 0.01, 10000, 1e-5, "1.035", "0.947"),
        (1, 1.0, 1, 1e-5, "4.729", "4.377"),
        (0.1, 1.0, 1, 1e-5, "96.1", "91.8"),
    ],
)
def test_epsilon_is_as_published(sigma, q, steps, delta, rdp, tight):
    releases = {sampled(sigma, q): steps}
    digits = len(rdp.partition(".")[2])
    assert f"{epsilon(releases, delta=delta, accountant='rdp'):.{digits}f}" == rdp
    assert f"{epsilon(releases, delta=delta):.{digits}f}" == tight


# An accountant of our own: losses of the pair on a line, summed by one Fourier transform.


def mixture(x: np.ndarray, sigma: float, q: float, side: float = 1.0) -> np.ndarray:
    return (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, side, sigma)


def summed_delta(
    sigma: float, q: float, steps: int, at: float, *, replaced: bool = False, width: float = 2e-4
) -> float:
    """Return delta of `steps` releases, with the image against without it, or the other one."""
    x = np.linspace(-12 * sigma - 1, 12 * sigma + 1, 2_000_001)
    p = mixture(x, sigma, q)
    other = mixture(x, sigma, q, -1.0) if replaced else norm.pdf(x, 0, sigma)
    loss = np.log(p) - np.log(other)
    # A ring of losses, wide enough that sums do not lap it: nearest cells, no side preferred.
    n = 2**19
    cells = np.round(loss / width).astype(int)
    mass = np.bincount(cells % n, weights=p * (x[1] - x[0]), minlength=n)
    total = np.fft.irfft(np.fft.rfft(mass) ** steps, n)
    losses = ((np.arange(n) + n // 2) % n - n // 2) * width
    above = losses > at
    return float((total[above] * -np.expm1(at - losses[above])).sum())


@pytest.mark.parametrize(("sigma", "q", "steps"), [(3, 0.2, 50), (1, 0.1, 20), (4, 0.01, 1000)])
def test_epsilon_of_samples_is_that_of_a_sum_of_our_own(sigma, q, steps):
    releases = {sampled(sigma, q): steps}
    found = epsilon(releases, delta=1e-5)
    assert summed_delta(sigma, q, steps, found) == pytest.approx(1e-5, rel=0.01)
    assert profile(releases, presence=True)(0.5) == pytest.approx(
        summed_delta(sigma, q, steps, 0.5), rel=0.01
    )


def test_replacement_on_samples_is_that_of_a_sum_of_our_own():
    found = epsilon({sampled(3, 0.2, neighbours="replace"): 50}, delta=1e-5)
    assert summed_delta(3, 0.2, 50, found, replaced=True) == pytest.approx(1e-5, rel=0.01)
    assert found > 1.7 * epsilon({sampled(3, 0.2): 50}, delta=1e-5)


@pytest.mark.parametrize(("sigma", "q", "order"), [(3.0, 0.2, 8), (1.0, 0.1, 3), (2.0, 1.0, 5)])
def test_renyi_divergence_is_its_integral(sigma, q, order):
    """Mironov et al. 2019: E over N(0, sigma^2) of the ratio to the power of the order."""

    def integrand(x: float) -> float:
        ratio = (1 - q) + q * math.exp((2 * x - 1) / (2 * sigma**2))
        return float(norm.pdf(x, 0, sigma)) * ratio**order

    centre = float(order)
    spread = 14 * sigma
    moment = quad(integrand, -spread, centre + spread, limit=500, points=[0, centre])[0]
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=[order])
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)))
    assert accountant.rdp[0] == pytest.approx(math.log(moment) / (order - 1), rel=1e-6)
    if q == 1:  # Mironov 2017, Corollary 3
        assert accountant.rdp[0] == pytest.approx(order / (2 * sigma**2))
    # No tighter than it says: any single order gives a valid epsilon.
    alone = 10 * accountant.rdp[0] + math.log(1e5) / (order - 1)  # Mironov 2017, Proposition 3
    assert epsilon({sampled(sigma, q): 10}, delta=1e-5, accountant="rdp") <= alone


@pytest.mark.parametrize("mu", [0.01, 0.2, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("at", [-1.0, 0.0, 0.5, 3.0])
def test_gaussian_delta_is_its_integral(mu, at):
    cut = at / mu + mu / 2  # where the ratio is e^at

    def integrand(x: float) -> float:
        return float(norm.pdf(x, mu) - math.exp(at) * norm.pdf(x))

    middle = max(cut, mu)
    integral = quad(integrand, cut, middle + 1e-12, epsabs=1e-13, limit=400)[0]
    integral += quad(integrand, middle, middle + 40, epsabs=1e-13, limit=400)[0]
    assert gaussian_delta(at, mu) == pytest.approx(integral, abs=1e-10)


def test_gaussian_delta_keeps_its_digits_in_the_tails():
    # By mpmath with 60 digits: delta(1260.97770835542...) = 1e-5 for 20 releases of claimed 50.
    mu = math.sqrt(20) * 50 / math.sqrt(2 * math.log(1.25e5))
    assert gaussian_epsilon(1e-5, mu) == pytest.approx(1260.9777083554222, rel=1e-12)
    assert gaussian_epsilon(0.5, 0.1) == 0.0
    assert gaussian_delta(2e15, 1e4) == 0.0
    # Decreasing in epsilon, without jumps where the formulas change.
    at = np.linspace(7.9, 8.1, 401)
    values = [gaussian_delta(float(e), 4.0) for e in at]
    assert (np.diff(values) < 0).all()
    assert np.abs(np.diff(values, 2)).max() < 1e-6


def test_plain_gaussian_noise_is_exact_and_dp_accounting_agrees():
    from dp_accounting.pld import privacy_loss_distribution as pld

    by_grid = pld.from_gaussian_mechanism(2.0).self_compose(7).get_epsilon_for_delta(1e-6)
    assert epsilon({sampled(2.0, 1.0): 7}, delta=1e-6) == pytest.approx(by_grid, rel=1e-4)
    mixed = epsilon({sampled(2.0, 1.0): 3, sampled(1.0, 1.0): 1}, delta=1e-6)
    assert mixed == pytest.approx(epsilon({sampled(2.0, 1.0): 7}, delta=1e-6))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_laplace_delta_is_its_integral(scale):
    noise = sampled(scale, 1.0, law="laplace")
    at = 0.4 / scale

    def integrand(x: float) -> float:
        return max(0.0, laplace.pdf(x, 1, scale) - math.exp(at) * laplace.pdf(x, 0, scale))

    points = [0, (1 + at * scale) / 2, 1]
    integral = quad(integrand, -40 * scale, 1 + 40 * scale, points=points, limit=500)[0]
    assert profile({noise: 1})(at) == pytest.approx(integral, rel=1e-4)


def test_laplace_noise_has_an_epsilon_at_delta_zero():
    noise = sampled(10, 1.0, law="laplace")
    assert epsilon({noise: 1}, delta=1e-12) == pytest.approx(0.1, rel=1e-6)
    assert epsilon({noise: 5}, delta=1e-12) <= 0.5
    assert epsilon({noise: 1000}, delta=1e-5) < 30  # and not 100, as by the sum
    halved = sampled(20, 1.0, law="laplace", neighbours="replace")
    assert epsilon({halved: 5}, delta=1e-5) == pytest.approx(epsilon({noise: 5}, delta=1e-5))
    on_samples = sampled(10, 0.1, law="laplace")
    pure = math.log1p(0.1 * math.expm1(0.1))
    assert epsilon({on_samples: 1}, delta=1e-12) == pytest.approx(pure, rel=1e-3)


def test_replacing_everything_is_half_the_noise():
    replaced = sampled(2.0, 1.0, neighbours="replace")
    for by in ("pld", "rdp"):
        once = epsilon({replaced: 3}, delta=1e-5, accountant=by)
        assert once == pytest.approx(epsilon({sampled(1.0, 1.0): 3}, delta=1e-5, accountant=by))


@pytest.mark.parametrize(
    ("kind", "steps", "by"),
    [
        ({"sample_rate": 0.2}, 50, "pld"),
        ({"sample_rate": 0.2}, 50, "rdp"),
        ({"sample_rate": 1.0}, 20, "pld"),
        ({"sample_rate": 1.0, "neighbours": "replace"}, 20, "pld"),
        ({"sample_rate": 1.0, "law": "laplace"}, 5, "pld"),
    ],
)
def test_the_noise_for_a_target_is_enough_and_no_more(kind, steps, by):
    mechanism = Mechanism(noise_multiplier=1.0, **kind)
    found = noise_multiplier_for(1.961, delta=1e-5, mechanism=mechanism, steps=steps, accountant=by)
    spent = {
        f: epsilon(
            {Mechanism(noise_multiplier=found * f, **kind): steps}, delta=1e-5, accountant=by
        )
        for f in (1.0, 1 - 3e-5)
    }
    assert spent[1.0] <= 1.961 < spent[1 - 3e-5]


def test_no_noise_reaches_what_none_can():
    mechanism = sampled(1.0, 1.0)
    with pytest.raises(ConfigurationError, match=r"target_epsilon=0.001: no noise multiplier"):
        noise_multiplier_for(0.001, delta=1e-12, mechanism=mechanism, steps=10_000_000)
    least = noise_multiplier_for(1e6, delta=1e-2, mechanism=mechanism, steps=1)
    assert least == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("sigma", "q", "steps"),
    [(1e6, 1e-9, 10_000_000), (1.0, 1e-6, 1), (0.05, 0.9, 10_000_000), (0.3, 0.5, 100_000)],
)
def test_extremes_stay_below_renyi_and_above_nothing(sigma, q, steps):
    releases = {sampled(sigma, q): steps}
    tight = epsilon(releases, delta=1e-5)
    assert 0 <= tight <= epsilon(releases, delta=1e-5, accountant="rdp") + 1e-3


def test_many_releases_in_stages_are_those_at_once():
    staged = epsilon({sampled(4.0, 0.01): 25_000}, delta=1e-5)
    assert summed_delta(4.0, 0.01, 25_000, staged, width=1e-4) == pytest.approx(1e-5, rel=0.05)


def test_a_ledger_adds_up_rounds():
    a, b = sampled(3.0, 0.2), sampled(2.0, 0.1)
    ledger = Ledger(delta=1e-5)
    assert (ledger.epsilon, ledger.steps, ledger.left(2.0)) == (0.0, 0, 2.0)
    ledger.record(a, 10)
    ledger.record(b)
    first = ledger.end_round()
    assert first == ledger.epsilon_of_round(0) == epsilon({a: 10, b: 1}, delta=1e-5)
    ledger.record(a, 10)
    second = ledger.end_round()
    assert second == epsilon({a: 10}, delta=1e-5)
    assert ledger.epsilon == epsilon({a: 20, b: 1}, delta=1e-5)
    assert max(first, second) < ledger.epsilon < first + second
    assert ledger.steps == 21
    assert ledger.left(5.0) == pytest.approx(5.0 - ledger.epsilon)
    assert ledger.left(0.01) == 0.0


@pytest.mark.parametrize("by", ["pld", "rdp"])
def test_a_ledger_says_how_many_steps_a_budget_allows(by):
    mechanism = sampled(1.0, 1.0)
    ledger = Ledger(delta=1e-5, accountant=by)
    ledger.record(mechanism, 2)
    left = ledger.steps_left(mechanism, 12.0)
    spent = [epsilon({mechanism: 2 + n}, delta=1e-5, accountant=by) for n in (left, left + 1)]
    assert spent[0] <= 12.0 < spent[1]
    ledger.record(mechanism, left)
    assert ledger.steps_left(mechanism, 12.0) == 0
    assert ledger.steps_left(mechanism, 0.5) == 0
    assert Ledger(delta=1e-2).steps_left(sampled(1e6, 1.0), 100.0) == 10_000_000


def test_mistakes_name_the_setting():
    mechanism = sampled(1.0, 1.0)
    for make, words in (
        (lambda: sampled(0.0, 0.5), "accounting.noise_multiplier=0.0: must be at least 0.001"),
        (lambda: sampled(1.0, 1.5), "accounting.sample_rate=1.5: must be positive and at most 1"),
        (lambda: sampled(1.0, 1.0, law="cauchy"), "accounting.law=cauchy: choose gaussian or lap"),
        (lambda: sampled(1.0, 1.0, neighbours="x"), "accounting.neighbours=x: choose add_remove"),
        (
            lambda: sampled(1.0, 0.5, law="laplace", neighbours="replace"),
            "neighbours=replace: not known for Laplace noise on samples",
        ),
        (lambda: epsilon({mechanism: 1}, delta=0.0), "accounting.delta=0.0: must be at least"),
        (lambda: epsilon({mechanism: 1}, delta=1.0), "accounting.delta=1.0: must be at least"),
        (lambda: epsilon({mechanism: -1}, delta=0.1), "accounting.releases=-1: must be"),
        (lambda: epsilon({mechanism: 1}, delta=0.1, accountant="gdp"), "choose pld or rdp"),
        (
            lambda: epsilon({sampled(1.0, 1.0, law="laplace"): 1}, delta=0.1, accountant="rdp"),
            "accounting.accountant=rdp: not known for Laplace",
        ),
        (lambda: Ledger(delta=2.0), "accounting.delta=2.0"),
        (lambda: Ledger(delta=0.1).record(mechanism, 0), "accounting.steps=0"),
        (lambda: Ledger(delta=0.1).epsilon_of_round(3), "round=3: the ledger has rounds 0 to 0"),
        (lambda: Ledger(delta=0.1).left(0.0), "accounting.target_epsilon=0.0: must be"),
    ):
        with pytest.raises(ConfigurationError) as raised:
            make()
        assert words in str(raised.value)


def test_unlike_neighbours_do_not_add_up():
    ledger = Ledger(delta=1e-5)
    ledger.record(sampled(1.0, 1.0))
    with pytest.raises(ConfigurationError, match="add_remove and of replace do not add up"):
        ledger.record(sampled(1.0, 1.0, neighbours="replace"))
    assert ledger.steps == 1


def test_accounting_needs_no_torch():
    script = "import sys, medpfl.accounting, medpfl.bounds.reconstruction_robustness as r\n"
    script += "assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", script], check=True)

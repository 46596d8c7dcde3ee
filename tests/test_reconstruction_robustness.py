"""Reconstruction robustness: closed forms, draws and privacy losses against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import laplace, norm

from medpfl.accounting import Mechanism, epsilon, profile
from medpfl.bounds import monte_carlo, reconstruction_error
from medpfl.bounds import reconstruction_robustness as rero
from medpfl.errors import ConfigurationError
from medpfl.seeding import generator

KAPPAS = (0.5, 0.1, 0.01, 0.001)


def by_test(with_it, without, ratio, kappa: float) -> float:
    """Return the power of the best test of a level, by summing densities on a fine line."""
    x = np.linspace(-60, 60, 480_001)
    order = np.argsort(-ratio(x), kind="stable")
    level = np.cumsum(without(x)[order]) * (x[1] - x[0])
    power = np.cumsum(with_it(x)[order]) * (x[1] - x[0])
    return float(np.interp(kappa, level, power))


@pytest.mark.parametrize(("kappa", "bound"), [(0.1, "0.38914"), (0.01, "0.09236")])
def test_gaussian_values(kappa, bound):
    assert f"{rero.gaussian(noise_multiplier=1, releases=1, kappa=kappa):.5f}" == bound
    many = rero.gaussian(noise_multiplier=3, releases=9, kappa=kappa)
    assert many == pytest.approx(float(bound), abs=1e-5)


def test_laplace_value():
    assert f"{rero.laplace(epsilon=2, kappa=0.1):.5f}" == "0.66166"


@pytest.mark.parametrize(
    ("sigma", "q", "kappa", "samples", "bound"),
    [
        (1, 0.1, 0.1, 400_000, ".341"),
        (1, 0.1, 0.01, 100_000, ".083"),
        (3, 0.2, 0.1, 150_000, ".213"),
        (3, 0.2, 0.01, 50_000, ".0336"),
    ],
)
def test_samples_by_losses_and_by_draws(sigma, q, kappa, samples, bound):
    setting = {"noise_multiplier": sigma, "sample_rate": q, "steps": 50, "kappa": kappa}
    by_losses = rero.subsampled_gaussian(**setting)
    assert f"{by_losses:.{len(bound) - 1}f}" == f"0{bound}"
    drawn = monte_carlo.subsampled_gaussian(
        **setting, samples=samples, generator=generator(1, "rero", kappa)
    )
    assert 0 < drawn.standard_error < 6e-4
    assert drawn.value == pytest.approx(by_losses, abs=1e-3)
    assert abs(drawn.value - by_losses) < 3 * drawn.standard_error


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_three_ways_agree_where_everything_takes_part(mu, kappa):
    closed = rero.gaussian(noise_multiplier=2 / mu, releases=4, kappa=kappa)
    by_losses = rero.subsampled_gaussian(
        noise_multiplier=2 / mu, sample_rate=1.0, steps=4, kappa=kappa
    )
    drawn = monte_carlo.subsampled_gaussian(
        noise_multiplier=2 / mu,
        sample_rate=1.0,
        steps=4,
        kappa=kappa,
        samples=1_000_000,
        generator=generator(2, "rero", kappa),
    )
    assert by_losses == pytest.approx(closed, abs=1e-9)
    assert drawn.value == pytest.approx(closed, abs=1e-3)
    density = by_test(lambda x: norm.pdf(x, mu), norm.pdf, lambda x: mu * x - mu * mu / 2, kappa)
    assert closed == pytest.approx(density, abs=1e-4)


@pytest.mark.parametrize("kappa", [0.9, *KAPPAS])
@pytest.mark.parametrize("eps", [0.1, 1.0, 4.0])
def test_laplace_is_the_best_test_of_its_densities(eps, kappa):
    closed = rero.laplace(epsilon=eps, kappa=kappa)
    noise = Mechanism(noise_multiplier=1 / eps, law="laplace")
    assert rero.from_profile(profile({noise: 1}), kappa=kappa) == pytest.approx(closed, abs=1e-5)

    def without(cut: float) -> float:
        return float(laplace.sf(cut, 0, 1 / eps))

    # The ratio rises with x: the best test is a cut, where Laplace noise has it.
    cut = float(laplace.isf(kappa, 0, 1 / eps))
    assert without(cut) == pytest.approx(kappa)
    power = quad(lambda x: laplace.pdf(x, 1, 1 / eps), cut, max(cut, 1), epsabs=1e-12)[0]
    power += quad(lambda x: laplace.pdf(x, 1, 1 / eps), max(cut, 1), np.inf, epsabs=1e-12)[0]
    assert closed == pytest.approx(power, abs=1e-8)


@pytest.mark.parametrize(("sigma", "q"), [(0.5, 0.5), (1.0, 0.9), (0.3, 0.05)])
@pytest.mark.parametrize("kappa", [0.5, 0.1, 0.001])
def test_one_sample_is_the_best_test_of_its_densities(sigma, q, kappa):
    bound = rero.subsampled_gaussian(noise_multiplier=sigma, sample_rate=q, steps=1, kappa=kappa)
    density = by_test(
        lambda x: (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, 1, sigma),
        lambda x: norm.pdf(x, 0, sigma),
        lambda x: x,
        kappa,
    )
    assert bound == pytest.approx(density, abs=2e-4)
    assert bound >= density - 1e-4


def test_hardly_any_noise_shows_who_took_part():
    """An image that takes part is found; one that does not is guessed."""
    bound = rero.subsampled_gaussian(noise_multiplier=0.05, sample_rate=0.9, steps=1, kappa=0.001)
    assert bound == pytest.approx(0.9 + 0.1 * 0.001, abs=1e-5)
    many = rero.subsampled_gaussian(noise_multiplier=0.02, sample_rate=0.01, steps=100, kappa=0.1)
    # Losses of thousands are told apart coarsely, which costs tightness and never safety.
    assert 1 - 0.99**100 * 0.9 <= many < 1 - 0.99**100 * 0.9 + 0.05


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_bound_is_below_that_of_its_pure_epsilon(kappa):
    for eps in (0.0, 0.3, 2.0, 8.0):
        pure = rero.pure_dp(epsilon=eps, kappa=kappa)
        assert pure == pytest.approx(min(1.0, kappa * math.exp(eps)))
        assert kappa - 1e-12 <= rero.laplace(epsilon=eps, kappa=kappa) <= pure + 1e-12
    assert rero.pure_dp(epsilon=1e6, kappa=kappa) == 1.0


@pytest.mark.parametrize("kappa", KAPPAS)
def test_a_bound_lies_between_the_guess_and_epsilon_with_delta(kappa):
    sampled = Mechanism(noise_multiplier=1.2, sample_rate=0.1)
    bound = rero.subsampled_gaussian(noise_multiplier=1.2, sample_rate=0.1, steps=30, kappa=kappa)
    eps = epsilon({sampled: 30}, delta=1e-5)
    assert kappa < bound <= min(1.0, math.exp(eps) * kappa + 1e-5)
    whole = rero.gaussian(noise_multiplier=1.2, releases=30, kappa=kappa)
    assert bound < whole


def test_attackers_who_know_everything_stay_below_the_bound_and_reach_it():
    """One of ten candidates, each the contribution along an axis: the most likely one is taken."""
    rng = np.random.default_rng(3)
    n, sigma, trials = 10, 0.5, 20_000
    seen = rng.normal(0, sigma, (trials, n))
    seen[:, 0] += 1.0
    hits = float((seen.argmax(1) == 0).mean())
    bound = rero.gaussian(noise_multiplier=sigma, releases=1, kappa=1 / n)
    assert 0.8 * bound < hits < bound
    # Two opposite candidates are as far apart as two can be.
    two = float((rng.normal(1.0, sigma, trials) > 0).mean())
    assert two < rero.gaussian(noise_multiplier=sigma, releases=1, kappa=0.5) + 0.01


def test_the_error_of_draws_is_what_they_scatter_by():
    setting = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 5, "kappa": 0.1}
    drawn = [
        monte_carlo.subsampled_gaussian(**setting, samples=5_000, generator=generator(seed, "se"))
        for seed in range(100)
    ]
    values = np.array([one.value for one in drawn])
    told = np.mean([one.standard_error for one in drawn])
    assert values.std() == pytest.approx(told, rel=0.25)  # 100 give it to 7 %
    exact = rero.subsampled_gaussian(**setting)
    assert values.mean() == pytest.approx(exact, abs=4 * told / 10)
    again = monte_carlo.subsampled_gaussian(**setting, samples=5_000, generator=generator(0, "se"))
    assert again == drawn[0]


def test_mistakes_name_the_value():
    for make, words in (
        (lambda: rero.pure_dp(epsilon=-1.0, kappa=0.1), "bound.epsilon=-1.0: must be at least 0"),
        (lambda: rero.laplace(epsilon=1.0, kappa=0.0), "bound.kappa=0.0: must be positive"),
        (lambda: rero.from_profile(lambda e: 0.0, kappa=1.0), "bound.kappa=1.0"),
        (
            lambda: rero.gaussian(noise_multiplier=0.0, releases=1, kappa=0.1),
            "bound.noise_multiplier=0.0",
        ),
        (lambda: rero.gaussian(noise_multiplier=1.0, releases=0, kappa=0.1), "bound.releases=0"),
        (
            lambda: rero.subsampled_gaussian(
                noise_multiplier=1.0, sample_rate=0.0, steps=1, kappa=0.1
            ),
            "accounting.sample_rate=0.0",
        ),
        (
            lambda: monte_carlo.subsampled_gaussian(
                noise_multiplier=1.0,
                sample_rate=0.5,
                steps=1,
                kappa=0.1,
                samples=10,
                generator=generator(0),
            ),
            "bound.samples=10: must be at least 1,000",
        ),
    ):
        with pytest.raises(ConfigurationError) as raised:
            make()
        assert words in str(raised.value)


def test_the_error_by_renyi_privacy_has_its_value_and_is_below_what_the_mean_reaches():
    assert reconstruction_error.from_renyi(epsilon=math.log(2)) == pytest.approx(0.25)
    assert reconstruction_error.from_renyi(epsilon=0) == math.inf
    # One pixel moves a release by at most 2C: the mean of T releases errs by sigma^2 C^2 / T.
    for sigma, releases in ((0.5, 1), (3.0, 2), (40.0, 7)):
        bound = reconstruction_error.gaussian(noise_multiplier=sigma, releases=releases)
        assert 0 < bound < sigma**2 / (4 * releases)
    far = reconstruction_error.gaussian(noise_multiplier=1e4, releases=1)
    assert far == pytest.approx(1e8 / 16, rel=1e-6)
    with pytest.raises(ConfigurationError, match="epsilon"):
        reconstruction_error.from_renyi(epsilon=-1)

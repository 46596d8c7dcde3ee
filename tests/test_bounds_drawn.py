"""Bounds from a few products with J'J beside those from all of it; priors from images."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from bound_maps import drawn, linear_map, normalised
from helpers import payload_of, seeded, spec_of, victim_of
from sklearn.covariance import ledoit_wolf

from medpfl.bounds import pixels
from medpfl.bounds.exact import ExactInformation
from medpfl.bounds.fisher import expected_information, information
from medpfl.bounds.lanczos import lanczos
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.prior import GaussianPrior
from medpfl.bounds.sketched import SketchedInformation, random_signs
from medpfl.errors import ConfigurationError
from medpfl.training import LocalTraining

SIZE = 30
SHAPE = (1, 1, 5, 6)


def matrix(seed: int = 0, spread: float = 3.0):
    """Return J'J whose eigenvalues span `spread` powers of ten."""
    directions = torch.linalg.qr(drawn(SIZE, SIZE, seed=seed))[0]
    values = 10 ** -torch.linspace(0, spread, SIZE, dtype=torch.float64)
    gram = (directions * values) @ directions.T
    return (gram + gram.T) / 2


def both(seed: int = 0, *, probes: int = 12, steps: int = 10, spread: float = 3.0):
    gram = matrix(spread=spread)
    signs = random_signs(probes, SIZE, seeded(seed))
    sketched = SketchedInformation(
        shape=SHAPE, product=lambda rows: rows @ gram, probes=signs, steps=steps
    )
    return ExactInformation(shape=SHAPE, gram=gram), sketched


def some_prior() -> GaussianPrior:
    images = torch.rand((9, 1, 5, 6), generator=seeded(7)).double() * 0.3
    return GaussianPrior.from_images(images, tied=False)


def on_probes(inverse, probes) -> float:
    return float(((probes @ inverse) * probes).mean())


def test_the_sides_on_which_quadratures_lie():
    exact, sketched = both()
    prior, std = some_prior(), 0.3
    own = sketched.cramer_rao(std)
    assert own.mse < on_probes(std**2 * exact.gram.inverse(), sketched.probes)
    assert own.short_by == math.inf
    posterior = (exact.gram / std**2 + prior.covariance().inverse()).inverse()
    for std in (1.0, 0.1, 0.03, 0.01):
        posterior = (exact.gram / std**2 + prior.covariance().inverse()).inverse()
        bound = sketched.van_trees(std, prior)
        on_these = on_probes(posterior, sketched.probes)
        assert bound.mse <= on_these * (1 + 1e-9)
        assert on_these <= (bound.mse + bound.short_by) * (1 + 1e-9)
    assert sketched.van_trees(0.01, prior).short_by > 0
    assert sketched.van_trees(10.0, prior).short_by < 1e-9


def test_more_steps_close_the_gap():
    prior = some_prior()
    gaps = [both(steps=steps)[1].van_trees(0.03, prior).short_by for steps in (3, 8, 20, SIZE)]
    assert all(more <= fewer + 1e-12 for fewer, more in pairwise(gaps))
    assert gaps[-1] < 1e-9


def test_all_steps_are_exact_on_the_probes():
    exact, sketched = both(steps=SIZE)
    inverse = 0.04 * exact.gram.inverse()
    bound = sketched.cramer_rao(0.2)
    assert bound.mse == pytest.approx(on_probes(inverse, sketched.probes), rel=1e-9)
    pixel = ((sketched.probes @ inverse) * sketched.probes).mean(0)
    assert torch.allclose(bound.per_pixel.flatten(), pixel, rtol=1e-8, atol=1e-12)
    assert float(bound.per_pixel.mean()) == pytest.approx(bound.mse, rel=1e-9)


def test_the_errors_that_are_stated():
    prior, std = some_prior(), 0.3
    hits = {"trace": 0, "rank": 0, "cramer_rao": 0, "van_trees": 0, "pixels": 0.0}
    draws = 60
    for seed in range(draws):
        exact, drawn_ = both(seed, steps=SIZE)
        pairs = {
            "trace": (exact.trace(), drawn_.trace()),
            "rank": (exact.effective_rank(), drawn_.effective_rank()),
            "cramer_rao": (exact.cramer_rao(std), drawn_.cramer_rao(std)),
            "van_trees": (exact.van_trees(std, prior), drawn_.van_trees(std, prior)),
        }
        for name, (truth, estimate) in pairs.items():
            hits[name] += abs(truth.value - estimate.value) < 2 * estimate.standard_error
        truth, estimate = pairs["van_trees"]
        off = (truth.per_pixel - estimate.per_pixel).abs()
        hits["pixels"] += float((off < 2 * estimate.per_pixel_error).double().mean())
    # Of a Student's t with 11 degrees of freedom 93 %; fewer where few probes make tails.
    assert min(hits.values()) > 0.8 * draws, hits


def test_the_largest_singular_value_is_within_its_error():
    for steps in (2, 4, 8, SIZE):
        exact, sketched = both(steps=steps)
        truth = exact.fisher_information_loss(0.5).value
        found = sketched.fisher_information_loss(0.5)
        assert found.value <= truth * (1 + 1e-12)
        assert truth <= (found.value + found.short_by) * (1 + 1e-12)
    assert found.value == pytest.approx(truth, rel=1e-12)


def test_a_space_that_is_exhausted_early():
    direction = drawn(SIZE)
    gram = torch.outer(direction, direction) + 2 * torch.eye(SIZE).double()
    runs = lanczos(lambda rows: rows @ gram, random_signs(3, SIZE, seeded()), 6)
    assert (runs.basis[:, 2:] == 0).all()
    sketched = SketchedInformation(
        shape=SHAPE,
        product=lambda rows: rows @ gram,
        probes=random_signs(3, SIZE, seeded()),
        steps=6,
    )
    on_these = on_probes(gram.inverse(), sketched.probes)
    assert sketched.cramer_rao(1.0).mse == pytest.approx(on_these, rel=1e-9)
    nothing = SketchedInformation(
        shape=SHAPE, product=torch.zeros_like, probes=sketched.probes, steps=6
    )
    assert nothing.effective_rank().value == 0
    assert nothing.fisher_information_loss(1.0).value == 0
    assert nothing.cramer_rao(1.0).mse > 1e100
    prior = GaussianPrior.isotropic(torch.zeros(SIZE), 0.2)
    assert nothing.van_trees(1.0, prior).mse == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("images", [1, 2])
def test_of_a_network(monkeypatch, images):
    spec = normalised(3, 6, 6, greyscale=True)
    truth = victim_of(spec, [1, 2][:images])
    grey = truth.inputs[:, :1].expand(-1, 3, -1, -1)
    pixel_map = PixelMap.of(
        payload_of("dlg_cnn", spec),
        truth.labels,
        training=LocalTraining(),
        spec=spec,
        tied=True,
    )
    exact = information(pixel_map, grey)
    rows = drawn(2, pixel_map.unknowns)
    with monkeypatch.context() as patch:  # large networks are asked one row at a time
        patch.setattr(pixels, "_ENTRIES_AT_ONCE", 1)
        one_by_one = pixel_map.gram_at(grey)(rows)
    assert torch.allclose(one_by_one, rows @ exact.gram, rtol=1e-9, atol=1e-12)
    own = information(pixel_map, grey, exact=False, generator=seeded(1), probes=3, steps=20)
    assert own.shape == exact.shape == (images, 1, 6, 6)
    # What a probe sees of a matrix, it sees whichever way the products are made.
    assert own.trace().value == pytest.approx(
        on_probes(exact.gram, own.probes) * pixel_map.unknowns, rel=1e-9
    )
    prior = GaussianPrior.isotropic(torch.full((36,), 0.5), 0.08)
    inverse = (exact.gram / 1e-4 + torch.eye(36 * images).double() / 0.08).inverse()
    bound = own.van_trees(0.01, prior)
    on_these = on_probes(inverse, own.probes)
    assert bound.mse <= on_these * (1 + 1e-9) <= (bound.mse + bound.short_by) * (1 + 2e-9)

    points = [grey, 0.5 * grey]
    mean = expected_information(
        pixel_map, points, exact=False, generator=seeded(2), probes=2, steps=1
    )
    expected = rows @ expected_information(pixel_map, points).gram
    assert torch.allclose(mean.product(rows), expected, rtol=1e-9, atol=1e-12)


# Priors


@pytest.mark.parametrize("count", [5, 200])
def test_shrinkage_is_ledoit_and_wolf_s(count):
    mixing = drawn(12, 12)
    images = (drawn(count, 12, seed=1) @ mixing).reshape(count, 1, 3, 4)
    prior = GaussianPrior.from_images(images, tied=False)
    covariance, shrinkage = ledoit_wolf(images.flatten(1).numpy())
    assert prior.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    assert torch.allclose(prior.covariance(), torch.from_numpy(covariance), rtol=1e-9, atol=1e-12)
    assert torch.allclose(prior.mean, images.flatten(1).mean(0))


def test_the_root_is_one_of_each_image():
    prior = some_prior()
    rows = drawn(4, 2 * SIZE)
    both_images = torch.block_diag(prior.covariance(), prior.covariance())
    assert torch.allclose(prior.root(prior.root(rows)), rows @ both_images, atol=1e-12)


def test_draws_are_of_the_prior():
    prior = some_prior()
    images = prior.draw(20_000, seeded(3))
    deviation = prior.covariance().diagonal().sqrt()
    assert ((images.mean(0) - prior.mean).abs() < 5 * deviation / 20_000**0.5).all()
    off = images.T.cov() - prior.covariance()
    assert float(off.norm() / prior.covariance().norm()) < 0.1


def test_a_shrinkage_that_is_given():
    images = drawn(6, 1, 3, 4)
    centred = images.flatten(1) - images.flatten(1).mean(0)
    of_samples = centred.T @ centred / 6
    identity = torch.eye(12).double() * of_samples.trace() / 12
    prior = GaussianPrior.from_images(images, tied=False, shrinkage=0.3)
    assert torch.allclose(prior.covariance(), 0.7 * of_samples + 0.3 * identity, atol=1e-12)


def test_mistakes():
    one = torch.rand((1, 3, 2, 2), generator=seeded())
    cases = [
        (lambda: GaussianPrior.from_images(one, tied=False), "at least 2"),
        (lambda: GaussianPrior.from_images(one.repeat(4, 1, 1, 1), tied=False), "all the same"),
        (lambda: GaussianPrior.from_images(drawn(4, 3, 2, 2), tied=True), "channels=free"),
        (
            lambda: GaussianPrior.from_images(drawn(4, 3, 2, 2), tied=False, shrinkage=0.0),
            r"bound\.shrinkage",
        ),
        (lambda: both()[1].van_trees(1.0, GaussianPrior.isotropic(torch.zeros(4), 1.0)), "4 unk"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            call()


def test_too_large_for_the_matrix():
    spec = spec_of(1, 70, 60)
    large = linear_map(torch.ones(1, 4200).double(), spec)
    with pytest.raises(ConfigurationError, match=r"4,200 unknowns.*generator"):
        information(large, torch.zeros(1, 1, 70, 60))
    found = information(large, torch.zeros(1, 1, 70, 60), generator=seeded(), steps=3)
    assert isinstance(found, SketchedInformation)
    assert found.largest_singular_value().value == pytest.approx(4200**0.5, rel=1e-9)

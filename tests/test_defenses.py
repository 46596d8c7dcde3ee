"""Defenses: the noise laws, what is added, and what is reported of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats

from medpfl.defenses import Gaussian, Laplace, MedPFLLevel, NoDefense, NoNoise, Perturbation
from medpfl.errors import ConfigurationError
from medpfl.types import ClientUpdate

CONF = Path(__file__).parents[1] / "conf"
N = 100_000
LAWS = [
    (Laplace(scale=0.02), stats.laplace(scale=0.02)),
    (Gaussian(std=0.02), stats.norm(scale=0.02)),
    (MedPFLLevel(level=400), stats.laplace(scale=1 / 400)),
    (MedPFLLevel(level=400, reading="proportional"), stats.laplace(scale=0.002)),
]
law = pytest.mark.parametrize(("noise", "reference"), LAWS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def an_update(scale: float = 1.0) -> ClientUpdate:
    stream = seeded(9)
    tensors = {
        "weight": scale * torch.randn(6, 5, generator=stream),
        "bias": scale * torch.randn(6, generator=stream),
        "head": scale * torch.randn(4, 6, 2, generator=stream),
    }
    return ClientUpdate(kind="gradient", tensors=tensors, num_examples=1, labels=torch.tensor([2]))


def central_moment(reference, power: int) -> float:
    """Return E x^p: p! b^p for Laplace and (p - 1)!! s^p for Gaussian, 0 where p is odd."""
    if power % 2:
        return 0.0
    laplace = reference.dist.name == "laplace"
    factor = math.factorial(power) if laplace else math.prod(range(1, power, 2))
    return factor * reference.kwds["scale"] ** power


@law
def test_noise_follows_its_law(noise, reference):
    sample = noise.sample_like(torch.empty(N, dtype=torch.float64), seeded(1)).numpy()
    # A false alarm at 1e-4; the seed is fixed, so the test itself never flickers.
    assert stats.kstest(sample, reference.cdf).pvalue > 1e-4
    for power in (1, 2, 3, 4):
        moment = central_moment(reference, power)
        error = math.sqrt((central_moment(reference, 2 * power) - moment**2) / N)
        assert abs((sample**power).mean() - moment) < 5 * error
    neighbours = (sample[1:] * sample[:-1]).mean()
    assert abs(neighbours) < 5 * reference.var() / math.sqrt(N - 1), "entries must be independent"


@law
def test_noise_reports_its_scale(noise, reference):
    assert noise.scale == pytest.approx(reference.kwds["scale"], rel=1e-12)


@law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_its_generator_and_the_tensors_kind(noise, reference, dtype):
    like = torch.zeros(3, 4, dtype=dtype)
    first = noise.sample_like(like, seeded(4))
    before = torch.get_rng_state()
    assert torch.equal(first, noise.sample_like(like, seeded(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, noise.sample_like(like, seeded(5)))
    assert (first.shape, first.dtype) == (like.shape, dtype)


def test_laplace_is_finite_and_symmetric_at_the_ends_of_the_uniform(monkeypatch):
    ends = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends)
    sample = Laplace(scale=2.0).sample_like(torch.empty(5, dtype=torch.float64), seeded())
    expected = 2 * torch.tensor(
        [-53 * math.log(2), -math.log(2), 0.0, math.log(2), 52 * math.log(2)], dtype=torch.float64
    )
    torch.testing.assert_close(sample, expected)


def test_levels_run_opposite_ways():
    inverse = [MedPFLLevel(level=level).scale for level in (100, 400)]
    assert inverse == [1 / 100, 1 / 400]
    text = [MedPFLLevel(level=level, reading="proportional").scale for level in (100, 400)]
    assert text == pytest.approx([5e-4, 2e-3])


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "0.1", None])
@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("scale", lambda v: Laplace(scale=v)),
        ("std", lambda v: Gaussian(std=v)),
        ("level", lambda v: MedPFLLevel(level=v)),
        ("unit", lambda v: MedPFLLevel(level=1.0, unit=v)),
    ],
)
def test_scales_are_checked(key, make, value):
    with pytest.raises(ConfigurationError, match=rf"noise\.{key}=.*noise=none"):
        make(value)


def test_reading_is_checked():
    with pytest.raises(ConfigurationError, match=r"noise\.reading=up"):
        MedPFLLevel(level=1.0, reading="up")


@law
def test_perturbation_adds_exactly_the_noise_of_its_stream(noise, reference):
    update = an_update()
    kept = {name: tensor.clone() for name, tensor in update.tensors.items()}
    defended, _ = Perturbation(noise=noise).on_update(update, seeded(3))
    stream = seeded(3)
    assert list(defended.tensors) == list(update.tensors)
    for name, tensor in update.tensors.items():
        assert torch.equal(tensor, kept[name]), "the given update must stay as it was"
        assert torch.equal(defended.tensors[name], tensor + noise.sample_like(tensor, stream))
    assert (defended.kind, defended.num_examples) == ("gradient", 1)
    assert defended.labels is update.labels


@law
def test_perturbation_reports_scale_and_realised_snr(noise, reference):
    update = an_update(scale=1e-2)
    defended, report = Perturbation(noise=noise).on_update(update, seeded(3))
    g = torch.cat([t.flatten() for t in update.tensors.values()]).double()
    n = torch.cat([t.flatten() for t in defended.tensors.values()]).double() - g
    direct = 20 * torch.log10(g.norm() / n.norm()).item()
    assert report.noise_scale == noise.scale
    assert report.snr_db == pytest.approx(direct, abs=1e-4)


@given(st.floats(min_value=-6, max_value=6))
def test_snr_moves_twenty_decibels_a_decade(decades):
    defense = Perturbation(noise=Laplace(scale=1e-3))
    reference = defense.on_update(an_update(), seeded(3))[1].snr_db
    louder = defense.on_update(an_update(scale=10.0**decades), seeded(3))[1].snr_db
    assert louder - reference == pytest.approx(20 * decades, abs=1e-4)


def test_snr_of_a_zero_gradient():
    update = ClientUpdate(kind="gradient", tensors={"w": torch.zeros(5)}, num_examples=1)
    report = Perturbation(noise=Gaussian(std=1.0)).on_update(update, seeded())[1]
    assert report.snr_db == -math.inf


def test_no_defense_changes_and_reports_nothing():
    update, stream = an_update(), seeded()
    before = stream.get_state()
    defended, report = NoDefense().on_update(update, stream)
    assert defended is update
    assert (report.noise_scale, report.snr_db) == (None, None)
    assert torch.equal(stream.get_state(), before)


def test_noise_and_defense_must_go_together():
    with pytest.raises(ConfigurationError, match="noise=laplace"):
        Perturbation(noise=NoNoise())
    with pytest.raises(ConfigurationError, match="defense=perturbation"):
        NoDefense(noise=Laplace(scale=1.0))


def load(defense: str, noise: str):
    return OmegaConf.create(
        {
            "defense": OmegaConf.load(CONF / "defense" / f"{defense}.yaml"),
            "noise": OmegaConf.load(CONF / "noise" / f"{noise}.yaml"),
        }
    )


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ("laplace", Laplace(scale=1e-3)),
        ("gaussian", Gaussian(std=1e-3)),
        ("medpfl_level", MedPFLLevel(level=100, reading="inverse", unit=5e-6)),
    ],
)
def test_configs_compose(noise, expected):
    defense = instantiate(load("perturbation", noise).defense)
    assert defense == Perturbation(noise=expected)
    assert defense.name == "perturbation"


def test_none_configs_compose():
    defense = instantiate(load("none", "none").defense)
    assert defense == NoDefense()
    assert defense.name == "none"


@pytest.mark.parametrize("path", sorted((CONF / "noise").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_noise_config_instantiates(path):
    noise = instantiate(OmegaConf.load(path))
    sample = noise.sample_like(torch.zeros(8), seeded())
    assert sample.isfinite().all()
    assert bool(sample.any()) == (noise.scale > 0)

"""Measures: the shipped ones against references, and what may be called one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import config, sample_images, spec_of
from PIL import Image
from skimage.metrics import normalized_root_mse
from torch import Tensor
from torch.nn import functional

from medpfl.errors import ConfigurationError
from medpfl.metrics import Scorer, mse, ssim
from medpfl.metrics.measures import GMSD, MSE, NRMSE, SSIM, Measure
from medpfl.metrics.measures.base import compare
from medpfl.metrics.measures.columns import check_names, columns_of, names_in
from medpfl.metrics.measures.own import OwnMeasure
from medpfl.seeding import generator
from medpfl.settings.build import instantiate

SPEC = spec_of(3, 24, 20)
GREY = torch.full(SPEC.shape, 0.5)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed, "measures", *shape))


def smooth(*shape: int) -> Tensor:
    coarse = noise(1, shape[0], 4, 4)
    return functional.interpolate(coarse, shape[1:], mode="bicubic")[0].clamp(0, 1)


@pytest.mark.parametrize("measure", [GMSD(), GMSD(block=1), NRMSE(), NRMSE(normalization="mean")])
@pytest.mark.parametrize("shape", [(3, 24, 20), (1, 9, 8), (2, 8, 9, 10)])
def test_equal_images_have_no_error_and_others_more_the_more_they_differ(
    measure: Measure, shape: tuple[int, ...]
) -> None:
    original, other = noise(*shape), noise(*shape, seed=1)
    spec = spec_of(*shape)
    values = [measure(original, torch.lerp(original, other, t), spec) for t in (0.0, 0.1, 0.4)]
    assert values[0] == 0
    assert 0 < values[1] < values[2] < math.inf


@pytest.mark.parametrize("normalization", ["euclidean", "min-max", "mean"])
def test_nrmse_is_scikit_images(normalization: str) -> None:
    a, b = noise(3, 24, 20), noise(3, 24, 20, seed=1)
    pair = a.double().numpy(), b.double().numpy()
    wanted = normalized_root_mse(*pair, normalization=normalization)
    assert NRMSE(normalization=normalization)(a, b, SPEC) == pytest.approx(wanted, rel=1e-12)


def test_nrmse_does_not_depend_on_brightness_and_is_one_for_black() -> None:
    a, b = noise(3, 24, 20), noise(3, 24, 20, seed=1)
    dark = NRMSE()(a * 0.01, b * 0.01, SPEC)
    assert dark == pytest.approx(NRMSE()(a, b, SPEC), rel=1e-6)
    assert NRMSE()(a, torch.zeros_like(a), SPEC) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("normalization", "flat"), [("euclidean", 0.0), ("mean", 0.0), ("min-max", 0.5)]
)
def test_nrmse_is_not_defined_where_there_is_nothing_to_divide_by(
    normalization: str, flat: float
) -> None:
    original = torch.full(SPEC.shape, flat)
    assert math.isnan(NRMSE(normalization=normalization)(original, noise(*SPEC.shape), SPEC))


def gmsd_of_the_paper(original: Tensor, reconstruction: Tensor) -> float:
    """Compute Eqs. 1 to 6 of Xue et al. 2014 on 8-bit levels of one channel, with torch."""
    kernel = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=torch.float64) / 3
    lengths = []
    for image in (original, reconstruction):
        levels = functional.avg_pool2d(255 * image.double()[None], 2)
        along = [functional.conv2d(levels, k[None, None]) for k in (kernel, kernel.T)]
        lengths.append((along[0] ** 2 + along[1] ** 2).sqrt())
    first, second = lengths
    similarity = (2 * first * second + 170) / (first**2 + second**2 + 170)
    return float((similarity - similarity.mean()).square().mean().sqrt())


@pytest.mark.parametrize("shape", [(1, 24, 20), (1, 25, 21), (1, 6, 6)])
def test_gmsd_is_the_papers(shape: tuple[int, ...]) -> None:
    a, b = noise(*shape), noise(*shape, seed=1)
    assert GMSD()(a, b, spec_of(*shape)) == pytest.approx(gmsd_of_the_paper(a, b), rel=1e-9)


def test_gmsd_is_the_mean_over_channels_and_the_same_seen_from_any_side() -> None:
    a, b = noise(3, 24, 20), noise(3, 24, 20, seed=1)
    each = [GMSD()(a[c : c + 1], b[c : c + 1], SPEC) for c in range(3)]
    assert GMSD()(a, b, SPEC) == pytest.approx(float(np.mean(each)))
    assert GMSD()(b, a, SPEC) == pytest.approx(GMSD()(a, b, SPEC))
    turned = GMSD()(a.transpose(1, 2), b.transpose(1, 2), SPEC)
    assert turned == pytest.approx(GMSD()(a, b, SPEC))


def test_gmsd_of_a_volume_of_equal_slices_is_the_pictures() -> None:
    a, b = noise(1, 12, 12), noise(1, 12, 12, seed=1)
    volumes = [image[:, None].expand(1, 8, 12, 12) for image in (a, b)]
    spec = spec_of(1, 8, 12, 12)
    assert GMSD()(*volumes, spec) == pytest.approx(GMSD()(a, b, spec_of(1, 12, 12)))


def test_gmsd_sees_moved_edges_where_ssim_sees_little() -> None:
    image = smooth(1, 64, 64)
    step = (torch.arange(64) >= 32).float()[None, None].expand(1, 64, 64)
    original = 0.9 * image + 0.05 * step
    moved, brighter = 0.9 * image + 0.05 * step.roll(4, 2), original + 0.05
    spec = spec_of(1, 64, 64)
    assert GMSD()(original, brighter, spec) == pytest.approx(0.0, abs=1e-9)
    assert GMSD()(original, moved, spec) > 1e-3


def test_gmsd_of_a_scan_rises_with_blur() -> None:
    path = next(iter(sorted(sample_images("brain_mri").rglob("*.jp*g"))))
    picture = Image.open(path).convert("L").resize((64, 64))
    original = torch.from_numpy(np.asarray(picture).copy()).float()[None] / 255
    blurred = [
        functional.avg_pool2d(original, k, stride=1, padding=k // 2, count_include_pad=False)
        for k in (3, 5, 9)
    ]
    values = [GMSD()(original, image, spec_of(1, 64, 64)) for image in blurred]
    assert 0 < values[0] < values[1] < values[2]


def test_settings_of_the_shipped_measures() -> None:
    with pytest.raises(ConfigurationError, match=r"gmsd\.block=0: must be at least 1"):
        GMSD(block=0)
    with pytest.raises(ConfigurationError, match=r"=max: choose euclidean, min-max or mean"):
        NRMSE(normalization="max")
    with pytest.raises(ConfigurationError, match=r"block=8: images of 24x20 pixels hold fewer"):
        GMSD(block=8)(GREY, GREY, SPEC)


def test_every_measure_is_applied_to_two_guesses_as_well() -> None:
    a, b = noise(*SPEC.shape), noise(*SPEC.shape, seed=1)
    assert compare({"s": SSIM(), "m": MSE()}, a, b, GREY, SPEC) == {
        "s": ssim(a, b),
        "s_zeros": ssim(a, torch.zeros_like(a)),
        "s_mean_image": ssim(a, GREY),
        "m": mse(a, b),
        "m_zeros": mse(a, torch.zeros_like(a)),
        "m_mean_image": mse(a, GREY),
    }


def test_names_are_found_among_columns_whatever_is_missing() -> None:
    assert names_in([*columns_of("b"), *columns_of("a")]) == ["b", "a"]
    assert names_in(["a", "b_zeros", "b"]) == ["a", "b"]
    assert names_in(["mine_zeros"]) == ["mine_zeros"]
    assert names_in([]) == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["ssim"], "measures.ssim: metrics.csv has a column ssim already; choose another name"),
        (["SSIM"], "metrics.csv has a column SSIM already"),
        (["grade"], "a column grade already"),
        (["measures"], "a column measures already"),
        (["ssim_zeros"], "a column ssim_zeros already"),
        (["a", "a_zeros"], r"has a column a_zeros already \(metrics.measures.a's\)"),
        (["a_mean_image", "a"], r"a column a_mean_image already \(metrics.measures.a_mean_image's"),
        (["my-measure"], "metrics.measures.my-measure: the name becomes a column"),
        (["a b"], "becomes a column"),
        (["1a"], "begins with a letter"),
        (["_a"], "begins with a letter"),
        (["größe"], "at most 40 letters"),
        (["a" * 41], "at most 40 letters"),
        ([""], "becomes a column"),
    ],
)
def test_a_name_that_cannot_be_a_column(names: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Scorer(measures=dict.fromkeys(names, NRMSE()))
    with pytest.raises(ConfigurationError, match=words):
        check_names(names, taken=["ssim", "ssim_zeros", "grade", "measures"])


class Returns:
    def __init__(self, found: object) -> None:
        self.found = found

    def __call__(self, original: Tensor, reconstruction: Tensor, spec: object) -> object:
        return self.found


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (np.float32(0.25), 0.25),
        (np.array(3), 3.0),
        (torch.tensor(0.25, requires_grad=True), 0.25),
        (torch.tensor(2), 2.0),
        (math.inf, math.inf),
    ],
)
def test_any_single_number_will_do(found: object, value: float) -> None:
    got = OwnMeasure(name="mine", measure=Returns(found))(GREY, GREY, SPEC)
    assert (got, type(got)) == (value, float)


def test_not_defined_stays_not_defined() -> None:
    assert math.isnan(OwnMeasure(name="mine", measure=Returns(math.nan))(GREY, GREY, SPEC))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (None, "nothing"),
        ("0.5", "str"),
        ([0.5], "list"),
        (1j, "complex"),
        (10**400, "int"),
        (torch.zeros(3), r"Tensor of shape \(3,\)"),
        (torch.zeros(1), r"Tensor of shape \(1,\)"),
        (torch.tensor(1j), r"Tensor of shape \(\)"),
        (np.zeros((1, 1)), r"ndarray of shape \(1, 1\)"),
    ],
)
def test_what_is_no_number_names_its_measure(found: object, told: str) -> None:
    wanted = rf"metrics.measures.mine: Returns must return a number, .* but returns {told}$"
    with pytest.raises(ConfigurationError, match=wanted):
        Scorer(measures={"mine": Returns(found)}).check(SPEC)


class Fails:
    def __call__(self, original: Tensor, reconstruction: Tensor, spec: object) -> float:
        raise KeyError("weights")


class Reads:
    def __call__(self, original: Tensor, reconstruction: Tensor, spec: object) -> float:
        raise FileNotFoundError("no such file: weights.pt")


class Refuses:
    def __call__(self, original: Tensor, reconstruction: Tensor, spec: object) -> float:
        raise ConfigurationError("metrics.measures.mine.size=3: choose another")


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (
            Fails(),
            r"Fails fails on images of shape \(3, 24, 20\) \(KeyError: 'weights'\). Mend",
        ),
        (Reads(), r"\(FileNotFoundError: no such file: weights.pt\).*metrics.measures.mine=null"),
        (Refuses(), r"^metrics.measures.mine.size=3: choose another$"),
    ],
)
def test_a_measure_that_fails_names_itself(measure: Measure, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Scorer(measures={"mine": measure}).check(SPEC)


class WorksInPlace:
    def __call__(self, original: Tensor, reconstruction: Tensor, spec: object) -> Tensor:
        reconstruction -= original
        return original.zero_().sum() + reconstruction.abs().mean()


def test_a_measure_that_works_in_place_changes_nothing() -> None:
    a, b = noise(*SPEC.shape), noise(*SPEC.shape, seed=1)
    before = a.clone(), b.clone()
    measure = OwnMeasure(name="mine", measure=WorksInPlace())
    assert measure(a, b, SPEC) == pytest.approx(float((a - b).abs().mean()))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_the_comment_in_the_configuration_shows_what_works() -> None:
    composed = config(
        "metrics=ssim",
        "+metrics.measures.gmsd._target_=medpfl.metrics.measures.GMSD",
        "+metrics.measures.nrmse._target_=medpfl.metrics.measures.NRMSE",
        "+metrics.measures.off=null",
    )
    scorer = instantiate(composed.metrics)
    assert scorer.measures == {"gmsd": GMSD(), "nrmse": NRMSE(), "off": None}
    scorer.check(SPEC)

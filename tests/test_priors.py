"""Priors, projections and the choice of gradient tensors: what GradInv adds to the matching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import seeded, spec_of
from scipy import ndimage
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from medpfl.attacks.distances import Cosine, Distance, SquaredError
from medpfl.attacks.priors import OutOfRange, TotalVariation
from medpfl.attacks.projection import Box, ImageProjection, MedianFilter, median_filter
from medpfl.attacks.unknowns import Unknowns
from medpfl.errors import ConfigurationError
from medpfl.types import DataSpec

SHAPES = [(2, 3, 7, 5), (2, 1, 6, 5, 4)]  # (N, C, *S)
IMAGENET = DataSpec(
    shape=(3, 7, 5), num_classes=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def images_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# Total variation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_total_variation_is_the_mean_step_summed_over_axes(shape):
    x = images_of(*shape)
    expected = sum(np.abs(np.diff(x.numpy(), axis=axis)).mean() for axis in range(2, x.ndim))
    torch.testing.assert_close(
        TotalVariation(weight=0.3)(x, IMAGENET), torch.tensor(0.3 * expected, dtype=torch.float64)
    )


def test_total_variation_of_pictures_that_one_can_count():
    stripes = torch.tensor([0.0, 1.0]).repeat(2)  # 0 1 0 1
    # along one axis alone
    assert TotalVariation(weight=1.0)(stripes.expand(1, 1, 4, 4), IMAGENET) == 1
    edge = torch.tensor([0.0, 0.0, 0.6]).expand(2, 3, 3, 3, 3)
    torch.testing.assert_close(TotalVariation(weight=2.0)(edge, IMAGENET), torch.tensor(0.6))
    assert TotalVariation(weight=1.0)(torch.full((1, 3, 4, 4), 0.7), IMAGENET) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_total_variation_pulls_on_each_row_alone(shape):
    rows = images_of(4, *shape)

    def prior(x: Tensor) -> Tensor:
        return TotalVariation(weight=0.5)(x, IMAGENET)

    pull = grad(prior)
    torch.testing.assert_close(vmap(pull)(rows), torch.stack([pull(row) for row in rows]))
    assert torch.autograd.gradcheck(prior, rows[0].requires_grad_())


def test_what_real_pixels_can_be_is_not_penalised():
    pixels = torch.rand(2, *IMAGENET.shape, generator=seeded(), dtype=torch.float64)
    pixels[0, 0, 0, 0], pixels[1, 1, 1, 1] = 0, 1
    assert float(OutOfRange(weight=5.0)(IMAGENET.normalise(pixels), IMAGENET)) < 1e-30


def test_pixels_out_of_range_cost_their_squared_distance():
    pixels = torch.full((1, *IMAGENET.shape), 0.5, dtype=torch.float64)
    pixels[0, 0, 0, 0], pixels[0, 2, 1, 1] = -0.3, 1.4
    expected = 2.0 * (0.3**2 + 0.4**2) / pixels.numel()
    found = OutOfRange(weight=2.0)(IMAGENET.normalise(pixels), IMAGENET)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_residual_of_out_of_range_squares_to_it():
    prior, images = OutOfRange(weight=0.7), images_of(2, *IMAGENET.shape) * 5
    value = prior(images, IMAGENET)
    assert value > 0
    torch.testing.assert_close(prior.residual(images, IMAGENET).square().sum(), value)


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigurationError, match=r"attack\.priors\.out_of_range\.weight=-1"):
        OutOfRange(weight=-1.0)
    with pytest.raises(ConfigurationError, match=r"attack\.priors\.total_variation\.weight=-1"):
        TotalVariation(weight=-1.0)


# Box and median filter ---------------------------------------------------------------------------


def test_the_box_is_black_to_white_in_the_datas_own_space():
    x = 5 * images_of(4, 2, *IMAGENET.shape)
    boxed = Box()(x, torch.zeros(4), IMAGENET)
    pixels = IMAGENET.denormalise(boxed)
    torch.testing.assert_close(pixels, IMAGENET.denormalise(x).clamp(0, 1))
    assert torch.equal(Box()(boxed, torch.zeros(4), IMAGENET), boxed)


def test_the_box_of_cifar10_cuts_imagenet_pixels():
    """CIFAR-10's box is narrower: 0 and 1 are out of reach, the more so in the third channel."""
    black, white = (IMAGENET.normalise(torch.full((1, 1, 3, 7, 5), v)) for v in (0.0, 1.0))
    box = Box(statistics="cifar10")
    reached = [IMAGENET.denormalise(box(x, torch.zeros(1), IMAGENET)) for x in (black, white)]
    expected = [
        [0.485 - 0.229 * 0.4914672 / 0.2470322, 0.485 + 0.229 * (1 - 0.4914672) / 0.2470322],
        [0.456 - 0.224 * 0.4822617 / 0.2434851, 0.456 + 0.224 * (1 - 0.4822617) / 0.2434851],
        [0.406 - 0.225 * 0.4467701 / 0.2615879, 0.406 + 0.225 * (1 - 0.4467701) / 0.2615879],
    ]
    for side in range(2):
        for channel in range(3):
            got = reached[side][0, 0, channel]
            torch.testing.assert_close(got, torch.full_like(got, expected[channel][side]))


def test_other_boxes():
    x = images_of(1, 1, 1, 4, 4)
    assert Box(statistics="none")(x, torch.zeros(1), spec_of(1, 4, 4)) is x
    with pytest.raises(ConfigurationError, match="3 channels, but the images have 1"):
        Box(statistics="cifar10")(x, torch.zeros(1), spec_of(1, 4, 4))
    with pytest.raises(ConfigurationError, match="choose data, cifar10 or none"):
        Box(statistics="imagenet")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_median_filter_is_scipys(shape, kernel):
    x = images_of(*shape)
    size = (1, 1, *(kernel for _ in shape[2:]))
    expected = ndimage.median_filter(x.numpy(), size=size, mode="mirror")
    assert torch.equal(median_filter(x, kernel), torch.from_numpy(expected))


def test_the_median_filter_runs_on_the_rows_whose_turn_it_is():
    spec = spec_of(3, 7, 5)
    x = images_of(4, 2, *spec.shape)
    filtered = MedianFilter(every=500)(x, torch.tensor([499, 500, 501, 1000]), spec)
    for row, turn in enumerate([False, True, False, True]):
        assert torch.equal(filtered[row], median_filter(x[row], 3) if turn else x[row])


@pytest.mark.parametrize("fault", [{"every": 0}, {"kernel": 2}, {"kernel": -1}], ids=str)
def test_filters_that_cannot_work_are_refused(fault):
    (name,) = fault
    with pytest.raises(ConfigurationError, match=rf"attack\.projections\.median_filter\.{name}="):
        MedianFilter(**fault)


@pytest.mark.parametrize("joint", [False, True])
def test_projections_touch_images_one_after_another_and_no_label_scores(joint):
    spec = IMAGENET
    unknowns = Unknowns(spec, 2, 3, joint)
    images, scores = 4 * images_of(3, 2, *spec.shape), 9 * images_of(3, 2, 3)
    z = torch.stack([unknowns.pack(i, s) for i, s in zip(images, scores, strict=True)])
    steps = torch.tensor([1, 2, 4])
    projected = ImageProjection((MedianFilter(every=2), Box()), unknowns)(z, steps)
    for row in range(3):
        got, got_scores = unknowns.unpack(projected[row])
        filtered = images[row] if row == 0 else median_filter(images[row], 3)
        torch.testing.assert_close(got, Box()(filtered, steps, spec))
        if joint:
            assert torch.equal(got_scores, scores[row])


# The largest tensors -----------------------------------------------------------------------------


def gradients_of(seed: int, scales: list[float]) -> list[Tensor]:
    g = seeded(seed)
    shapes = [(4, 3), (7,), (2, 5), (1,), (30,)]
    pairs = zip(scales, shapes, strict=True)
    return [scale * torch.randn(s, generator=g, dtype=torch.float64) for scale, s in pairs]


def of_whole(kind: Distance, dummy: list[Tensor], observed: list[Tensor]) -> Tensor:
    a, b = (torch.cat([t.flatten() for t in side]) for side in (dummy, observed))
    if isinstance(kind, Cosine):
        return 1 - functional.cosine_similarity(a, b, dim=0)
    return (a - b).square().sum()


@pytest.mark.parametrize("kind", [Cosine, SquaredError])
@pytest.mark.parametrize("top", [1, 2, 4, 5, 99])
def test_the_largest_observed_tensors_enter(kind, top):
    """In every row others; a larger dummy makes no difference."""
    scales = [[1e-3, 2, 1, 5, 0.1], [3, 1e-4, 1, 0, 7], [1, 1, 1, 1, 1]]
    observed = [gradients_of(row, s) for row, s in enumerate(scales)]
    dummy = [gradients_of(9 + row, [50, 1, 1, 1, 1]) for row in range(3)]

    def stacked(rows: list[list[Tensor]]) -> list[Tensor]:
        return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]

    got = vmap(kind(top=top))(stacked(dummy), stacked(observed))
    for row in range(3):
        norms = torch.stack([t.norm() for t in observed[row]])
        chosen = norms.argsort(descending=True)[:top].tolist()
        parts = [[side[row][i] for i in chosen] for side in (dummy, observed)]
        torch.testing.assert_close(got[row], of_whole(kind(), *parts))


@pytest.mark.parametrize("kind", [Cosine, SquaredError])
def test_top_of_none_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"attack\.distance\.top=0"):
        kind(top=0)

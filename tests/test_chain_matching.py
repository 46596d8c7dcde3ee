"""The evaluation by hand of the papers' networks against autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from helpers import payload_of, seeded, sent, spec_of
from torch import Tensor, nn
from torch.nn import functional

from medpfl.attacks.chain_matching import ChainMatching
from medpfl.attacks.distances import Cosine, Distance, NormalisedError, SquaredError
from medpfl.attacks.matching import MatchingObjective, Targets, flatten
from medpfl.attacks.priors import Prior, TotalVariation
from medpfl.attacks.row_convolution import (
    RowConvolution,
    TransposedConvolution,
)
from medpfl.attacks.unknowns import Unknowns
from medpfl.types import ServerPayload

ROWS, PICTURES, CHANNELS, OUTPUTS = 3, 2, 4, 5
# (side, stride, padding, size): the papers' convolutions, then odd ones.
GEOMETRIES = [
    (5, 2, 2, (8, 8)),
    (5, 1, 2, (8, 8)),
    (2, 1, 2, (5, 5)),
    (3, 2, 0, (8, 9)),
    (2, 3, 1, (9, 7)),
    (1, 2, 0, (6, 5)),
    (4, 3, 3, (7, 10)),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


class Problem:
    """A convolution with a kernel for each row, and what torch makes of it row by row."""

    def __init__(self, side: int, stride: int, padding: int, size: tuple[int, int]) -> None:
        self.size, self.side = size, side
        self.convolution = RowConvolution(side, stride, (padding,) * 4)
        self.pictures = normal(ROWS * PICTURES, CHANNELS, *size).requires_grad_()
        self.kernel = normal(ROWS, OUTPUTS, CHANNELS, side, side, seed=1).requires_grad_()
        self.output = torch.cat(
            [
                functional.conv2d(x, k, stride=stride, padding=padding)
                for x, k in zip(self.pictures.split(PICTURES), self.kernel, strict=True)
            ]
        )
        self.gradient = normal(*self.output.shape, seed=2)

    def torch_gradient(self, of: Tensor) -> Tensor:
        return torch.autograd.grad(self.output, of, self.gradient)[0]


@pytest.fixture(params=GEOMETRIES, ids=str)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(*request.param)


def convolve(problem: Problem, kernel: Tensor) -> Tensor:
    convolution = problem.convolution
    strips = convolution.strips(problem.pictures.detach())
    return convolution((strips, convolution.lines(kernel.detach())))


def test_each_row_has_its_own_kernel(problem: Problem) -> None:
    found = convolve(problem, problem.kernel)
    torch.testing.assert_close(found, problem.output.detach())
    assert problem.convolution.output(problem.size) == found.shape[2:]


def test_a_shared_kernel_is_the_same_kernel_for_each(problem: Problem) -> None:
    kernel = problem.kernel[0]
    own = convolve(problem, kernel.expand(ROWS, -1, -1, -1, -1))
    torch.testing.assert_close(convolve(problem, kernel), own)


def test_terms_add_up(problem: Problem) -> None:
    convolution = problem.convolution
    strips = convolution.strips(problem.pictures.detach())
    own = convolution.lines(problem.kernel.detach())
    shared = convolution.lines(problem.kernel[0].detach())
    both = convolution((strips, own), (strips, shared))
    wanted = convolution((strips, own)) + convolution((strips, shared))
    torch.testing.assert_close(both, wanted)


def test_kernel_gradients(problem: Problem) -> None:
    strips = problem.convolution.strips(problem.pictures.detach())
    found = problem.convolution.kernel_gradient(strips, problem.gradient, ROWS)
    torch.testing.assert_close(found, problem.torch_gradient(problem.kernel))


def test_the_transpose_carries_gradients_back(problem: Problem) -> None:
    transposed = TransposedConvolution(
        problem.convolution,
        channels=(OUTPUTS, CHANNELS),
        size=problem.size,
        device=torch.device("cpu"),
    )
    kernel = problem.kernel.detach()
    found = transposed((problem.gradient, transposed.lines(kernel)))
    torch.testing.assert_close(found, problem.torch_gradient(problem.pictures))
    shared = transposed.lines(kernel[0])
    both = transposed((problem.gradient, shared), (problem.gradient, transposed.lines(kernel)))
    first = slice(0, PICTURES)
    torch.testing.assert_close(both[first], 2 * found[first])


class Wrapped(nn.Module):
    """The same network, which nobody recognises as a chain of convolutions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits


def evaluate(
    payload: ServerPayload,
    unknowns: Unknowns,
    distance: Distance,
    priors: tuple[Prior, ...],
    own_networks: bool,
) -> tuple[Tensor, Tensor]:
    objective = MatchingObjective(
        payload=payload,
        unknowns=unknowns,
        distance=distance,
        dtype=torch.float64,
        chunk=2,
        priors=priors,
    )
    parameters = flatten(payload.parameters).double()
    network = parameters + 0.1 * normal(ROWS, len(parameters), seed=3)
    labels = torch.arange(ROWS * unknowns.images).view(ROWS, -1) % unknowns.classes
    targets = Targets(
        gradient=0.1 * normal(ROWS, len(parameters), seed=4),
        labels=functional.one_hot(labels, unknowns.classes).double(),
        parameters=network if own_networks else torch.zeros(ROWS, 0, dtype=torch.float64),
        buffers=torch.zeros(ROWS, 0, dtype=torch.float64),
        order=torch.zeros(ROWS, 0, dtype=torch.int64),
    )
    entries = torch.Size(unknowns.pixel_shape).numel()
    entries += torch.Size(unknowns.label_shape).numel() if unknowns.joint_labels else 0
    return objective(normal(ROWS, entries, seed=5), targets)


@pytest.mark.parametrize("own_networks", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("network", ["cpl_cnn", "dlg_cnn", "idlg_cnn"])
@pytest.mark.parametrize(
    ("images", "joint", "tied", "size", "distance", "priors"),
    [
        (1, False, False, (8, 8), SquaredError(), ()),
        (2, True, False, (8, 8), SquaredError(top=3), ()),
        (1, False, True, (9, 12), Cosine(), (TotalVariation(weight=0.1),)),
        (2, False, False, (11, 8), NormalisedError(), ()),
    ],
)
def test_by_hand_is_autograd(network, own_networks, images, joint, tied, size, distance, priors):
    spec = spec_of(3, *size)
    by_hand = payload_of(network, spec)
    unknowns = Unknowns(spec, images, spec.num_classes, joint, tied=tied)
    found = evaluate(by_hand, unknowns, distance, priors, own_networks)
    payload = sent(Wrapped(by_hand.model))
    wanted = evaluate(payload, unknowns, distance, priors, own_networks)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    scale = float(wanted[1].abs().max())
    assert scale > 0
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("recognised", [True, False])
def test_pictures_are_evaluated_by_hand(recognised, monkeypatch):
    spec = spec_of(3, 8, 8)
    payload = payload_of("dlg_cnn", spec)
    taken = []
    by_hand = ChainMatching.__call__

    def counted(chain: ChainMatching, z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        taken.append(len(z))
        return by_hand(chain, z, *rest)

    monkeypatch.setattr(ChainMatching, "__call__", counted)
    given = payload if recognised else sent(Wrapped(payload.model))
    evaluate(given, Unknowns(spec, 2, spec.num_classes, False), SquaredError(), (), False)
    assert sum(taken) == (ROWS if recognised else 0)

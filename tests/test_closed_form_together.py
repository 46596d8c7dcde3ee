"""The lowest layers of a sigmoid CNN, inverted together where one has too many unknowns."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import observe, payload_of, seeded, spec_of, victim_of
from torch import nn
from torch.nn import functional

from medpfl.attacks.closed_form import ClosedForm, start
from medpfl.attacks.closed_form.layerwise import convolution_matrix, convolved, stands_alone
from medpfl.attacks.closed_form.together import LowerEquations
from medpfl.attacks.starts import PatchTiled
from medpfl.types import Truth


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "shape"),
    [
        (5, 2, 2, (2, 7, 6, 9)),
        (2, 1, 2, (1, 4, 5, 3)),
        (3, 3, 1, (2, 8, 9, 7)),
        (5, 1, 2, (3, 7, 9)),
        (2, 3, 0, (2, 9, 11)),
    ],
)
def test_a_convolution_as_a_matrix_is_the_convolution(kernel, stride, padding, shape):
    kind = nn.Conv3d if len(shape) == 4 else nn.Conv2d
    layer = kind(shape[0], 4, kernel, stride, padding).double()
    image = torch.rand(shape, generator=seeded(), dtype=torch.float64)
    matrix = convolution_matrix(layer, layer.weight.detach(), shape)
    wanted = convolved(layer, image.unsqueeze(0), layer.weight.detach()).flatten()
    torch.testing.assert_close(matrix @ image.flatten(), wanted)


MATCH_LOWER = start.match_lower


def smooth(spec, label: int = 1) -> Truth:
    """Draw an image of which a part is air."""
    drawn = victim_of(spec, [label])
    coarse = torch.rand((1, spec.shape[0], *[4] * (len(spec.shape) - 1)), generator=seeded(5))
    mode = "trilinear" if len(spec.shape) == 4 else "bilinear"
    fine = functional.interpolate(coarse, spec.shape[1:], mode=mode, align_corners=False)
    return Truth((2 * fine - 0.6).clamp(0, 1), drawn.labels, drawn.ids)


@pytest.mark.parametrize(
    ("network", "shape"), [("dlg_cnn", (1, 8, 9, 8)), ("idlg_cnn", (3, 14, 12))]
)
def test_layers_together_find_the_image_as_one_by_one(monkeypatch, network, shape):
    spec = spec_of(*shape)
    victim = smooth(spec)
    seen = observe(payload_of(network, spec), spec, victim)
    monkeypatch.setattr(start, "_LARGEST_DENSE", 400)
    asked = []
    monkeypatch.setattr(start, "match_lower", lambda e: asked.append(e) or MATCH_LOWER(e))
    solved = ClosedForm(fallback=PatchTiled()).solve(seen)
    assert len(asked) == 1
    assert solved is not None
    assert math.isnan(solved.determined)
    assert float((solved.image - victim.inputs[0]).abs().max()) < 0.02


def test_equations_are_counted_against_unknowns():
    """Of dlg_cnn on 32 voxels a side, by hand: the second layer is what cannot stand alone."""
    spec = spec_of(1, 32, 32, 32)
    layers = start._convolutions(payload_of("dlg_cnn", spec).model)
    shapes = [(1, 32, 32, 32), *[(12, n, n, n) for n in (16, 8, 8, 8)]]
    alone = [
        stands_alone(layer, shapes[n], shapes[n + 1], most=10**6)
        for n, (_, layer) in enumerate(layers)
    ]
    # 12 * 16^3 = 49,152 numbers; 12 * 8^3 outputs and, a channel, 12 * 5^3 gradients are 24,144.
    assert alone == [True, False, True, True]
    seen = observe(payload_of("dlg_cnn", spec), spec, victim_of(spec, [1]))
    output, above = torch.rand((12, 8, 8, 8)).double(), torch.randn((12, 8, 8, 8)).double()
    lower = start._lower_layers(seen, 2)
    equations = LowerEquations.of(lower, output, above, spec, tied=False)
    assert equations.count == 12 * 8**3 + 12 * (12 * 125 + 1) + 12 * (125 + 1)
    assert equations.most_determined == pytest.approx(equations.count / 32**3)
    assert len(equations.residual(torch.zeros(32**3).double())) == equations.count
    wide = spec_of(1, 64, 64, 64)
    seen = observe(payload_of("dlg_cnn", wide), wide, victim_of(wide, [1]))
    assert ClosedForm(fallback=PatchTiled()).solve(seen) is None

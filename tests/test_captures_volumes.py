"""Where voxels lie travels with a capture's images, and past the attack into the record."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from capture_files import DLG, edit, refusal
from helpers import CPU, FACTORIES, config, seeded, sent, spec_of, victim_of

from medpfl import runner
from medpfl.captures import load_captures, read_captures, write_capture
from medpfl.federated import Client
from medpfl.geometry import Geometry
from medpfl.types import Truth

SPEC = spec_of(1, 11, 12, 13)
# Aslant, and no float32: it must come through JSON as it is.
AFFINE = torch.tensor(
    [[1.5, 0.1, 0, -math.pi], [0, 2, -0.2, 1e-3], [0.1, 0, 3, 40], [0, 0, 0, 1]],
    dtype=torch.float64,
)


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    """Capture one volume that has a place."""
    payload, drawn = sent(FACTORIES["dlg_cnn"].build(SPEC, seeded(3))), victim_of(SPEC, [2])
    truth = Truth(drawn.inputs, drawn.labels, drawn.ids, (Geometry(AFFINE, "LPS"),))
    update, _ = Client(spec=SPEC, device=CPU).update(truth, payload)
    return write_capture(
        tmp_path / "in",
        round=0,
        client=0,
        kind="gradient",
        update=update.tensors,
        sent=payload.parameters,
        model=DLG,
        spec=SPEC,
        batch_norm="eval_public",
        truth=truth,
    )


def test_the_affine_comes_back_and_nifti_is_written_where_the_source_was(tmp_path, captured):
    (capture,) = load_captures(read_captures(captured.parents[1]))
    assert capture.truth is not None
    assert capture.truth.geometry[0].stored == "LPS"
    assert torch.equal(capture.truth.geometry[0].affine, AFFINE)
    path = f"source.path={captured.parents[1]}"
    settings = ("source=file", path, "attack=dlg", "attack.optimizer.max_steps=1")
    runner.run(config(*settings), tmp_path / "out", overrides=settings)
    ours, theirs = sorted((tmp_path / "out/reconstructions").glob("*.nii.gz"))
    back = nibabel.load(theirs)
    np.testing.assert_array_equal(nibabel.load(ours).affine, back.affine)
    assert nibabel.aff2axcodes(back.affine) == ("L", "P", "S")
    # The voxel that comes first in `inputs` is the last one of two mirrored axes.
    first = back.affine @ [12, 11, 0, 1]
    np.testing.assert_allclose(first[:3], AFFINE[:3, 3], atol=1e-5)
    turned = np.asarray(back.dataobj)[::-1, ::-1].transpose(2, 1, 0)
    assert np.array_equal(turned, capture.truth.inputs[0, 0])


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        ([], None),
        ([None], None),
        ([None, None], "geometry tells of 2 images, and num_examples of 1"),
        ("here", "geometry must be a list of affines"),
        ([{"affine": [[1, 0, 0, 0]], "stored": "LPS"}], "geometry.0.affine must be 4 rows"),
        ([{"affine": [[0] * 4] * 3 + [[0, 0, 0, 1]], "stored": "LPS"}], "can be inverted"),
        ([{"affine": AFFINE.tolist(), "stored": "LRS"}], "geometry.0.stored must be three letters"),
        ([{"affine": AFFINE.tolist(), "stored": "LPS", "name": "x"}], '"name" is not a name'),
    ],
)
def test_places_that_cannot_be_are_refused(captured, geometry, words):
    edit(captured, lambda manifest: manifest.update(geometry=geometry))
    if words is None:
        assert len(read_captures(captured.parents[1])) == 1
    else:
        assert words in refusal(captured.parents[1])


def test_captures_of_before_have_no_places(captured):
    edit(captured, lambda m: m.update(version=3))
    assert '"geometry" is not a name' in refusal(captured.parents[1])
    edit(captured, lambda m: m.pop("geometry"))
    (capture,) = load_captures(read_captures(captured.parents[1]))
    assert capture.truth is not None
    assert capture.truth.geometry == ()

"""Volumes from end to end: networks, closed forms, pictures, and the file that a viewer opens."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from helpers import config, observe, payload_of, sent, spec_of, victim_of

from medpfl import runner
from medpfl.attacks.closed_form import ClosedForm
from medpfl.attacks.starts import PatchTiled
from medpfl.data import Phantom, Preprocess
from medpfl.errors import ConfigurationError
from medpfl.models import CPLCNN, DLGCNN, LeNet, ResNet18Volume
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.report.planes import three_planes
from medpfl.report.victim_file import load_victim


def test_convolutions_are_three_dimensional_on_volumes():
    spec, stream = spec_of(1, 16, 16, 16), torch.Generator().manual_seed(0)
    model = DLGCNN(init=UniformInit()).build(spec, stream)
    # 12 (125 + 1) + 3 * 12 (12 * 125 + 1), and 3 classes of 12 * 4^3 features
    assert sum(p.numel() for p in model.parameters()) == 1512 + 3 * 18_012 + 3 * 769
    assert CPLCNN(init=UniformInit()).build(spec, stream).fc.in_features == 16 * 34**3
    shapes = [tuple(p.shape) for p in LeNet(init=DefaultInit()).build(spec, stream).parameters()]
    assert shapes[0] == (6, 1, 5, 5, 5)
    assert (120, 16) in shapes
    with pytest.raises(ConfigurationError, match="volumes of 15x16x16: the smallest that works"):
        LeNet(init=DefaultInit()).build(spec_of(1, 15, 16, 16), stream)


@pytest.mark.parametrize("channels", [1, 3])
def test_r3d_18_takes_volumes_of_any_channels(channels):
    factory = ResNet18Volume(init=DefaultInit())
    model = factory.build(spec_of(channels, 16, 16, 16), torch.Generator().manual_seed(0)).eval()
    assert model(torch.zeros(2, channels, 16, 16, 16)).shape == (2, 3)
    assert model.stem[0].in_channels == channels
    # 33.2 million in torchvision with 3 channels and 400 classes
    wanted = 33_371_472 - 397 * 513 - (3 - channels) * 64 * 147
    assert sum(p.numel() for p in model.parameters()) == wanted
    with pytest.raises(ConfigurationError, match="r3d_18 takes volumes"):
        factory.build(spec_of(1, 16, 16), torch.Generator())


def test_a_client_of_r3d_18_sends_a_gradient():
    spec = spec_of(1, 12, 12, 12)
    model = ResNet18Volume(init=DefaultInit()).build(spec, torch.Generator().manual_seed(0))
    update = observe(sent(model), spec, victim_of(spec, [1])).tensors
    assert update["stem.0.weight"].shape == (64, 1, 3, 7, 7)
    assert float(update["stem.0.weight"].norm()) > 0


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ("idlg_cnn", (1, 8, 6, 7)),
        ("dlg_cnn", (3, 5, 6, 7)),
        ("cpl_cnn", (1, 2, 2, 3)),  # its padding makes 20 voxels of 2
    ],
)
def test_closed_forms_find_a_volume(network, shape):
    spec = spec_of(*shape)
    victim = victim_of(spec, [1])
    solved = ClosedForm(fallback=PatchTiled()).solve(
        observe(payload_of(network, spec), spec, victim)
    )
    assert solved is not None
    assert float((solved.image - victim.inputs[0]).abs().max()) < 1e-2


def test_a_run_on_drawn_volumes_writes_what_a_viewer_opens(tmp_path):
    settings = (
        "dataset=phantom3d",
        "dataset.per_class=1",
        "preprocess=volume16",
        "preprocess.size=12",
        "attack=scale_free",
        "model=idlg_cnn",
        "n_images=1",
    )
    summary = runner.run(config(*settings), tmp_path / "out", overrides=settings)
    assert (summary.n, summary.asr) == (1, 1.0)
    folder = tmp_path / "out/reconstructions"
    names = sorted(path.name for path in folder.glob("*.nii.gz"))
    assert len(names) == 2
    first = "round-000__client-0__head_healthy__0000"
    ours, theirs = (nibabel.load(folder / f"{first}{e}.nii.gz") for e in ("", ".original"))
    np.testing.assert_allclose(ours.affine, theirs.affine)
    # 64 voxels of 3.5 mm, its middle at the origin, are now 12.
    assert ours.affine[0, 0] == pytest.approx(3.5 * 64 / 12)
    assert (ours.affine @ [5.5, 5.5, 5.5, 1])[:3] == pytest.approx(0, abs=1e-4)
    assert np.abs(ours.get_fdata() - theirs.get_fdata()).max() < 1e-2
    kept = load_victim(folder / "round-000__client-0.npz")
    assert kept.geometry[0] is not None
    np.testing.assert_allclose(kept.geometry[0].affine, ours.affine, atol=1e-5)


def test_three_planes_are_upright():
    volume = np.zeros((1, 4, 5, 6))
    volume[0, -1, 2, 3] = 1  # the head's top: in the coronal and the sagittal slice
    volume[0, 2, -1, 3] = 2  # the front: in the axial and the sagittal slice
    picture = three_planes(volume)[0]
    assert picture.shape == (9, 12)
    assert picture[0, 3] == 2
    assert picture[0, 6 + 3] == 1
    assert picture[5, 2] == 1
    assert picture[5 + 1, 4] == 2
    assert picture.sum() == 6


def test_drawn_volumes_depend_on_seed_class_and_number_and_show_their_finding():
    def drawn(**settings):
        source = Phantom(dimensions=3, **{"kinds": ["head", "chest"], "per_class": 2, **settings})
        return source.load(preprocess=Preprocess(size=24, channels=1), n_images=None, seed=0)

    data, other = drawn(), drawn(kinds=["chest"], per_class=3)
    assert data.classes == ("head_healthy", "head_lesion", "chest_clear", "chest_opacity")
    assert data.images.load(4).equal(other.images.load(0))
    images = torch.stack([data.images.load(i) for i in range(8)])
    assert len(images.unique(dim=0)) == 8
    assert 0 <= float(images.min()) < 0.05 < 0.8 < float(images.max()) <= 1
    # Lungs with an opacity hold less air.
    air = [(image < 0.25).float().mean() - (image == 0).float().mean() for image in images[4:]]
    assert min(air[:2]) > max(air[2:])
    with pytest.raises(ConfigurationError, match="list one or more of head, chest"):
        drawn(kinds=["skin"])

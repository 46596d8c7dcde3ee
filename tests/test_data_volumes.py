"""Volumes: the patient's axes, grids that are resampled where they lie, and what cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from helpers import sample_images
from nibabel.orientations import aff2axcodes
from scans import blob, nifti, series

from medpfl.data import HospitalImages, Preprocess
from medpfl.data.volumes.grid import Grid, cut_or_pad, interpolation, resampled, with_spacing
from medpfl.data.volumes.intensity import grey_levels
from medpfl.data.volumes.nifti import read_nifti, write_nifti
from medpfl.data.volumes.nrrd import read_nrrd
from medpfl.errors import ConfigurationError, DataError

KEEP = Preprocess(size=12, channels=1, resize="keep")


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def load(root: Path, preprocess: Preprocess = KEEP, **settings):
    source = HospitalImages(root=str(root), **{"split": "all", **settings})
    return source.load(preprocess=preprocess, n_images=None, seed=0)


def refusal(root: Path, preprocess: Preprocess = KEEP, **settings) -> str:
    with pytest.raises((DataError, ConfigurationError)) as refused:
        load(root, preprocess, **settings)
    return str(refused.value)


def oblique() -> np.ndarray:
    """Return the affine of a volume whose axes run left, head and back, and a little aslant."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-1.5, 0.1, 0], [0, 0.2, -2], [0.1, 3, 0.1]])
    affine[:3, 3] = [40, -30, 20]
    return affine


def value_at(grid: Grid, millimetres: np.ndarray) -> float:
    place = np.linalg.solve(grid.affine, [*millimetres, 1])[:3]
    return float(grid.values[tuple(np.round(place).astype(int))])


def test_turning_to_the_patients_axes_moves_no_voxel(tmp_path):
    values, affine = blob(5, 6, 7).astype(np.int16), oblique()
    grid = read_nifti(nifti(tmp_path / "a.nii", values, affine))
    assert aff2axcodes(grid.affine) == ("R", "A", "S")
    assert grid.stored == "LSP"
    assert grid.values.shape == (5, 7, 6)
    for place in ((0, 0, 0), (4, 2, 6), (1, 5, 3)):
        assert value_at(grid, (affine @ [*place, 1])[:3]) == values[place]


@pytest.mark.parametrize("stored", ["RAS", "LPS", "LSP", "SAL", "PIR"])
def test_what_is_written_has_the_sources_axes_and_affine(tmp_path, stored):
    values = blob(5, 6, 7).astype(np.float32) / 255
    letters = nibabel.orientations.axcodes2ornt(stored)
    turn = nibabel.orientations.inv_ornt_aff(letters, (9, 9, 9))
    affine = oblique() @ turn
    grid = read_nifti(nifti(tmp_path / "a.nii.gz", values, affine))
    write_nifti(tmp_path / "b.nii.gz", grid.example(), grid.geometry)
    back = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)
    assert np.array_equal(np.asarray(back.dataobj), values)
    first = (tmp_path / "b.nii.gz").read_bytes()
    write_nifti(tmp_path / "b.nii.gz", grid.example(), grid.geometry)
    assert (tmp_path / "b.nii.gz").read_bytes() == first


def test_slope_and_intercept_of_a_header_are_applied(tmp_path):
    values = blob(5, 6, 7).astype(np.float32)
    image = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_nifti(tmp_path / "a.nii").values, values * 2 - 1000)


def test_nrrd_and_nifti_of_one_volume_are_one(tmp_path):
    values, affine = blob(5, 6, 7).astype(np.int16), oblique()
    flip = np.diag([-1, -1, 1])
    header = {
        "space": "left-posterior-superior",
        "space directions": (flip @ affine[:3, :3]).T,
        "space origin": flip @ affine[:3, 3],
        "kinds": ["domain"] * 3,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), values, header)
    ours = read_nrrd(tmp_path / "a.nrrd")
    theirs = read_nifti(nifti(tmp_path / "a.nii", values, affine))
    assert np.array_equal(ours.values, theirs.values)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(12, 5), (7, 16), (9, 9), (5, 1)])
def test_interpolation_is_torchs_with_antialiasing(old, new):
    values = torch.rand((1, 1, old, 3), generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(
        values, (new, 3), mode="bilinear", antialias=True, align_corners=False
    )
    ours = interpolation(old, new, old / new) @ values[0, 0].numpy()
    np.testing.assert_allclose(ours, wanted[0, 0], atol=1e-5)


def test_a_resampled_slope_is_the_same_slope_in_the_patient():
    places = np.indices((20, 18, 16)).reshape(3, -1)
    affine = Grid(np.zeros((20, 18, 16)), np.diag([1.0, 2, 3, 1])).affine
    affine[:3, 3] = [-7, 5, 2]
    slope = (affine @ np.vstack([places, np.ones(places.shape[1])]))[:3]
    values = (slope * [[1.0], [0.5], [-0.25]]).sum(0).reshape(20, 18, 16)
    new = with_spacing(Grid(values, affine), (1.7, 3.1, 2.3))
    np.testing.assert_allclose(new.spacing_mm, [1.7, 3.1, 2.3])
    for place in ((4, 4, 4), (7, 5, 9)):
        there = (new.affine @ [*place, 1])[:3]
        # A triangle over whole voxels is a little off its middle; half a voxel would be 0.35.
        assert new.values[place] == pytest.approx(there @ [1.0, 0.5, -0.25], abs=0.1)
    assert resampled(Grid(values, affine), (20, 18, 16), (1, 1, 1)).values.shape == (20, 18, 16)


def test_cutting_and_padding_leave_voxels_where_they_are():
    grid = Grid(blob(8, 9, 10).astype(np.float32), oblique())
    box = cut_or_pad(grid, (4, 13, 10))
    there = (grid.affine @ [5, 3, 7, 1])[:3]
    assert value_at(box, there) == grid.values[5, 3, 7]
    assert box.values[:, :2].max() == 0
    assert box.values.shape == (4, 13, 10)


def test_crop_keeps_proportions_in_millimetres():
    # A ball in voxels of 1 x 1 x 4 mm.
    x, y, z = np.indices((48, 48, 12)) - np.array([23.5, 23.5, 5.5]).reshape(3, 1, 1, 1)
    ball = ((x**2 + y**2 + (4 * z) ** 2) < 18**2).astype(np.float32)
    grid = (
        Preprocess(size=24, channels=1, resize="crop")
        .over(3)
        .volume(Grid(ball, np.diag([1.0, 1, 4, 1])))
    )
    np.testing.assert_allclose(grid.spacing_mm, [2, 2, 2])
    lengths = [float(np.moveaxis(grid.values, a, 0)[:, 12, 12].sum()) for a in range(3)]
    assert max(lengths) - min(lengths) < 2.5
    assert min(lengths) > 15


def test_three_dimensions_are_the_datas(tmp_path):
    for label in "ab":
        nifti(tmp_path / f"r/{label}/1.nii", blob(14, 15, 16))
    data = load(tmp_path / "r", Preprocess(size=[12, 13, 14], channels=3, resize="squash"))
    assert data.spec.shape == (3, 12, 13, 14)
    assert data.spec.greyscale
    assert data.images.load(0).shape == (3, 12, 13, 14)
    assert "dataset has volumes: give one number or [depth, height, width]" in refusal(
        tmp_path / "r", Preprocess(size=[12, 13])
    )
    with pytest.raises(ConfigurationError, match="has pictures"):
        Preprocess(size=[12, 13, 14]).over(2)


def test_the_geometry_travels_with_the_image(tmp_path):
    values = blob(12, 12, 12)
    for label in "ab":
        nifti(tmp_path / f"r/{label}/1.nii", values, oblique())
    (geometry,) = load(tmp_path / "r").images.geometry([0])
    assert geometry.stored == "LSP"
    np.testing.assert_allclose(
        geometry.spacing_mm, np.linalg.norm(oblique()[:3, :3], axis=0)[[0, 2, 1]]
    )


def test_air_around_a_head_does_not_decide_what_is_white():
    head = 100 + blob(12, 12, 12).astype(np.float32)
    around = np.zeros((40, 40, 40), dtype=np.float32)  # 97 % of it is air
    around[14:26, 14:26, 14:26] = head
    shown = grey_levels(around, None)[14:26, 14:26, 14:26]
    assert (shown == 1).mean() < 0.006
    white = np.percentile(head, 99.5)
    np.testing.assert_allclose(shown, np.clip(head / white, 0, 1), atol=1e-6)


def test_patches_are_images_of_their_patient(tmp_path):
    for label in "abcd":
        nifti(tmp_path / f"r/{label < 'c'}/{label}.nii", blob(20, 21, 22, seed=ord(label)))
    data = load(tmp_path / "r", patches=3)
    assert len(data.images) == 12
    whole = read_nifti(tmp_path / "r/False/c.nii").values
    black, white = np.percentile(whole, 0.5), np.percentile(whole[whole > whole.mean()], 99.5)
    levels = np.clip((whole - black) / (white - black), 0, 1)
    windows = np.lib.stride_tricks.sliding_window_view(levels, (12, 12, 12)).reshape(-1, 12, 12, 12)
    patch = data.images.load(0)[0].permute(2, 1, 0).numpy()
    assert np.isclose(windows, patch, atol=1e-5).all((1, 2, 3)).sum() == 1
    assert "with up to 3 images each" in data.notes[2]
    assert "preprocess.resize=keep" in refusal(tmp_path / "r", Preprocess(size=12), patches=2)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("4D", "it has 4 dimensions (12 x 12 x 12 x 5): a volume has 3"),
        ("no affine", "no affine (sform_code and qform_code are 0)"),
        ("singular", "its affine is singular"),
        ("flat", "all of its values are equal"),
        ("NaN", "2 of its 1728 voxels are NaN or infinite"),
        ("colours", "colours or complex numbers"),
        ("short", "cut short or damaged"),
        ("text", "not a NIfTI file, cut short or damaged"),
        ("huge", "its header says 32000 x 32000 x 32000 voxels, which take 393,216 GB to read"),
    ],
)
def test_volumes_that_cannot_be_read(tmp_path, fault, words):
    values, affine = blob(12, 12, 12).astype(np.float32), np.diag([1.0, 1, 1, 1])
    path = tmp_path / "r/a/Quuxington.nii.gz"
    nifti(tmp_path / "r/b/1.nii", values)
    nifti(tmp_path / "r/a/2.nii", values)
    if fault == "4D":
        values = np.stack([values] * 5, axis=3)
    if fault == "singular":
        affine[2] = affine[1]
    if fault == "flat":
        values = np.full_like(values, 7)
    if fault == "NaN":
        values[3, 4, 5:7] = np.nan
    if fault == "colours":
        values = np.zeros((12, 12, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nifti(path, values, affine)
    raw = gzip.decompress(path.read_bytes())
    if fault == "no affine":  # both codes
        path.write_bytes(gzip.compress(raw[:252] + bytes(4) + raw[256:]))
    if fault == "short":
        path.write_bytes(gzip.compress(raw[: len(raw) // 2]))
    if fault == "text":
        path.write_text("Quuxington")
    if fault == "huge":
        sizes = np.array([3, 32000, 32000, 32000], dtype="<i2").tobytes()
        path.write_bytes(gzip.compress(raw[:40] + sizes + raw[48:]))
    message = refusal(tmp_path / "r")
    assert words in message
    assert "Quux" not in message
    assert len(load(tmp_path / "r", on_error="skip").images) == 2


def test_a_grid_too_large_for_memory_is_not_allocated(tmp_path):
    for label in "ab":
        nifti(tmp_path / f"r/{label}/1.nii", blob(12, 12, 12))
    message = refusal(tmp_path / "r", spacing_mm=0.001)
    assert "dataset.spacing_mm=[0.001, 0.001, 0.001] says 24000 x 24000 x 36000 voxels" in message


def test_nrrd_files_that_cannot_be_read(tmp_path, monkeypatch):
    nifti(tmp_path / "r/b/1.nii", blob(12, 12, 12))
    path = tmp_path / "r/a/Quuxington.nrrd"
    path.parent.mkdir()
    nrrd.write(str(path), blob(12, 12, 12))
    assert "it has no affine" in refusal(tmp_path / "r")
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\ndata file: ../x\n\n")
    assert "its voxels lie in another file" in refusal(tmp_path / "r")
    path.write_bytes(path.read_bytes()[:20])
    assert "cut short or damaged" in refusal(tmp_path / "r")
    monkeypatch.setattr("medpfl.data.volumes.nrrd.find_spec", lambda name: None)
    assert "pip install 'medpfl[nrrd]'" in refusal(tmp_path / "r")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": [40]}, "give [center, width]"),
        ({"window": [40, 0]}, "the width positive"),
        ({"window": [90000, 1]}, "lie on one side of dataset.window"),
        ({"spacing_mm": [1, 1]}, "give one number or [x, y, z], in millimetres"),
        ({"ids": "name"}, "ids are always hashed here"),
        ({"reads": "pictures", "patches": 2}, "dataset.patches is for volumes"),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, words):
    for label in "ab":
        nifti(tmp_path / f"r/{label}/1.nii", blob(12, 12, 12))
    assert words in refusal(tmp_path / "r", **settings)


@pytest.mark.real_data
def test_the_real_volumes_open_where_they_were(tmp_path):
    folder = sample_images("volumes")
    for name in ("brain_mri/anatomical_tiny.nii", "brain_mri/chris_PD.nii.gz"):
        source = nibabel.load(folder / name)
        grid = read_nifti(folder / name)
        write_nifti(tmp_path / "out.nii.gz", grid.example(), grid.geometry)
        back = nibabel.load(tmp_path / "out.nii.gz")
        np.testing.assert_allclose(back.affine, source.affine, atol=1e-4)
        assert np.array_equal(np.asarray(back.dataobj), np.asarray(source.dataobj, np.float32))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    ["chest_ct/totalsegmentator_aorta_report_ct_cropped.nii.gz", "brain_mri/chris_PD.nii.gz"],
)
def test_64_voxels_a_side_of_real_volumes_lie_where_the_source_has_them(tmp_path, name):
    source = nibabel.load(sample_images("volumes") / name)
    grid = read_nifti(sample_images("volumes") / name)
    grey = Grid(grey_levels(grid.values, None), grid.affine, grid.stored)
    kept, resized = tmp_path / "kept.nii.gz", tmp_path / "resized.nii.gz"
    for path, resize in ((kept, "keep"), (resized, "crop")):
        preprocess = Preprocess(size=64, channels=1, resize=resize).over(3)
        volume = preprocess.volume(grey)
        write_nifti(path, preprocess.example(volume), volume.geometry)
    for path in (kept, resized):
        back = nibabel.load(path)
        assert back.shape == (64, 64, 64)
        assert aff2axcodes(back.affine) == aff2axcodes(source.affine)
        # From places of one to places of the other: scaled and moved, never turned.
        between = np.linalg.inv(source.affine) @ back.affine
        scale = np.diag(between)[:3]
        np.testing.assert_allclose(between[:3, :3], np.diag(scale), atol=1e-5)
        spacing = nibabel.affines.voxel_sizes(back.affine)
        assert path == kept or np.allclose(spacing, spacing[0], rtol=1e-4)
        middle = between @ [31.5, 31.5, 31.5, 1]
        np.testing.assert_allclose(
            middle[:3], (np.array(source.shape[:3]) - 1) / 2, atol=1.01 * max(1, *scale)
        )
    # What was not resized are the source's own voxels, its affine moved by whole voxels.
    back = nibabel.load(kept)
    np.testing.assert_allclose(back.affine[:3, :3], source.affine[:3, :3], atol=1e-5)
    first = np.round(np.linalg.inv(source.affine) @ back.affine[:, 3])[:3].astype(int)
    target = tuple(
        slice(max(0, -f), min(64, n - f)) for f, n in zip(first, source.shape, strict=False)
    )
    inside = tuple(slice(max(0, f), f + 64) for f in first)
    stored = np.asarray(source.dataobj, np.float32).reshape(source.shape[:3])
    np.testing.assert_allclose(
        np.asarray(back.dataobj)[target], grey_levels(stored, None)[inside], atol=1e-6
    )


@pytest.mark.real_data
def test_a_real_head_is_upright_and_its_ct_has_air_and_bone():
    folder = sample_images("volumes")
    ct = read_nifti(folder / "chest_ct/totalsegmentator_aorta_report_ct_cropped.nii.gz")
    assert ct.stored == "LPS"
    np.testing.assert_allclose(ct.spacing_mm, 1.5, atol=1e-4)
    assert ct.values.min() < -900
    assert ct.values.max() > 1000
    brain = read_nrrd(folder / "brain_mri/pyradiomics_brain1_image.nrrd")
    assert brain.values.shape == (256, 256, 25)
    # The skull's top is smaller than its base.
    head = brain.values > 60
    assert head[:, :, -3].sum() < head[:, :, 8].sum()


def test_series_are_read_beside_other_volumes(tmp_path):
    series(tmp_path / "r/a/scan", blob(12, 12, 12))
    nifti(tmp_path / "r/b/1.nii", blob(12, 12, 12))
    assert len(load(tmp_path / "r").images) == 2

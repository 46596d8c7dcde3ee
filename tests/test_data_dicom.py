"""DICOM pictures and series: what the pixels mean, and what cannot be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom.uid
import pytest
from helpers import sample_images
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import Decoder
from scans import blob, dicom, series

from medpfl.data import HospitalImages, Preprocess
from medpfl.data.dicom.header import read_header
from medpfl.data.dicom.pixels import read_frame
from medpfl.data.dicom.series import read_series
from medpfl.data.volumes.intensity import Window
from medpfl.errors import ConfigurationError, DataError

KEEP = Preprocess(size=12, channels=1, resize="keep")


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def load(root: Path, preprocess: Preprocess = KEEP, **settings):
    settings = {"reads": "pictures", "split": "all", **settings}
    source = HospitalImages(name="dicom", root=str(root), **settings)
    return source.load(preprocess=preprocess, n_images=None, seed=0)


def refusal(root: Path, **settings) -> str:
    with pytest.raises((DataError, ConfigurationError)) as refused:
        load(root, **settings)
    return str(refused.value)


def grey(path: Path, window=None, spacing=None) -> np.ndarray:
    return np.asarray(read_frame(path, 0).picture(window, spacing))


def test_rescale_and_the_files_own_window_are_applied(tmp_path):
    stored = np.arange(1024, 1024 + 144, dtype=np.uint16).reshape(12, 12)
    fields = {"RescaleSlope": 2, "RescaleIntercept": -2048}
    frame = read_frame(dicom(tmp_path / "a", stored, **fields), 0)
    assert np.array_equal(frame.values, 2.0 * stored - 2048)
    own = grey(dicom(tmp_path / "b", stored, WindowCenter=[100, 9], WindowWidth=[101, 9], **fields))
    # DICOM PS3.3 C.11.2.1.2.1
    wanted = np.clip((frame.values - 99.5) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(own, wanted, atol=1e-6)
    exact = {"WindowCenter": 100, "WindowWidth": 101, "VOILUTFunction": "LINEAR_EXACT", **fields}
    other = grey(dicom(tmp_path / "c", stored, **exact))
    np.testing.assert_allclose(other, np.clip((frame.values - 100) / 101 + 0.5, 0, 1), atol=1e-6)
    bent = grey(dicom(tmp_path / "d", stored, **{**exact, "VOILUTFunction": "SIGMOID"}))
    np.testing.assert_allclose(bent, 1 / (1 + np.exp(-4 * (frame.values - 100) / 101)), atol=1e-6)


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_a_files_own_table_of_grey_levels_is_applied(tmp_path, kind):
    stored = np.arange(144, dtype=np.uint16).reshape(12, 12)
    table = Dataset()
    table.LUTDescriptor = [100, 20, 12]  # of the values 20 to 119, in 12 bits
    entries = (np.arange(100) * 41) ** 2 // 4095
    told = entries.tolist() if kind == "US" else entries.astype("<u2").tobytes()
    table.add_new(0x00283006, kind, told)
    fields = {"RescaleSlope": 1, "RescaleIntercept": -5, "VOILUTSequence": [table]}
    path = dicom(tmp_path / "a", stored, WindowCenter=9, WindowWidth=9, **fields)
    wanted = entries[np.clip(stored.astype(int) - 5 - 20, 0, 99)] / 4095
    np.testing.assert_allclose(grey(path), wanted, atol=1e-6)
    # A window that is set wins.
    linear = np.clip((stored - 5.0 - 40) / 50 + 0.5, 0, 1)
    np.testing.assert_allclose(grey(path, window=Window(40, 50)), linear, atol=1e-6)


def test_a_window_that_is_set_wins_and_needs_no_file_to_have_one(tmp_path):
    values = (np.arange(144, dtype=np.int16).reshape(12, 12) * 20) - 1000
    for label in "ab":
        dicom(
            tmp_path / f"r/{label}/1.dcm",
            values,
            WindowCenter=0,
            WindowWidth=9,
            number=f"P-{label}",
        )
    image = load(tmp_path / "r", window=[40, 400]).images.load(0)
    np.testing.assert_allclose(image[0], np.clip((values - 40) / 400 + 0.5, 0, 1), atol=1e-6)


def test_monochrome1_is_turned_and_padding_is_no_tissue(tmp_path):
    values = blob(12, 12).astype(np.int16)
    usual = grey(dicom(tmp_path / "a", values))
    turned = grey(dicom(tmp_path / "b", values, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(turned, 1 - usual, atol=1e-6)
    values[0] = -2000
    padded = read_frame(dicom(tmp_path / "c", values, PixelPaddingValue=-2000), 0).values
    assert padded.min() == values[1:].min()
    assert np.array_equal(padded[1:], values[1:])


def test_each_frame_is_an_image_of_the_same_patient(tmp_path):
    frames = np.stack([blob(12, 12, seed=s) for s in range(3)])
    dicom(tmp_path / "r/a/many.dcm", frames)
    dicom(tmp_path / "r/b/one.dcm", frames[0], number="other")
    data = load(tmp_path / "r")
    assert len(data.images) == 4
    assert len({tuple(image.flatten().tolist()) for image in map(data.images.load, range(3))}) == 3
    assert "patients: 2 by DICOM headers, with up to 3 images each" in data.notes[2]


def test_colours_stay_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for label in "ab":
        dicom(tmp_path / f"r/{label}/1", values, number=f"P-{label}")
    image = load(tmp_path / "r", Preprocess(size=12, resize="keep")).images.load(0)
    np.testing.assert_allclose(image.permute(1, 2, 0) * 255, values, atol=1e-4)


def test_pictures_are_resampled_to_a_spacing(tmp_path):
    path = dicom(tmp_path / "a", blob(12, 8), PixelSpacing=[2.0, 0.5])
    assert grey(path, spacing=(1.0, 1.0)).shape == (24, 4)
    with pytest.raises(DataError, match="does not say the spacing"):
        grey(dicom(tmp_path / "b", blob(12, 8)), spacing=(1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MR_small_RLE.dcm", (64, 64)),
        ("MR_small_jp2klossless.dcm", (64, 64)),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64)),
        ("SC_rgb_jpeg_gdcm.dcm", (100, 100, 3)),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (100, 100, 3)),
        ("image_dfl.dcm", (512, 512)),
    ],
)
def test_compressed_files_are_read(name, kind):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("this pydicom comes without the file")
    header = read_header(Path(path), b"salt")
    assert header is not None
    values = read_frame(Path(path), 0).values
    assert values.shape == kind
    if name.startswith("MR_small"):  # all of them are lossless
        plain = get_testdata_file("MR_small.dcm", download=False)
        assert np.array_equal(values, read_frame(Path(plain), 0).values)


def test_a_syntax_without_a_decoder_is_named_with_the_extra(tmp_path, monkeypatch):
    for label in "ab":
        dicom(tmp_path / f"r/{label}/1", blob(12, 12), syntax=pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    message = refusal(tmp_path / "r")
    assert "JPEG-LS Lossless Image Compression, which needs a decoder" in message
    assert "pip install 'medpfl[dicom]'" in message


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (pydicom.uid.MPEG2MPML, "MPEG2 Main Profile / Main Level, is none that is read here"),
        ("1.2.3.4711.19500131", "a private one, is none that is read here"),
    ],
)
def test_a_syntax_that_nothing_reads(tmp_path, syntax, words):
    dicom(tmp_path / "r/b/1", blob(12, 12))
    dicom(tmp_path / "r/a/1", blob(12, 12), syntax=syntax)
    message = refusal(tmp_path / "r")
    assert words in message
    assert "4711" not in message


def test_an_encrypted_file_is_called_so(tmp_path):
    dicom(tmp_path / "r/b/1", blob(12, 12))
    (tmp_path / "r/a").mkdir()
    envelope = bytes.fromhex("308006092a864886f70d010703a080") + b"x" * 200
    (tmp_path / "r/a/1.dcm").write_bytes(envelope)
    assert "it is encrypted (an enveloped message" in refusal(tmp_path / "r")


def test_files_cut_short_are_left_out_or_stop_the_run(tmp_path):
    for label in "ab":
        for number in range(2):
            dicom(tmp_path / f"r/{label}/{number}.dcm", blob(12, 12, seed=number))
    short = tmp_path / "r/a/0.dcm"
    whole = short.read_bytes()
    for size in (0, 100, 140, 300, len(whole) - 20):
        short.write_bytes(whole[:size])
        message = refusal(tmp_path / "r")
        assert "cannot be read" in message
        assert "cut short" in message, message
        assert "0.dcm" not in message
        data = load(tmp_path / "r", on_error="skip")
        assert len(data.images) == 3


def test_damaged_headers_become_messages(tmp_path):
    whole = dicom(tmp_path / "x", blob(12, 12)).read_bytes()
    rng = np.random.default_rng(0)
    dicom(tmp_path / "r/b/1", blob(12, 12))
    for _ in range(60):
        bad = bytearray(whole)
        for place in rng.integers(132, len(whole) - 144, 3):
            bad[place] = rng.integers(256)
        (tmp_path / "r/a").mkdir(exist_ok=True)
        (tmp_path / "r/a/1.dcm").write_bytes(bad)
        with suppress(DataError):
            assert load(tmp_path / "r").images.load(0).isfinite().all()


def test_what_a_header_claims_is_not_allocated(tmp_path):
    dicom(tmp_path / "r/b/1", blob(12, 12))
    dicom(tmp_path / "r/a/1", blob(12, 12), Rows=65535, Columns=65535, NumberOfFrames=10**6)
    message = refusal(tmp_path / "r")
    assert "its header says 65535 x 65535 x 1000000 x 1 voxels, which take" in message


def test_a_series_is_a_volume_in_the_patients_axes(tmp_path):
    values = blob(5, 6, 7)
    grid, inverted = read_series(sorted(series(tmp_path / "s", values).iterdir()))
    assert not inverted
    # Columns run to the left and rows to the back: both are mirrored in RAS.
    assert np.array_equal(grid.values, values.transpose(2, 1, 0)[::-1, ::-1])
    assert grid.stored == "LPS"
    assert grid.spacing_mm.tolist() == [1, 1, 2]
    # The voxel that was first lies where the header says, x and y of the other sign.
    assert (grid.affine @ [6, 5, 0, 1]).tolist() == [10, 20, 30, 1]


def test_a_sagittal_series_comes_out_upright(tmp_path):
    values = blob(5, 6, 7)
    sagittal = series(tmp_path / "s", values, along=(0, 1, 0, 0, 0, -1))
    grid, _ = read_series(sorted(sagittal.iterdir()))
    # Slices run to the left (x), columns to the back (y), rows to the feet (z).
    assert grid.values.shape == (5, 7, 6)
    assert grid.spacing_mm.tolist() == [2, 1, 1]
    place = grid.affine @ np.array([*np.argwhere(grid.values == values.max())[0], 1])
    number, row, column = np.argwhere(values == values.max())[0]
    normal = np.cross((0, 1, 0), (0, 0, -1))
    lps = np.array([-10, -20, 30]) + number * 2 * normal + [0, column, -row]
    assert place[:3].tolist() == (lps * [-1, -1, 1]).tolist()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "slices 2 and 3 of 4 lie 4 mm apart, the others 2 mm"),
        ("uneven", "apart: a volume needs one distance"),
        ("double", "lie where another does"),
        ("two series", "2 series lie in one folder: put each into a folder of its own"),
        ("sizes", "differ in size"),
        ("scout", "in different directions"),
        ("nowhere", "does not say where its picture lies"),
        ("single", "a single slice"),
    ],
)
def test_a_series_that_is_no_volume(tmp_path, fault, words):
    values, place = blob(5, 12, 12), tmp_path / "r/a/scan"
    series(tmp_path / "r/b/scan", values)
    series(place, values[:1] if fault == "single" else values, leave_out=[2] * (fault == "missing"))
    where = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    if fault == "uneven":
        dicom(place / "more", values[0], ImagePositionPatient=[-10, -20, 39.4], **where)
    if fault == "double":
        dicom(place / "more", values[0], ImagePositionPatient=[-10, -20, 34], **where)
    if fault == "two series":
        dicom(place / "more", values[0], series=2, ImagePositionPatient=[-10, -20, 40], **where)
    if fault == "sizes":
        dicom(place / "more", values[0, :8], ImagePositionPatient=[-10, -20, 40], **where)
    if fault == "scout":
        where["ImageOrientationPatient"] = [0, 1, 0, 0, 0, -1]
        dicom(place / "more", values[0], ImagePositionPatient=[-10, -20, 40], **where)
    if fault == "nowhere":
        dicom(place / "more", values[0])
    message = refusal(tmp_path / "r", reads="series")
    assert words in message
    assert "cannot read the image h" in message
    assert "dataset.on_error=skip" in message


@pytest.mark.parametrize(
    ("first", "fields", "words"),
    [
        (0, {}, ""),
        (1, {"ImagesInAcquisition": 4}, ""),
        (5, {}, "(its pictures are numbered from 5)"),
        (1, {"ImagesInAcquisition": 9}, "(its headers tell of 9 pictures, and there are 4)"),
        (None, {}, ""),
        (None, {"InstanceNumber": [1, 2]}, ""),
    ],
)
def test_a_series_that_may_lack_its_ends_is_noted(tmp_path, first, fields, words):
    for label in "ab":
        series(tmp_path / f"r/{label}/scan", blob(4, 12, 12), number=f"P-{label}", **fields)
    for number, path in enumerate(sorted((tmp_path / "r/a/scan").iterdir())):
        data = pydicom.dcmread(path)
        if first is not None:
            data.InstanceNumber = first + number
        data.save_as(path)
    notes = "\n".join(load(tmp_path / "r", Preprocess(size=4, channels=1), reads="series").notes)
    assert words in notes
    assert ("may lack their first or last slices" in notes) == bool(words)


def test_an_enhanced_file_is_a_volume_by_its_functional_groups(tmp_path):
    values = blob(4, 12, 12)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [1, 1]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for number in range(4):
        frame, plane, rescale = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 3 * number]
        rescale.RescaleSlope, rescale.RescaleIntercept = number + 1, 0
        frame.PlanePositionSequence = [plane]
        frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
    groups = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    grid, _ = read_series([dicom(tmp_path / "a", values, **groups)])
    assert grid.spacing_mm.tolist() == [1, 1, 3]
    scaled = values * np.arange(1.0, 5)[:, None, None]
    assert np.array_equal(grid.values, scaled.transpose(2, 1, 0)[::-1, ::-1])


@pytest.mark.real_data
def test_a_real_series_has_its_17_slices_and_spacing():
    folder = sample_images("volumes/brain_mri/torchio_dicom")
    grid, _ = read_series(sorted(folder.iterdir()))
    assert grid.values.shape == (88, 128, 17)
    np.testing.assert_allclose(grid.spacing_mm, [2, 2, 2], atol=1e-3)
    assert grid.stored == "RAS"

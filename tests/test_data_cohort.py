"""Whose images are whose: labels in a CSV, and splits that no patient crosses."""

from __future__ import annotations

from pathlib import Path

import pytest
from scans import blob, dicom, nifti

from medpfl.data import HospitalImages, Preprocess
from medpfl.data.ids import ID_MAP
from medpfl.errors import DataError


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def load(root: Path, seed: int = 0, **settings):
    source = HospitalImages(root=str(root), **{"reads": "pictures", **settings})
    preprocess = Preprocess(size=12, channels=1, resize="keep")
    return source.load(preprocess=preprocess, n_images=None, seed=seed)


def refusal(root: Path, **settings) -> str:
    with pytest.raises(DataError) as refused:
        load(root, **settings)
    return str(refused.value)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Eight patients of two classes with one to four pictures each, in one folder a class."""
    for patient in range(8):
        for number in range(1 + patient % 4):
            name = f"r/{'ab'[patient % 2]}/{number}{patient}.dcm"
            dicom(tmp_path / name, blob(12, 12, seed=10 * patient + number), number=f"P{patient}")
    return tmp_path / "r"


@pytest.mark.parametrize("seed", range(4))
def test_no_patient_is_in_training_and_test(pictures, seed):
    data = load(pictures, seed, id_map=True)
    assert data.held_out is not None
    rows = [line.split(",") for line in (pictures / ID_MAP).read_text().splitlines()[1:]]
    patient = {image_id: Path(file).stem[1] for image_id, file in rows}
    train, test = ({patient[i] for i in part.ids} for part in (data.images, data.held_out))
    assert train
    assert test
    assert not train & test
    assert len(train | test) == 8
    assert len(data.images) + len(data.held_out) == len(rows) == 20
    assert {0, 1} == set(data.images.labels.tolist())


def test_the_split_does_not_depend_on_the_salt(pictures, tmp_path):
    first = load(pictures)
    (tmp_path / "state/medpfl/ids.salt").unlink()
    second = load(pictures)
    assert set(first.images.ids).isdisjoint(second.images.ids)
    for index in range(len(first.images)):
        assert first.images.load(index).equal(second.images.load(index))


def test_a_patient_of_two_classes_stays_on_one_side(tmp_path):
    for patient in range(6):
        for label in "ab":
            dicom(tmp_path / f"r/{label}/{patient}", blob(12, 12), number=f"P{patient}")
    data = load(tmp_path / "r", test_fraction=0.5)
    assert len(data.images) == 6
    assert data.images.labels.sum() == 3


def test_without_headers_folders_and_names_of_bids_tell_patients(tmp_path):
    for name in ("a/p1/x", "a/p1/y", "a/sub-7_ses-1", "a/sub-7_ses-2", "b/x", "b/y"):
        nifti(tmp_path / f"r/{name}.nii", blob(12, 12, 12))
    data = load(tmp_path / "r", reads="volumes", split="all")
    wanted = "patients: 3 by folder or file, 1 by names sub-..., with up to 2 images each"
    assert data.notes[2].startswith(wanted)


def test_a_table_says_classes_and_patients(tmp_path):
    root = tmp_path / "r"
    for name in ("Quux/1.nii", "Quux/2.nii", "x/3.nii", "x/4.nii", "x/unlisted.nii"):
        nifti(root / name, blob(12, 12, 12, seed=len(name)))
    table = tmp_path / "labels.csv"
    table.write_text(
        "label,file,patient\nwell,Quux/1.nii,7\nill,Quux/2.nii,8\nill,x/3.nii,7\nwell,x/4.nii,9\n"
    )
    data = load(root, reads="volumes", split="all", labels=str(table))
    assert data.classes == ("ill", "well")
    assert data.images.labels.tolist() == [0, 0, 1, 1]
    assert "patients: 3 by dataset.labels, with up to 2 images each" in data.notes[-1]
    assert "ignored: 1 files that are not images" in data.notes


def test_a_line_may_name_a_folder(tmp_path):
    for number in range(3):
        for name in ("Quux", "other"):
            dicom(tmp_path / f"r/{name}/{number}", blob(12, 12, seed=number), number=name * 2)
    (tmp_path / "t.csv").write_text("file,label\nQuux,ill\nother/0,well\n")
    data = load(tmp_path / "r", split="all", labels=str(tmp_path / "t.csv"))
    assert data.images.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,class\nQuux.nii,a\n", "no column label"),
        ("file,label\nQuux.nii,a\n", "1 classes in the column label"),
        ("file,label\nQuux.nii,a\nZebediah.nii,b\n", "line 3 names a file that is not below"),
        ("file,label\nQuux.nii,a\n../Zebediah.nii,b\n", "line 3 names a file outside dataset.root"),
        ("file,label\nQuux.nii,a\nQuux.nii,b\n", "lines 2 and 3 name the same file"),
        ("file,label\nQuux.nii\n", "line 2 has more or fewer values"),
        ("file,label\nQuux.nii,a,Zebediah\n", "line 2 has more or fewer values"),
        ('file,label\nQuux.nii,"a"Zebediah\n', "line 2 is no CSV"),
        ("", "no column file and no label"),
    ],
)
def test_tables_that_cannot_be_followed(tmp_path, text, words):
    nifti(tmp_path / "r/Quux.nii", blob(12, 12, 12))
    (tmp_path / "t.csv").write_text(text)
    message = refusal(tmp_path / "r", reads="volumes", labels=str(tmp_path / "t.csv"))
    assert words in message
    assert "Quux" not in message
    assert "Zebediah" not in message


def test_folders_called_after_patients_are_refused_as_classes(tmp_path):
    for name, number in (("Quuxington_Zebediah", "1"), ("Kaputtke", "2")):
        patient = name.replace("_", "^")
        for file in "xy":
            dicom(tmp_path / f"r/{name}/{file}", blob(12, 12), patient=patient, number=number)
    message = refusal(tmp_path / "r")
    assert "is called as its files' headers call a patient" in message
    assert "dataset.labels=FILE" in message
    assert "Quux" not in message
    assert "Kaputt" not in message
    for place in (tmp_path / "r").iterdir():
        place.rename(place.with_name(f"class{place.name[0]}"))
    assert len(load(tmp_path / "r", split="all").images) == 4


def test_empty_and_missing_classes_are_numbered(tmp_path):
    dicom(tmp_path / "r/b/1", blob(12, 12))
    assert "holds 1 class folders" in refusal(tmp_path / "r")
    (tmp_path / "r/Quuxington").mkdir()
    message = refusal(tmp_path / "r")
    assert "class 1 of 2 has no image that can be read: this dataset reads DICOM files" in message
    assert "Quux" not in message

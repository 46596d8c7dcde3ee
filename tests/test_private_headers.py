"""No byte that medpfl writes or prints holds what a header says of a patient, or a file's name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import pydicom
import pytest
from conftest import Command
from scans import blob, dicom, nifti, series
from test_private_names import contents, spellings

from medpfl.data.dicom.header import Header

# Of each patient the folder, and the words that nothing else holds.
COHORT = {
    "ill/Krummbein_Ottilie": ("Krummbein^Ottilie", "KRU-0815"),
    "ill/Vogelsang_W": ("Vogelsang^Wilhelmina", "VOG-4711"),
    "well/Kaputtke": ("Kaputtke^Balthasar", "KAP-1234"),
    "well/Quuxington": ("Quuxington^Zebediah", "QUU-9876"),
}
TINY = (
    "device=cpu",
    "dataset.root=cohort",
    "dataset.split=all",
    "preprocess.size=12",
    "preprocess.channels=1",
    "attack=dlg",
    "attack.optimizer.max_steps=1",
    "hydra.run.dir=out",
    "hydra.verbose=true",
)


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def texts_of(path: Path) -> set[str]:
    """Return every text of a DICOM header that is as long as a name, word by word."""
    found: set[str] = set()

    def collect(data: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR in ("PN", "LO", "LT", "SH", "ST", "UI", "DA", "AE", "UN"):
            found.update(str(element.value).replace("^", " ").split())

    pydicom.dcmread(path, stop_before_pixels=True).walk(collect)
    # DICOM's own identifiers are no patient's.
    return {word for word in found if len(word) >= 6 and not word.startswith("1.2.840.10008")}


def nowhere(folder: Path, told: list[str], words: set[str]) -> None:
    places = [*contents(folder), *(("the console", text.encode()) for text in told)]
    places += [
        (place, gzip.decompress(content))
        for place, content in places
        if place.endswith(".gz") and content.startswith(b"\x1f\x8b")
    ]
    assert len(places) > 3
    for place, content in places:
        for word in words:
            for spelt in spellings(word):
                assert spelt not in content, f"{word} in {place}"


@pytest.fixture
def pictures(tmp_path) -> set[str]:
    """Write the cohort, one file of it damaged, and return every word of its headers and paths."""
    words: set[str] = set()
    for seed, (place, (name, number)) in enumerate(COHORT.items()):
        for file in ("scan_1", "scan_2"):
            path = tmp_path / f"cohort/{place}/{file}.dcm"
            dicom(path, blob(12, 12, seed=seed), patient=name, number=number)
            words |= texts_of(path)
        words |= {Path(place).name, f"{file}.dcm"}
    damaged = tmp_path / "cohort/well/Quuxington/scan_1.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert {"Zebediah", "QUU-9876", "19500131", "Drosselbart", "Oddlington"} <= words
    assert any(word.startswith("1.2.826") for word in words)
    return words


@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_dicom_pictures(command: Command, tmp_path, pictures, on_error):
    done = command(*TINY, "dataset=dicom", f"dataset.on_error={on_error}")
    assert done.code == (0 if on_error == "skip" else 2), done.stderr
    nowhere(tmp_path, [done.stdout, done.stderr], pictures)
    record = json.loads((tmp_path / "out/run.json").read_text("utf-8"))
    if on_error == "skip":
        assert record["summary"]["n"] == 7
        assert "left out, cannot be read: 1 files: h" in done.stdout
    else:
        assert "1 of the selected images cannot be read" in done.stderr


def test_the_words_would_be_found(tmp_path, pictures):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text("of Zebediah")
    with pytest.raises(AssertionError, match="Zebediah in out/run"):
        nowhere(tmp_path, ["", "", ""], pictures)


def test_volumes(command: Command, tmp_path):
    words = {"Krummbein", "Ottilie", "Drosselbart", "Zebediah", "Quuxington"}
    for seed, (place, (name, number)) in enumerate(COHORT.items()):
        folder = tmp_path / "cohort" / place
        if seed % 2:
            series(folder / "se", blob(12, 12, 12, seed=seed), patient=name, number=number)
            words |= texts_of(next((folder / "se").iterdir())) | {Path(place).name}
        else:
            # Where nobody expects a name.
            told = {"descrip": b"of Drosselbart", "db_name": b"Zebediah", "aux_file": b"Quuxington"}
            nifti(folder / "Ottilie.nii.gz", blob(12, 12, 12, seed=seed), **told)
    damaged = nifti(tmp_path / "cohort/ill/Quuxington.nii.gz", blob(12, 12, 12))
    damaged.write_bytes(damaged.read_bytes()[:-50])
    command_line = (*TINY, "dataset=volume", "dataset.on_error=skip", "model=idlg_cnn")
    done = command(*command_line)
    assert done.code == 0, done.stderr
    nowhere(tmp_path, [done.stdout, done.stderr], words)
    written = sorted((tmp_path / "out/reconstructions").glob("*.nii.gz"))
    assert len(written) == 8
    # attack=dlg cuts the middle out at its own proportions in millimetres.
    assert {nibabel.load(path).header.get_zooms() for path in written} == {(2, 2, 2), (1, 1, 1)}


def test_a_header_in_memory_says_nothing():
    header = Header(
        rows=1,
        columns=1,
        frames=1,
        photometric="RGB",
        patient="Quux",
        series="Quux",
        number=1,
        of=2,
        names=frozenset({"Quux"}),
        words=frozenset({"Quux"}),
    )
    assert "Quux" not in repr(header)

"""With ``dataset.ids=hashed`` no byte that medpfl writes or prints holds the name of a file."""

from __future__ import annotations

import json
import os
import struct
import unicodedata
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, Finished
from PIL import Image, PngImagePlugin

from medpfl import compare
from medpfl.data import Preprocess

# Patients, as files and as folders below the classes, and of each a part that nothing else holds.
PATIENTS = {
    "healthy/Quuxington_Zebediah_19500131.png": "Quuxington",
    "healthy/ward7/Krummbein, Ottilie.png": "Krummbein",
    "healthy/Wilhelmina-Vogelsang/scan1.tif": "Wilhelmina-Vogelsang",
    "healthy/Ångstrøm_Ødegård.jpg": "Ångstrøm",
    "tumour/Balthasar Kaputtke.png": "Kaputtke",
    "tumour/Nguyễn Thị Xuân/1.png": "Nguyễn",
    "tumour/P-0815-4711.png": "0815-4711",
    os.fsdecode(b"tumour/Oddlington\xe9\xff.png"): "Oddlington",
}
DAMAGED = "tumour/Balthasar Kaputtke.png"
TINY = (
    "device=cpu",
    "dataset=folder",
    "dataset.root=cohort",
    "dataset.split=all",
    "dataset.ids=hashed",
    "preprocess.size=16",
    "attack=dlg",
    "attack.optimizer.max_steps=1",
    "attack.optimizer.max_iter=4",
)
VERBOSE = "hydra.verbose=true"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")


@pytest.fixture(autouse=True)
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Patients' images, their names in the metadata too; one is damaged, one file is no image."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rng = np.random.default_rng(0)
    for name, part in PATIENTS.items():
        path = tmp_path / "cohort" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
        told = PngImagePlugin.PngInfo()
        told.add_text("PatientName", part, zip=True)
        image.save(os.fspath(path), pnginfo=told, comment=part, tiffinfo={270: ascii(part)})
    damaged = tmp_path / "cohort" / DAMAGED
    damaged.write_bytes(damaged.read_bytes()[:-60])
    (tmp_path / "cohort/healthy/Letter to Quuxington.txt").write_text("no image")
    return tmp_path / "cohort"


@pytest.fixture
def told() -> list[str]:
    """What was printed."""
    return []


@pytest.fixture
def medpfl(command: Command, told: list[str]) -> Command:
    """Run ``medpfl`` on the cohort, and keep what it prints."""

    def run(*arguments: str, sweeps: bool = False) -> Finished:
        done = command("--multirun", *arguments) if sweeps else command(*arguments)
        told.extend((done.stdout, done.stderr))
        return done

    return run


def spellings(part: str) -> Iterator[bytes]:
    """Yield how a name may be spelt: composed or not, escaped, in several encodings."""
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, part)
        yield text.encode()
        yield text.encode("utf-16-le")
        yield text.encode("latin-1", "replace") if "?" not in text else text.encode()
        yield text.encode("unicode_escape")
        yield json.dumps(text)[1:-1].encode()
        yield urllib.parse.quote(text).encode()


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what lies in a folder: names, files as they are, and what is compressed in them."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if inside.parts[0] in ("cohort", "state"):
            continue
        yield f"the name of {inside}", os.fsencode(inside)
        if path.is_file():
            raw = path.read_bytes()
            yield str(inside), raw
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as members:
                    for name in members.namelist():
                        yield f"{inside}:{name}", name.encode() + members.read(name)
            if path.suffix == ".png":
                yield from ((f"{inside}:{kind}", text) for kind, text in png_chunks(raw))


def png_chunks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    place = 8
    while place < len(raw):
        length, kind = struct.unpack_from(">I4s", raw, place)
        content = raw[place + 8 : place + 8 + length]
        if kind != b"IDAT":
            yield kind.decode(), content
        for start in (content.find(b"x\x9c"), content.find(b"x\xda"), content.find(b"x\x01")):
            if start >= 0 and kind != b"IDAT":
                yield kind.decode(), zlib.decompressobj().decompress(content[start:])
        place += 12 + length


def no_name_in(folder: Path, told: list[str]) -> None:
    found = [*contents(folder), *(("the console", text.encode()) for text in told)]
    assert found
    for place, content in found:
        for part in PATIENTS.values():
            for spelt in spellings(part):
                assert spelt not in content, f"{part} in {place}"


@pytest.fixture
def checked(tmp_path: Path, told: list[str]) -> Iterator[Callable[[], None]]:
    """Look for names after the test, and whenever it asks."""
    yield lambda: no_name_in(tmp_path, told)
    no_name_in(tmp_path, told)


def test_names_are_there_without_the_setting(medpfl, tmp_path, told):
    arguments = [a for a in TINY if a != "dataset.ids=hashed"]
    assert medpfl(*arguments, "dataset.on_error=skip", "hydra.run.dir=out").code == 0
    for part in ("Quuxington", "Kaputtke", "Oddlington"):
        assert any(part.encode() in content for _, content in contents(tmp_path)) or any(
            part in text for text in told
        )
    with pytest.raises(AssertionError, match="Quuxington"):
        no_name_in(tmp_path, told)


def test_a_run_that_leaves_a_damaged_file_out(medpfl, checked, tmp_path):
    skip = "dataset.on_error=skip"
    done = medpfl(*TINY, skip, "hydra.run.dir=out", "attack.trace_points=2", VERBOSE)
    assert done.code == 0, done.stderr
    assert "left out, cannot be read: 1 files: h" in done.stdout
    assert "dataset.id_map=true" in done.stdout
    record = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert record["summary"]["n"] == len(PATIENTS) - 1
    assert (tmp_path / "out/figures/gallery.png").is_file()


def test_a_run_that_a_damaged_file_stops(medpfl, checked, tmp_path):
    done = medpfl(*TINY, "hydra.run.dir=out", "dataset.id_map=true", VERBOSE)
    assert done.code == 2
    assert "1 of the selected images cannot be read" in done.stderr
    assert "medpfl-ids.csv in cohort says which file" in " ".join(done.stderr.split())
    damaged = done.stderr.split("cannot read the image ")[1].split(":")[0]
    assert f"{damaged},{DAMAGED}" in (tmp_path / "cohort/medpfl-ids.csv").read_text("utf-8")
    assert json.loads((tmp_path / "out/run.json").read_text("utf-8"))["status"] == "failed"


def test_a_damaged_file_that_is_met_later(medpfl, checked, tmp_path):
    assert medpfl(*TINY, "dataset.on_error=skip", "hydra.run.dir=first", "n_images=1").code == 0
    image_id = (tmp_path / "first/metrics.csv").read_text().splitlines()[1].split(",")[3]
    listed = f"dataset.select=[{image_id}]"
    done = medpfl(*TINY, listed, "hydra.run.dir=out", "attack=cpl", "model=dlg_cnn")
    assert done.code == 2, done.stderr
    message = " ".join(done.stderr.split())
    assert "cannot read the image h" in message
    assert "leave it out with dataset.on_error=skip" in message
    assert medpfl("resume=out").code == 2


def test_a_fault_of_the_program(medpfl, checked, tmp_path, monkeypatch):
    def failing(self, image):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(Preprocess, "__call__", failing)
    assert medpfl(*TINY, "hydra.run.dir=out").code == 1
    assert "a fault of the program" in (tmp_path / "out/run.json").read_text("utf-8")


def test_a_sweep_of_which_a_job_fails(medpfl, checked, tmp_path):
    sweep = ("dataset.on_error=raise,skip", "hydra.sweep.dir=out", VERBOSE)
    done = medpfl(*TINY, *sweep, sweeps=True)
    assert done.code == 1
    assert "cannot read the image h" in (tmp_path / "out/results.csv").read_text("utf-8")
    checked()
    assert medpfl("resume=out").code == 1


def test_runs_that_go_on_and_runs_that_are_compared(medpfl, checked, tmp_path, told, capfd):
    skip = "dataset.on_error=skip"
    assert medpfl(*TINY, skip, "hydra.run.dir=one", "federation.batch_size=2").code == 0
    run = json.loads((tmp_path / "one/run.json").read_text("utf-8"))
    (tmp_path / "one/run.json").write_text(json.dumps({**run, "status": "interrupted"}), "utf-8")
    first, *others = sorted((tmp_path / "one/reconstructions").glob("*.npz"))
    first.unlink()
    others[0].write_bytes(others[0].read_bytes()[:500])
    done = medpfl("resume=one")
    assert done.code == 0, done.stderr
    assert "could not be read and is computed again" in done.stdout
    assert medpfl(*TINY, skip, "hydra.run.dir=two", "attack=idlg").code == 0
    capfd.readouterr()
    compare.main(["one", "two"])
    told.extend(capfd.readouterr())
    # The data changes, and the salt is lost: the run cannot go on, and says so.
    (tmp_path / "one/run.json").write_text(json.dumps({**run, "status": "interrupted"}), "utf-8")
    path = next((tmp_path / "cohort/healthy").glob("Q*.png"))
    Image.new("L", (20, 20), 9).save(path)
    assert medpfl("resume=one").code == 2
    (tmp_path / "state/medpfl/ids.salt").unlink()
    done = medpfl("resume=one")
    assert done.code == 2
    assert "the same salt" in " ".join(done.stderr.split())


BOTH = ("dataset.ids=hashed,name", *(a for a in TINY if a != "dataset.ids=hashed"))


@pytest.mark.parametrize(
    ("arguments", "select", "sweeps"),
    [
        (TINY, "[healthy/Quuxington_Zebediah_19500131]", False),
        (TINY, "Quuxington", False),
        (TINY, "[h0000000000000000,0815-4711]", True),
        (TINY, "random,['Krummbein, Ottilie']", True),
        (BOTH, "[healthy/Quuxington_Zebediah_19500131]", True),
        (BOTH, "stride,[Wilhelmina-Vogelsang]", True),
    ],
)
def test_a_name_that_is_listed_is_refused_before_it_is_recorded(
    medpfl, checked, arguments, select, sweeps
):
    folders = ("hydra.run.dir=out", "hydra.sweep.dir=outs")
    done = medpfl(*arguments, f"dataset.select={select}", *folders, sweeps=sweeps)
    assert done.code == 2
    assert "dataset.select" in done.stderr
    assert not Path("out").exists()
    assert not Path("outs").exists()


def test_a_sweep_over_rules_and_hashed_ids_goes_through(medpfl, checked, tmp_path):
    assert medpfl(*TINY, "dataset.on_error=skip", "hydra.run.dir=first", "n_images=1").code == 0
    image_id = (tmp_path / "first/metrics.csv").read_text().splitlines()[1].split(",")[3]
    select = f"dataset.select=[{image_id}],random"
    done = medpfl(*TINY, "dataset.on_error=skip", select, "n_images=1", sweeps=True)
    assert done.code == 0, done.stderr

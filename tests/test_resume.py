"""Runs that stopped go on as they were, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers import CONF
from omegaconf import OmegaConf
from records import assert_same_end, finished, rewrite, run_json, table
from sessions import TINY, Stop, session, start

import medpfl
from medpfl import _atomic
from medpfl.errors import ConfigurationError, DataError, MedpflError
from medpfl.report import _strict_json
from medpfl.resume import Request, run
from medpfl.resume.run import resume_run


def test_what_is_left_is_attacked_and_the_rest_kept(half, whole, tmp_path, capsys):
    kept = {p.name: p.read_bytes() for p in (half / "reconstructions").iterdir()}
    before = run_json(half)
    (half / "reconstructions" / ".medpfl-abc.tmp").write_bytes(b"half a file")
    resume_run(Request(half, overrides=TINY), CONF)
    assert_same_end(half, whole)
    for name, content in kept.items():
        assert (half / "reconstructions" / name).read_bytes() == content
    after = run_json(half)
    assert after["started"] == before["started"]
    assert len(after["resumed"]) == 1
    assert after["seconds"] > before["seconds"]
    assert (after["config"], after["overrides"]) == (before["config"], before["overrides"])
    said = capsys.readouterr().out
    assert "resumed: 2 finished images are kept" in said
    assert "4/4 images" in said

    content = {p: p.read_bytes() for p in half.rglob("*") if p.is_file()}
    resume_run(Request(half), CONF)
    assert "complete already" in capsys.readouterr().out
    assert content == {p: p.read_bytes() for p in half.rglob("*") if p.is_file()}


def test_rows_side_by_side_end_the_same_within_rounding(tmp_path):
    together = (*TINY, "attack.rows=64", "attack.precision=float64")
    for name, stop in (("whole", None), ("half", Stop("update", 3))):
        folder = tmp_path / name
        # One by one as they are admitted: two are finished when the third is observed.
        told = [*together, "attack.rows=2"] if name == "half" else together
        start(session, folder, told, tmp_path / "log", stop).join()
    resume_run(Request(tmp_path / "half"), CONF)
    for ours, theirs in zip(
        table(tmp_path / "half" / "metrics.csv"),
        table(tmp_path / "whole" / "metrics.csv"),
        strict=True,
    ):
        assert (ours["image_id"], ours["success"]) == (theirs["image_id"], theirs["success"])
        assert float(ours["ssim"]) == pytest.approx(float(theirs["ssim"]), abs=1e-6)


def test_a_damaged_victim_is_computed_again(half, whole, capsys):
    first, second = sorted((half / "reconstructions").glob("*.npz"))
    first.write_bytes(first.read_bytes()[:1000])
    resume_run(Request(half), CONF)
    assert f"note: {first.name} could not be read and is computed again" in capsys.readouterr().out
    assert second.exists()
    assert_same_end(half, whole)


def test_a_victim_that_we_may_not_read_is_not_damaged(half, monkeypatch):
    path = next((half / "reconstructions").glob("*.npz"))
    plain = Path.open

    def closed(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(MedpflError, match=r"Permission denied.* yours to read"):
        resume_run(Request(half), CONF)
    assert path.exists()


def test_another_configuration_is_refused_with_the_difference(half):
    before = (half / "run.json").read_bytes()
    resume_with = {
        "n_images=8": r"n_images: null -> 8",
        "seed=1": r"seed: 0 -> 1",
        "attack=cpl": r"attack.name: dlg -> cpl",
        "attack.lr=3": r"attack\.lr=3: ",
        "hydra.run.dir=elsewhere": r"leave out hydra\.run\.dir=elsewhere",
    }
    for override, told in resume_with.items():
        with pytest.raises(ConfigurationError, match=told):
            resume_run(Request(half, overrides=(override,)), CONF)
    assert (half / "run.json").read_bytes() == before


def test_the_same_values_in_other_words_are_fine(half, whole):
    resume_run(Request(half, overrides=("seed=0", "n_images=null", "attack=dlg")), CONF)
    assert_same_end(half, whole)


def test_a_run_of_another_version_is_refused(half):
    rewrite(half, versions={"medpfl": "0.0.1"})
    here = medpfl.__version__
    told = rf"run with medpfl 0\.0\.1, and this is medpfl {here}.*Continue with medpfl 0\.0\.1"
    with pytest.raises(MedpflError, match=told):
        resume_run(Request(half), CONF)
    assert run_json(half)["status"] == "running"


def test_other_libraries_are_noted(half, capsys):
    versions = run_json(half)["versions"]
    rewrite(half, versions={**versions, "torch": "2.0.0"})
    resume_run(Request(half), CONF)
    told = f"note: begun with torch 2.0.0, goes on with {versions['torch']}"
    assert told in capsys.readouterr().out


def test_changed_data_is_refused(half):
    recorded = run_json(half)["config"]
    for dataset, told in (
        ({"kinds": ["chest"]}, "not attacked any more"),
        ({"kinds": ["head", "chest", "skin"], "per_class": 2}, "another image"),
    ):
        rewrite(half, config={**recorded, "dataset": {**recorded["dataset"], **dataset}, "seed": 3})
        with pytest.raises(DataError, match=rf"{told}.*data has changed since"):
            resume_run(Request(half), CONF)
        assert run_json(half)["status"] == "failed"
    assert len(finished(half)) == 2


def test_a_folder_without_a_run(tmp_path):
    for folder, told in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no run")):
        with pytest.raises(MedpflError, match=told):
            resume_run(Request(folder), CONF)
    (tmp_path / ".hydra").mkdir()
    notes = "hydra: {overrides: {hydra: [hydra.run.dir=x], task: [attack=dlg]}}"
    (tmp_path / ".hydra" / "hydra.yaml").write_text(notes)
    with pytest.raises(MedpflError, match=r"before it began.*medpfl hydra.run.dir=x attack=dlg"):
        resume_run(Request(tmp_path), CONF)
    for content in ("", "[]", "{}"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(MedpflError, match="not a run's record"):
            resume_run(Request(tmp_path), CONF)
    (tmp_path / "run.json").write_text('{"status": "failed"}')
    with pytest.raises(MedpflError, match="has no configuration"):
        resume_run(Request(tmp_path), CONF)


def test_a_run_that_is_still_running_is_left_alone(half):
    before = (half / "run.json").read_bytes()
    descriptor = _atomic.hold(half)
    with pytest.raises(MedpflError, match="another medpfl is writing to this folder"):
        resume_run(Request(half), CONF)
    os.close(descriptor)
    assert (half / "run.json").read_bytes() == before


def test_settings_are_taken_as_they_were_resolved(half, monkeypatch):
    recorded = run_json(half)["config"]
    odd = {"name": "a ${b} name", "least": _strict_json.spell(float("-inf"))}
    rewrite(half, config={**recorded, "odd": odd})
    seen = []
    monkeypatch.setattr(run, "carry_out", lambda config, record: seen.append(config))
    resume_run(Request(half), CONF)
    assert OmegaConf.to_container(seen[0], resolve=True) == {
        **recorded,
        "odd": {"name": "a ${b} name", "least": float("-inf")},
    }

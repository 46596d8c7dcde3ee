"""What ``resume=`` reads may have been edited: it goes on, or says in one message why not."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers import CONF
from records import finished, rewrite, run_json
from sessions import TINY, as_somebody, start

from medpfl.errors import MedpflError
from medpfl.report.jobs import collect
from medpfl.report.notes import read_notes
from medpfl.resume import Request, run
from medpfl.resume.launch import sweep_arguments
from medpfl.resume.run import resume_run


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


ODD = {
    "text": "text",
    "number": 7,
    "huge": 10**400,
    "list": ["a", 1, {}],
    "empty": [],
    "null": None,
    "mapping": {"a": [1]},
    "true": True,
    "deep": deep(200),
}
KEYS = [
    "status",
    "error",
    "config",
    "overrides",
    "seed",
    "device",
    "versions",
    "commit",
    "started",
    "resumed",
    "seconds",
    "summary",
]
NOTES = (
    "hydra",
    "hydra.overrides",
    "hydra.overrides.hydra",
    "hydra.overrides.task",
    "hydra.job",
    "hydra.job.config_name",
    "hydra.runtime",
    "hydra.runtime.choices",
    "hydra.runtime.config_sources",
    "hydra.sweeper",
    "hydra.sweeper._target_",
    "hydra.sweeper.params",
)
JUNK = {
    "nothing": b"",
    "junk": b"\x00\xff\x00",
    "text": b"text",
    "list": b"[1, 2]",
    "number": b"5",
    "unclosed": b'{"status": ',
    "depth": b"[" * 3000,
    "object": b"!!python/object/apply:os.system [true]",
}


def replace(tree: dict, name: str, value: object) -> dict:
    """Put a value at a dotted name, whatever was there."""
    *above, last = name.split(".")
    node = tree
    for key in above:
        node = node.setdefault(key, {})
    node[last] = value
    return tree


def goes_on_or_says_why(folder: Path, *overrides: str) -> bool:
    try:
        resume_run(Request(folder, overrides), CONF)
    except MedpflError:  # anything else is a traceback
        return False
    return True


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> list:
    """The configurations of the runs that were continued, up to where they would attack."""
    seen: list = []
    monkeypatch.setattr(run, "carry_out", lambda config, record: seen.append(config))
    return seen


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("key", KEYS)
def test_any_key_of_a_record_may_be_anything(half, at_work, key, value):
    rewrite(half, **{key: ODD[value]})
    went_on = goes_on_or_says_why(half, "n_images=null")
    assert went_on == bool(at_work)
    if value == "null" and key not in ("status", "config", "overrides"):
        assert went_on
    if value == "deep":
        assert not went_on
    assert len(finished(half)) == 2


@pytest.mark.parametrize("content", JUNK)
def test_a_record_that_is_none(half, at_work, content):
    (half / "run.json").write_bytes(JUNK[content])
    assert not goes_on_or_says_why(half)
    assert len(finished(half)) == 2


@pytest.mark.parametrize("name", ["config.yaml", "hydra.yaml", "overrides.yaml"])
@pytest.mark.parametrize("content", JUNK)
def test_hydras_notes_of_a_run_may_be_lost(half, at_work, name, content):
    (half / ".hydra").mkdir()
    (half / ".hydra" / name).write_bytes(JUNK[content])
    assert goes_on_or_says_why(half)
    goes_on_or_says_why(half, "seed=5")


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", NOTES)
def test_any_key_of_a_sweeps_notes_may_be_anything(tmp_path, name, value):
    notes: dict = {"hydra": {"overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": ["seed=0,1"]}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(replace(notes, name, ODD[value])))
    with suppress(MedpflError):  # anything else is a traceback
        assert "--multirun" in sweep_arguments(Request(tmp_path), CONF)
    assert [row["job"] for row in collect(tmp_path)] == []


@pytest.mark.parametrize("content", JUNK)
def test_notes_of_a_sweep_that_are_none(tmp_path, content):
    (tmp_path / "multirun.yaml").write_bytes(JUNK[content])
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    for name in ("hydra.yaml", "overrides.yaml"):
        (tmp_path / "0" / ".hydra" / name).write_bytes(JUNK[content])
    if JUNK[content]:
        with pytest.raises(MedpflError, match=r"multirun\.yaml is not what Hydra wrote"):
            sweep_arguments(Request(tmp_path), CONF)
    assert [row["status"] for row in collect(tmp_path)] == ["missing"]


def test_the_place_of_the_fault_is_named(tmp_path, half):
    (tmp_path / "multirun.yaml").write_text("hydra: {overrides: {task: seed=0}}")
    with pytest.raises(ValueError, match=r"hydra\.overrides\.task must be a list of texts, is see"):
        read_notes(tmp_path / "multirun.yaml")
    rewrite(half, overrides={"seed": 0})
    with pytest.raises(MedpflError, match=r"overrides must be a list of texts, is names with val"):
        resume_run(Request(half), CONF)


def sweep_of(half: Path, folder: Path) -> Path:
    """Make a sweep whose one job is a run that was killed after two of its images."""
    shutil.copytree(half, folder / "0")
    (folder / "0" / ".hydra").mkdir()
    (folder / "0" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*TINY]))
    notes = {"overrides": {"task": [*TINY]}, "sweeper": {"_target_": "x.BasicSweeper"}}
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": notes}))
    return folder


def test_a_job_that_lost_its_record_keeps_its_images(command, half, whole, tmp_path):
    sweep = sweep_of(half, tmp_path / "sweep")
    (sweep / "0" / "run.json").unlink()
    kept = {p.name: p.read_bytes() for p in (sweep / "0" / "reconstructions").iterdir()}
    done = command("resume=sweep")
    assert done.code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "has lost its run.json. Its 2 finished images are kept" in said
    assert "resumed: 2 finished images are kept" in said
    record = run_json(sweep / "0")
    assert (record["status"], record["summary"]["n"]) == ("complete", len(finished(whole)))
    assert record["restored"] <= record["resumed"][0]
    for name, content in kept.items():
        assert (sweep / "0" / "reconstructions" / name).read_bytes() == content


def test_images_of_another_job_are_not_taken_for_this_ones(half, tmp_path):
    sweep = sweep_of(half, tmp_path / "sweep")
    (sweep / "0" / "run.json").unlink()
    (sweep / "0" / ".hydra" / "overrides.yaml").write_text("[attack=cpl]")
    with pytest.raises(MedpflError, match=r"its images are of another job: attack=cpl"):
        sweep_arguments(Request(sweep), CONF)


def test_a_run_that_lost_its_record_is_told_so(half):
    (half / "run.json").unlink()
    with pytest.raises(MedpflError, match=r"has lost its run\.json: .* its 2 finished images"):
        resume_run(Request(half), CONF)
    assert len(finished(half)) == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to be root to drop it")
@pytest.mark.parametrize(
    ("place", "mode"),
    [
        (".", 0o000),
        (".", 0o400),
        (".", 0o100),
        ("run.json", 0o000),
        ("multirun.yaml", 0o000),
        ("0", 0o000),
        ("0", 0o400),
    ],
)
def test_a_folder_that_is_not_ours_to_read(tmp_path, place, mode):
    folder = tmp_path / "run"
    (folder / "0").mkdir(parents=True)
    (folder / ("multirun.yaml" if place in ("0", "multirun.yaml") else "run.json")).write_text("{}")
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
        os.chown(path, 65534, 65534)
    (folder / place).chmod(mode)
    process = start(as_somebody, (f"resume={folder}",), tmp_path)
    process.join()
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 2, said
    assert said.startswith("medpfl: error:")
    assert "Traceback" not in said
    assert "Permission denied" in " ".join(said.split())

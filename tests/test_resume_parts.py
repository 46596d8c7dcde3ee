"""What a resumed run is built from: parts that may be named, files that can be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from helpers import CONF
from hypothesis import given, settings
from hypothesis import strategies as st
from records import rewrite, run_json

from medpfl import _atomic
from medpfl.errors import ConfigurationError, MedpflError
from medpfl.report.victim_file import load_victim, safe_name
from medpfl.resume import Request
from medpfl.resume.parts import check_parts, is_own
from medpfl.resume.run import resume_run


def test_every_configured_part_is_medpfls_own():
    targets = {
        line.split(":", 1)[1].split("#")[0].strip()
        for path in CONF.rglob("*.yaml")
        for line in path.read_text("utf-8").splitlines()
        if line.strip().startswith("_target_:")
    }
    assert len(targets) > 20
    assert [target for target in sorted(targets) if not is_own(target)] == []


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "medpfl.cli.os.system",
        "medpfl.cli.main",
        "medpfl.cli.Path",
        "medpfl.none.Thing",
        "medpfl",
        "medpflx.Thing",
        "",
        ["os.system"],
    ],
)
def test_a_foreign_part_is_refused(half, target):
    recorded = run_json(half)["config"]
    rewrite(half, config={**recorded, "attack": {"start": [{"_target_": target}]}})
    with pytest.raises(ConfigurationError, match=r"not medpfl's.*--config-dir"):
        resume_run(Request(half), CONF)
    assert run_json(half)["status"] == "running"


def test_a_part_that_the_users_own_configuration_names_is_trusted(tmp_path):
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text("_target_: my_attacks.Mine  # mine\n")
    config = {"attack": {"_target_": "my_attacks.Mine"}}
    check_parts(config, source="run.json", config_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="my_attacks"):
        check_parts(config, source="run.json")


@pytest.fixture(scope="module")
def victim(whole: Path) -> bytes:
    return next((whole / "reconstructions").glob("*.npz")).read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_noticed_or_harmless(victim, tmp_path_factory, data):
    """A record that was cut or changed anywhere reads as it was written, or not at all."""
    cut = data.draw(st.booleans())
    place = data.draw(st.integers(0, len(victim) - 1))
    content = victim[:place]
    if not cut:
        content += bytes([victim[place] ^ data.draw(st.integers(1, 255))]) + victim[place + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(victim)
    original = load_victim(path)
    path.write_bytes(content)
    try:
        read = load_victim(path)
    except MedpflError:
        return
    assert torch.equal(read.reconstruction, original.reconstruction)
    assert repr(read.scores) == repr(original.scores)


def test_a_new_file_is_never_written_over(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    for name in ("a", "b"):
        _atomic.create_text(tmp_path / name, "first")
        with pytest.raises(FileExistsError):
            _atomic.create_text(tmp_path / name, "second")
        assert (tmp_path / name).read_text() == "first"
        monkeypatch.setattr(os, "link", no_links)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_names_of_records_are_those_of_the_captures(half):
    paths = list((half / "reconstructions").glob("*.npz"))
    assert paths
    for path in paths:
        (score,) = load_victim(path).scores
        assert path.name == safe_name(score.capture_id) + ".npz"

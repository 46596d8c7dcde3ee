"""The examples run as they stand, and print what their README shows."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import Command
from helpers import ROOT

EXAMPLES = ROOT / "examples"


def shown(command: str) -> str:
    """Return the output that the README shows below a command."""
    text = (EXAMPLES / "README.md").read_text()
    found = re.search(rf"^    {re.escape(command)}\n.*?```text\n(.*?)```", text, re.DOTALL | re.M)
    assert found is not None
    return found[1]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_parts_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "python_api.py", "device=cpu")
    assert capsys.readouterr().out == shown("python examples/python_api.py")
    assert list(tmp_path.iterdir()) == []


def test_options_of_your_own_and_the_record_they_leave(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = "dataset=chests attack=strong_idlg hydra.run.dir=outputs/chests"
    done = command("--config-dir", str(EXAMPLES / "my_conf"), *options.split(), "device=cpu")
    assert done.code == 0, done.stderr
    for line in shown(f"medpfl --config-dir examples/my_conf {options}").splitlines():
        assert line in done.stdout
    run(monkeypatch, "read_record.py", "outputs/chests")
    assert capfd.readouterr().out == shown("python examples/read_record.py outputs/chests")


def test_an_attack_of_parts_that_begins_with_the_engine(command: Command) -> None:
    options = "attack=from_parts n_images=4 hydra.run.dir=out device=cpu"
    done = command("--config-dir", str(EXAMPLES / "my_conf"), *options.split())
    assert done.code == 0, done.stderr
    assert "ASR (SSIM >= 0.9)      100.0 % [51.0, 100.0], 4 of 4" in done.stdout

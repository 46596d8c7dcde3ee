"""The Makefile with a pip that only notes what it is asked for: nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >> "$NOTES"\n'
PIP = "python -m pip --disable-pip-version-check --no-input install --constraint constraints.txt"
DEV = ".[dev,dicom,nrrd,flower,nvflare]"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what `make` reads, whose .venv holds programs that note their arguments."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "medpfl"):
        (programs / name).write_text(NOTE)
        (programs / name).chmod(0o755)
    return tmp_path


def make(checkout: Path, *arguments: str) -> list[str]:
    """Return what `make` ran in that checkout."""
    notes = checkout / "notes"
    notes.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**kept, "NOTES": str(notes)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = notes.read_text() if notes.exists() else done.stdout
    return [line.rstrip() for line in told.splitlines()]


def test_the_first_run_installs_and_later_ones_do_not(checkout: Path) -> None:
    assert make(checkout, "run", "ARGS=attack=dlg n_images=4") == [
        f"{PIP} --editable .",
        "medpfl attack=dlg n_images=4",
    ]
    assert make(checkout, "run") == ["medpfl"]
    assert make(checkout, "test") == [f"{PIP} --editable {DEV}", "python -m pytest"]
    assert make(checkout, "run") == ["medpfl"]


@pytest.mark.parametrize(("target", "what"), [("run", "."), ("test", DEV)])
def test_pytorch_alone_comes_from_an_index_that_is_named(
    checkout: Path, target: str, what: str
) -> None:
    index = "https://pytorch.example/a?b=c&d"
    first, second, _ = make(checkout, target, f"TORCH_INDEX={index}")
    assert first == f"{PIP} --no-deps --index-url {index} torch torchvision"
    assert second == f"{PIP} --editable {what}"


def test_help_explains_every_target_and_variable(checkout: Path) -> None:
    told = make(checkout, "help")
    text = (ROOT / "Makefile").read_text()
    phony = " ".join(line for line in text.splitlines() if line.startswith(".PHONY:"))
    targets = {name for name in phony.split() if name.isidentifier()}
    assert {"run", "table1", "clean"} <= targets
    assert {line.split()[1] for line in told if line.startswith("  make ")} == targets
    variables = {line.split(" ?=")[0] for line in text.splitlines() if " ?=" in line}
    assert {"ARGS", "TORCH_INDEX", "budget"} <= variables
    explained = {found[1] for line in told if (found := re.match(r"  (\w+)=", line))}
    assert explained == variables

"""docs/extending.md: its files are written, its commands are run, and they print what it shows."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from helpers import ROOT
from test_cli_mistakes import refused

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.M)
COMMANDS = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```", PAGE, re.DOTALL | re.M)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the page's files into the folder that a command runs in."""
    for name, content in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    own = {Path(name).stem for name, _ in FILES if name.endswith(".py")}
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in own:
        sys.modules.pop(name, None)


def test_the_page_has_what_it_promises() -> None:
    assert len(COMMANDS) == 7
    assert len(FILES) == 14
    assert PAGE.count("```python") + PAGE.count("```yaml") == len(FILES)


@pytest.mark.parametrize(("typed", "shown"), COMMANDS, ids=[c.split()[4] for c, _ in COMMANDS])
def test_a_command_prints_what_the_page_shows(
    command: Command, page: None, typed: str, shown: str
) -> None:
    path, program, *arguments = shlex.split(typed)
    assert (path, program) == ("PYTHONPATH=.", "medpfl")
    done = command(*arguments, "device=cpu")
    assert done.code == 0, done.stderr
    printed = iter([line.strip() for line in done.stdout.splitlines()])
    lines = [line.strip() for line in shown.splitlines()]
    assert lines
    # In this order; what stands between them is left out of the page.
    assert [line for line in lines if line not in printed] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("dataset=discs dataset.per_class=many", "dataset.per_class=many: must be an integer"),
        ("dataset=discs +dataset.size=3", "dataset.size: no such setting; choose from name, per_c"),
        ("model=perceptron model.width=wide", "model.width=wide: must be an integer"),
        ("attack=relative_dlg attack.distance.floor=low", "distance.floor=low: must be a number"),
        ("attack=first_layer attack.layer=none_such", "none_such: the network has no such layer"),
        ("attack=first_layer federation.batch_size=2", "batch_size=2: this attack needs 1"),
        ("defense=keep_largest threat.knows=[] attack=first_layer", "withholds. Grant it with"),
    ],
)
def test_mistakes_in_ones_own_parts_are_told(
    command: Command, page: None, arguments: str, words: str
) -> None:
    assert words in refused(command("--config-dir=my_conf", *arguments.split()))


def test_a_run_with_ones_own_parts_is_resumed_with_the_same_folder(
    command: Command, page: None
) -> None:
    settings = ("attack=first_layer", "preprocess.size=16", "n_images=2", "hydra.run.dir=out")
    assert command("--config-dir=my_conf", *settings).code == 0
    kept = next(Path("out/reconstructions").glob("*client-1.npz"))
    kept.unlink()
    record = Path("out/run.json")
    record.write_text(record.read_text().replace('"complete"', '"interrupted"', 1))
    assert "give the folder of the configuration" in refused(command("resume=out"))
    done = command("--config-dir=my_conf", "resume=out")
    assert (done.code, kept.exists()) == (0, True), done.stderr

"""A folder of one's own configurations: what is wrong with a file is told with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Command
from test_cli_mistakes import refused

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join(10 * [f'*{m}'])}]\n" for m, n in zip("abcdefg", "bcdefgh", strict=True)
)
BROKEN = {
    "an unclosed list": ("name: [1, 2", "line 1, column 12: expected ',' or ']'"),
    "a tab": (
        "init:\n\tbound: 1\n",
        "line 2, column 1: found character '\\t' that cannot start",
    ),
    "Latin-1": ("name: Müller\n".encode("latin-1"), "line 1: not UTF-8 (byte 0xfc)"),
    "UTF-16": ("name: x\n".encode("utf-16"), "line 1: not UTF-8 (byte 0xff)"),
    "binary": (b"\x00\x01\x02", "#x0000: special characters are not allowed"),
    "a key twice": ("name: a\nname: b\n", "line 2: name is set on line 1 too"),
    "a key twice below": ("a:\n  b: 1\n  b: 2\n", "line 3: b is set on line 2 too"),
    "nothing": ("", "holds no settings"),
    "a comment alone": ("# nothing\n", "holds no settings"),
    "a list": ("- a\n- b\n", "line 1: settings are written as name: value"),
    "text": ("phantom\n", "line 1: settings are written as name: value"),
    "an object": (
        "a: !!python/object/apply:os.system [true]\n",
        "line 1: the tag !!python/obj",
    ),
    "a tag of its own": ("a: 1\nb: !secret x\n", "line 2: the tag !secret asks for an object"),
    "aliases that explode": (LAUGHS, "with its aliases (*name) written out, this has more than"),
    "an alias of itself": ("a: &a [*a]\n", "with its aliases (*name) written out"),
    "an alias of nothing": ("a: *b\n", "found undefined alias 'b'"),
    "two documents": ("a: 1\n---\nb: 1\n", "line 2, column 1: but found another document"),
    "depth without end": (f"a: {'[' * 1500}", "nested too deep to be read"),
    "much depth": (f"a: {'[' * 80}{']' * 80}", "line 1: nested deeper than 50 levels"),
    "a list as a key": ("[a, b]: 1\n", "line 1: a list or mapping cannot be the name of a setting"),
    "a long file": ("# " + "x" * 1_000_000, "longer than 1,000,000 bytes"),
    "defaults that are text": ("defaults: phantom\n", "line 1: defaults must be a list of"),
    "defaults that are a mapping": ("defaults: {a: b}\n", "line 1: defaults must be a list of"),
    "a default of two": ("defaults:\n  - {a: b, c: d}\n", "line 2: defaults must be a list of"),
    "a reference that does not end": ("name: ${a\n", "no viable alternative"),
}


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file into a folder of one's own configurations."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_line_and_fault(command: Command, own, kind: str) -> None:
    content, words = BROKEN[kind]
    path = own("dataset/clinic.yaml", content)
    told = refused(command("--config-dir=mine", "dataset=clinic"))
    assert words in told
    assert str(path) in told
    assert not Path("outputs").exists()


def test_what_is_not_chosen_is_not_read(command: Command, own) -> None:
    own("dataset/clinic.yaml", "name: [")
    done = command("--config-dir=mine", "--cfg=job")
    assert (done.code, done.stderr) == (0, "")
    assert "medpfl.data.Phantom" in done.stdout


@pytest.mark.parametrize("given", ["mine", "./mine", "../{here}/mine", "{path}/mine"])
def test_a_folder_is_meant_from_the_current_one(
    command: Command, own, tmp_path: Path, given: str
) -> None:
    own("dataset/clinic.yaml", "_target_: medpfl.data.Phantom\nname: clinic\n")
    folder = given.format(here=tmp_path.name, path=tmp_path)
    for flag in ("--config-dir", "-cd"):
        done = command(flag, folder, "dataset=clinic", "--cfg=job")
        assert "name: clinic" in done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["--config-dir", "--config-path"])
@pytest.mark.parametrize("folder", ["nowhere", "file", "~nobody_here/x", "x" * 5000])
def test_a_folder_that_is_not_there(
    command: Command, tmp_path: Path, flag: str, folder: str
) -> None:
    (tmp_path / "file").write_text("")
    assert "no such folder" in refused(command(f"{flag}={folder}"))


def test_the_words_are_the_same_in_a_search_path(command: Command, own) -> None:
    path = own("dataset/clinic.yaml", "name: [")
    told = refused(command("hydra.searchpath=[mine]", "dataset=clinic"))
    assert "line 1, column 8" in told
    assert path.name in told
    told = refused(command("hydra.searchpath=[nowhere]"))
    assert "nowhere is no folder" in told


def test_defaults_that_lead_back_are_named(command: Command, own) -> None:
    own("dataset/a.yaml", "defaults: [b]\n")
    own("dataset/b.yaml", "defaults: [a]\n")
    told = refused(command("--config-dir=mine", "dataset=a"))
    assert "lead back to itself: dataset/a -> dataset/b -> dataset/a" in told


def test_a_default_that_is_not_there(command: Command, own) -> None:
    own("dataset/a.yaml", "defaults: [missing]\n")
    assert "dataset/missing" in refused(command("--config-dir=mine", "dataset=a"))


def test_an_option_of_ones_own_is_among_those_to_choose_from(command: Command, own) -> None:
    own("dataset/clinic.yaml", "name: clinic\n")
    told = refused(command("--config-dir=mine", "dataset=clinik"))
    assert "did you mean clinic? Choose one of brain_mri, clinic, covid" in told


def test_what_options_begin_with_is_none_itself(command: Command, own) -> None:
    own("attack/_base.yaml", "attack: {trace_points: 2}\n")
    for setting in ("attack=_engine", "attack=_base", "+attack=_engine"):
        assert refused(command("--config-dir=mine", setting))
    told = refused(command("--config-dir=mine", "attack=_engine"))
    assert "attack=_engine: no such option. Choose one of cpl, dimitrov, " in told
    told = refused(command("--config-dir=mine", "attack=engine"))
    assert "_engine" not in told
    assert "attack=cpl,_engine: no such option" in refused(command("-m", "attack=cpl,_engine"))
    own("attack/mine.yaml", "defaults: [missing]\n")
    assert "_engine" not in refused(command("--config-dir=mine", "attack=mine"))


def test_nobody_is_offered_what_is_no_option(command: Command, monkeypatch) -> None:
    said = command("--help")
    assert said.code == 0
    assert "second_order" in said.stdout
    assert "_engine" not in said.stdout
    monkeypatch.setenv("COMP_LINE", "medpfl attack=")
    monkeypatch.setenv("COMP_POINT", "14")
    offered = command("-sc", "query=bash").stdout
    assert "attack=second_order" in offered
    assert "_engine" not in offered


WITH_HEADER = (
    "# @package _global_\ndefaults: [_engine, _self_]\nattack: {name: mine, restarts: 3}\n"
)
WITHOUT = "defaults: [_engine, _self_]\nname: mine\nrestarts: 3\n"


@pytest.mark.parametrize("content", [WITH_HEADER, WITHOUT], ids=["header", "no header"])
def test_an_attack_of_ones_own_may_begin_with_the_engine(command, own, content: str) -> None:
    own("attack/mine.yaml", content)
    shown = command("--config-dir=mine", "attack=mine", "--cfg=job").stdout
    attack = yaml.safe_load(shown)["attack"]
    assert (attack["name"], attack["restarts"], attack["precision"]) == ("mine", 3, "float32")
    assert "start" not in attack

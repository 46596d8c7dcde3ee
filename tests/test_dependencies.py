"""What is imported is declared, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from helpers import ROOT

OWN = {"medpfl", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Used without an import, as a program or a plugin: where, and by which words.
USED_BY_NAME = {
    "build": ("tests/test_packaging.py", '"build"'),
    "hydra-joblib-launcher": ("tests/test_resume_command.py", "hydra/launcher=joblib"),
    "mypy": ("Makefile", "/mypy"),
    "pytest-timeout": ("pyproject.toml", "\ntimeout = "),
    "pytest-xdist": ("pyproject.toml", "--numprocesses"),
    "ruff": ("Makefile", "/ruff"),
}


def plain(requirement: str) -> str:
    """Return the normalised name of a requirement."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    return {plain(requirement) for requirement in requirements}


def modules(*paths: Path) -> set[str]:
    """Return the top-level modules that files import, those named to ``import_module`` included."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in found}


def distributions(names: set[str]) -> set[str]:
    """Return what brings these modules, our own and Python's left out."""
    homes = packages_distributions()
    foreign = names - OWN - set(sys.stdlib_module_names)
    return {plain(home) for name in foreign for home in set(homes.get(name, [name]))}


PACKAGE = distributions(modules(*(ROOT / "medpfl").rglob("*.py")))
TESTS = distributions(modules(*(ROOT / "tests").glob("*.py"), ROOT / "hatch_build.py"))


def test_the_walk_sees_every_way_to_import(tmp_path: Path) -> None:
    text = "import a.b\nfrom c.d import e\nfrom . import f\nimportlib.import_module('g.h')\n"
    (tmp_path / "x.py").write_text(f"{text}def i():\n    import j as k\n")
    assert modules(tmp_path / "x.py") == {"a", "c", "g", "j"}
    assert distributions({"yaml", "PIL", "os", "medpfl"}) >= {"pyyaml", "pillow"}
    assert {"torch", "numpy", "pyyaml", "breaching"} <= PACKAGE


def test_the_package_imports_what_it_declares_and_nothing_else() -> None:
    # Of extras: where they are used, they are there.
    optional = {"breaching", "flwr", "nvflare", "opacus"}
    extras = declared(EXTRAS["bench"] + EXTRAS["flower"] + EXTRAS["nvflare"])
    assert optional == extras | (declared(EXTRAS["dev"]) & {"opacus"})
    assert PACKAGE - optional == declared(PROJECT["dependencies"])


def test_the_tests_import_what_is_declared() -> None:
    known = declared([*PROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["bench"]])
    known |= declared([*EXTRAS["flower"], *EXTRAS["nvflare"]])
    assert known >= TESTS
    assert declared(EXTRAS["dev"]) & declared(PROJECT["dependencies"]) == set()


@pytest.mark.parametrize("extra", EXTRAS)
def test_nothing_is_declared_that_nobody_uses(extra: str) -> None:
    for name in declared(EXTRAS[extra]) - PACKAGE - TESTS:
        stubs = re.fullmatch(r"(?:types-)?(.+?)(?:-stubs)?", name)
        if stubs is not None and stubs[1] != name:
            assert stubs[1] in PACKAGE
        else:
            file, words = USED_BY_NAME[name]
            assert words in (ROOT / file).read_text(), name


def test_every_dependency_is_pinned() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[plain(name)] = version
    wanted = [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]
    assert declared(wanted) <= pins.keys()
    assert all(pins.values())
    # Hatchling is a dependency of development, too: one version for both ways to build.
    assert DECLARED["build-system"]["requires"][0] in EXTRAS["dev"]

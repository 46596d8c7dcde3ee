"""What is shipped: built by way of the source archive, installed, and run in a foreign folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string, policy
from pathlib import Path

import pytest
from helpers import ROOT
from markdown_it import MarkdownIt
from markdown_it.token import Token

SHIPPED = (
    *("medpfl", "conf", "docs", "examples", "tests"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"),
    *("Makefile", "constraints.txt", "hatch_build.py", "pyproject.toml", ".gitignore"),
)
PRIVATE = ("outputs/2026-01-01/run.json", "multirun/run.json", "conf/local/mine.yaml")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("build") is None,
    reason="building without network needs build and hatchling: pip install 'medpfl[dev]'",
)


def call(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both archives from a checkout in which somebody has worked."""
    checkout, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "local")
            )
        else:
            shutil.copy(source, checkout / name)
    for name in PRIVATE:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("private: true")
    call("build", "--no-isolation", "--outdir", str(dist), str(checkout), cwd=checkout)
    return dist


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sources(dist: Path) -> set[str]:
    """Return the files of the source archive."""
    (built,) = dist.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        return {member.name.split("/", 1)[1] for member in archive if member.isfile()}


def test_the_wheel_holds_the_package_and_its_configuration_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    facts = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"medpfl", facts}
    assert not {name for name in names if "local" in name or "outputs" in name}

    conf = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")]
    wanted = {f"medpfl/conf/{path.as_posix()}" for path in conf if path.parts[0] != "local"}
    assert {name for name in names if name.startswith("medpfl/conf/")} == wanted
    assert "medpfl/conf/config.yaml" in wanted

    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medpfl").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert f"{facts}/licenses/LICENSE" in names


def test_the_source_archive_holds_what_it_takes_to_test_and_build_it_again(
    sources: set[str],
) -> None:
    wanted = set()
    for name in SHIPPED:
        files = (ROOT / name).rglob("*.*") if (ROOT / name).is_dir() else [ROOT / name]
        wanted |= {path.relative_to(ROOT).as_posix() for path in files if "local" not in path.parts}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert {"docs/architecture.md", "tests/conftest.py", "examples/README.md"} <= wanted
    assert sources == wanted | {"PKG-INFO"}


def test_the_package_page_has_no_link_that_is_dead_there(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = message_from_string(archive.read(name).decode(), policy=policy.default)
    assert facts["Description-Content-Type"] == "text/markdown"
    page = facts.get_payload()
    assert [place for place in places(page) if not place.startswith("https://")] == []
    readme = (ROOT / "README.md").read_text()
    assert {place for place in places(readme) if place.startswith("https://")} <= {*places(page)}
    assert code(page)[: len(code(readme))] == code(readme)


def test_a_repository_decides_what_a_link_becomes() -> None:
    text = "[a](docs/a.md), [docs/b.md](docs/b.md#part)\n![c\nd](e.png) [f](#g) [h](https://i.j)\n"
    text += "`[k](l)`\n\n```text\n[m](n)\n```\n"
    plain = package_page(text, None)
    assert plain.startswith("a (docs/a.md), docs/b.md (docs/b.md#part)\nc\nd (e.png) f [h](https")
    assert places(plain) == ["https://i.j"]
    assert "source archive" in plain

    linked = package_page(text, "https://x.y/z/")
    root = "https://x.y/z"
    assert places(linked) == [
        f"{root}/blob/HEAD/docs/a.md",
        f"{root}/blob/HEAD/docs/b.md#part",
        f"{root}/raw/HEAD/e.png",
        f"{root}#g",
        "https://i.j",
    ]
    assert code(linked) == code(text)
    assert package_page("no link", None) == "no link"


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()


def package_page(text: str, repository: str | None) -> str:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.package_page(text, repository)


def tokens(text: str) -> Iterator[Token]:
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        yield block
        yield from block.children or ()


def places(text: str) -> list[str]:
    """Return where the links and pictures of Markdown lead."""
    found = list(tokens(text))
    assert not [token.content for token in found if token.type.startswith("html")]
    return [str(t.attrs[k]) for t in found for k in ("href", "src") if k in t.attrs]


def code(text: str) -> list[str]:
    kinds = ("fence", "code_block", "code_inline")
    return [token.content for token in tokens(text) if token.type in kinds]


def test_the_installed_wheel_runs_in_a_foreign_folder(wheel: Path, tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    install = ("pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site))
    call(*install, "--disable-pip-version-check", str(wheel), cwd=tmp_path)
    # The packages it needs are this environment's, the package itself is the wheel's.
    script = site / "bin" / "medpfl"
    done = subprocess.run(
        [str(script), "n_images=1", "dataset.per_class=2", "attack.optimizer.max_steps=1"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = home.glob("outputs/*/*/run.json")
    assert json.loads(record.read_text())["status"] == "complete"
    assert f"path: {site}/medpfl/conf" in (record.parent / ".hydra" / "hydra.yaml").read_text()
    assert not list(site.rglob("outputs"))

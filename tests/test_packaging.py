"""What is shipped: built by way of the source archive, installed, and run in a foreign folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("medpfl", "conf", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
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
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a checkout in which somebody has worked."""
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
    (built,) = dist.glob("*.whl")
    return built


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
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = home.glob("outputs/*/*/run.json")
    assert json.loads(record.read_text())["status"] == "complete"
    assert f"path: {site}/medpfl/conf" in (record.parent / ".hydra" / "hydra.yaml").read_text()
    assert not list(site.rglob("outputs"))

"""Which software a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medpfl import __version__

_DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "skimage": "scikit-image",
    "hydra": "hydra-core",
}
_GIT_SECONDS = 5.0


def versions() -> dict[str, str | None]:
    """Return the version of medpfl, Python and the libraries that results depend on."""
    libraries = {name: _version(package) for name, package in _DISTRIBUTIONS.items()}
    return {"medpfl": __version__, "python": platform.python_version(), **libraries}


def commit(checkout: Path | None = None) -> str | None:
    """Return the git commit of a source checkout, or None where there is none to tell.

    Args:
        checkout: the folder to ask about; the one this package was imported from by default.

    Returns:
        The full hash, with ``-dirty`` behind it where files differ from it or are not part of it.
    """
    root = Path(__file__).resolve().parents[2] if checkout is None else checkout
    # Without this test, a package installed inside someone's repository would report theirs.
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain")
    if head is None or changes is None:
        return None
    return f"{head}-dirty" if changes else head


def _git(root: Path, *arguments: str) -> str | None:
    # A git hook that runs a test exports GIT_DIR, which would answer for another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            check=True,
            encoding="utf-8",
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

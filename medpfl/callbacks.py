"""What happens around Hydra's jobs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from medpfl.report.console import error
from medpfl.report.run_folder import resume_command


class OutputFolder(Callback):
    """Refuse an output folder that cannot be used, before Hydra writes to it or fails on it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run."""
        folder, key = config.hydra.run.dir, "hydra.run.dir"
        if os.path.lexists(Path(folder) / "run.json"):
            _refuse(
                f"{folder} already holds a run (run.json). Give another folder with {key}=..., or "
                f"continue that run with {resume_command(Path(folder))}"
            )
        _make(folder, key)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a sweep."""
        _make(config.hydra.sweep.dir, "hydra.sweep.dir")


def _make(folder: str, key: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe = Path(folder) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        _refuse(
            f"cannot write to the output folder {folder}: {problem.strerror}. "
            f"Give another one with {key}=..."
        )


def _refuse(message: str) -> NoReturn:
    error(message)
    # Hydra reports an exception of a callback as a warning; an exit it lets through.
    sys.exit(2)

"""What happens around Hydra's jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from medpfl.report.console import error


class OutputFolder(Callback):
    """Refuse an output folder that cannot be made, before Hydra fails on it with a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of a single run."""
        _make(config.hydra.run.dir, "hydra.run.dir")

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
        error(
            f"cannot write to the output folder {folder}: {problem.strerror}. "
            f"Give another one with {key}=..."
        )
        # Hydra reports an exception of a callback as a warning; an exit it lets through.
        sys.exit(2)

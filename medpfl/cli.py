"""The command line: finds the configuration, hands it to the runner, sets the exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from medpfl.errors import MedpflError
from medpfl.report.console import error
from medpfl.report.sweep import SweepReport
from medpfl.runner import run

MISTAKE, INTERRUPTED = 2, 130


def conf_dir() -> str:
    """Return the folder of the configuration: inside an installed package, or the checkout's."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"medpfl is installed without its configuration: no conf beside {here}")


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _job(config: DictConfig) -> None:
    job = HydraConfig.get()
    try:
        run(config, Path(job.runtime.output_dir), overrides=list(job.overrides.task))
    except MedpflError as mistake:
        if job.mode is RunMode.MULTIRUN:
            raise  # the sweep records it and goes on
        error(str(mistake))
        sys.exit(MISTAKE)


def main() -> None:
    """Run ``medpfl``; exit 0 where every job is complete."""
    # Everything a run writes can show patients: logs and copies of the configuration, too.
    os.umask(0o077)
    try:
        _job()
    except KeyboardInterrupt:
        SweepReport.finish()
        sys.exit(INTERRUPTED)
    outcome = SweepReport.last_outcome
    if outcome is not None and outcome.failed:
        sys.exit(1)

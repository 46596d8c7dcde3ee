"""The command line: finds the configuration, hands it to the runner, sets the exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medpfl.errors import MedpflError
from medpfl.report.console import error, paths
from medpfl.report.run_folder import resume_command
from medpfl.report.sweep import SweepReport
from medpfl.resume import continue_job, read_request, resume_run, sweep_arguments
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
        run(config, Path(job.runtime.output_dir), overrides=_overrides())
    except (MedpflError, OmegaConfBaseException) as mistake:
        if job.mode is RunMode.MULTIRUN:
            raise  # the sweep records it and goes on
        error(str(mistake))
        sys.exit(MISTAKE)


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _resumed_job(config: DictConfig) -> None:
    continue_job(config, _overrides())


def _overrides() -> list[str]:
    # As typed: resolved here, a ${...} among them would look for its key in the wrong place.
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return [str(override) for override in typed or ()]


def main() -> None:
    """Run ``medpfl``; exit 0 where every job is complete."""
    # Everything a run writes can show patients: logs and copies of the configuration, too.
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may not exist in the locale
            stream.reconfigure(errors="backslashreplace")
    _refuse_null(sys.argv[1:])
    try:
        _task(sys.argv[1:])()
    except KeyboardInterrupt:
        stopped = SweepReport.finish()
        if stopped is not None:
            paths({"continue": resume_command(stopped.results_csv.parent)})
        sys.exit(INTERRUPTED)
    except (MedpflError, OmegaConfBaseException) as mistake:
        error(str(mistake))
        sys.exit(MISTAKE)
    outcome = SweepReport.last_outcome
    if outcome is not None and outcome.failed:
        sys.exit(1)


def _task(arguments: list[str]) -> Callable[[], None]:
    """Return what the command line asks for: a new run or sweep, or to continue one."""
    job: Callable[[], None] = _job
    request = read_request(arguments)
    if request is None:
        return job
    if not request.is_sweep:
        return partial(resume_run, request, Path(conf_dir()))
    sys.argv[1:] = sweep_arguments(request, Path(conf_dir()))
    job = _resumed_job
    return job


def _refuse_null(arguments: list[str]) -> None:
    """Refuse `noise=null`, which is natural to write and which Hydra meets with a traceback."""
    groups = {path.name: path for path in Path(conf_dir()).iterdir() if path.is_dir()}
    for argument in arguments:
        group, _, choice = argument.partition("=")
        if group in groups and choice == "null":
            options = sorted(file.stem for file in groups[group].glob("*.yaml"))
            error(f"{argument}: choose one of {', '.join(options)}")
            sys.exit(MISTAKE)

"""What Hydra calls for each job; torch is imported here, once nothing else is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medpfl._conf import conf_dir
from medpfl._entry import INTERRUPTED, WITH_TRACEBACK, leaving_at_once, tell
from medpfl.command.explain import of_omegaconf
from medpfl.errors import ConfigurationError
from medpfl.resume import Request


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def new_job(config: DictConfig) -> None:
    """Run one experiment, alone or in a sweep."""
    job = HydraConfig.get()
    with _in_words(alone=job.mode is not RunMode.MULTIRUN):
        with leaving_at_once():
            from medpfl.runner import run
        run(config, Path(job.runtime.output_dir), overrides=_overrides())


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def resumed_job(config: DictConfig) -> None:
    """Run one job of a sweep that is launched again."""
    with leaving_at_once():
        from medpfl.resume.job import continue_job
    continue_job(config, _overrides())


def resume(request: Request) -> None:
    """Continue a run that is not of a sweep."""
    with _in_words(alone=True):
        with leaving_at_once():
            from medpfl.resume.run import resume_run
        resume_run(request, Path(conf_dir()))


@contextmanager
def _in_words(*, alone: bool) -> Iterator[None]:
    """End a run that stands alone with a message; a sweep records a failure and goes on."""
    try:
        yield
    except KeyboardInterrupt:  # the run itself has said what it keeps
        if alone:
            sys.exit(INTERRUPTED)
        raise
    except Exception as fault:
        if not alone or os.environ.get(WITH_TRACEBACK) == "1":
            raise
        if isinstance(fault, OmegaConfBaseException):
            fault = ConfigurationError(of_omegaconf(fault))
        sys.exit(tell(fault))


def _overrides() -> list[str]:
    # As typed: resolved here, a ${...} among them would look for its key in the wrong place.
    typed = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return [str(override) for override in typed or ()]

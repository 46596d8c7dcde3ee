"""Run one job of a sweep that was launched again, as far as that is still to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from medpfl.errors import MedpflError
from medpfl.report.console import make_console
from medpfl.report.jobs import COMPLETE, Row
from medpfl.report.run_file import RunFile
from medpfl.report.run_folder import unwritable
from medpfl.resume.launch import never_began
from medpfl.resume.parts import check_parts
from medpfl.resume.record import (
    check_resumable,
    finished_images,
    has_record,
    open_record,
    say_complete,
)
from medpfl.resume.run import continue_run
from medpfl.runner import run


def continue_job(config: DictConfig, overrides: Sequence[str]) -> None:
    """Run a job of a sweep that is launched again, as far as that is still to do.

    Args:
        config: the job's configuration; the recorded one counts where there is one.
        overrides: what the job was told.

    Raises:
        MedpflError: as `medpfl.runner.run`; or the folder holds the run of another job.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    own = [s.path for s in hydra.runtime.config_sources if s.provider == "command-line"]
    config_dir = Path(own[0]) if own else None
    record = _left_by_the_job(folder)
    if record is None:
        settings = OmegaConf.to_container(config, resolve=True)
        check_parts(settings, source=str(folder.parent / "multirun.yaml"), config_dir=config_dir)
        if not finished_images(folder):
            run(config, folder, overrides=overrides)
            return
        record = _restored(folder, config, overrides)
    if record.get("overrides") != list(overrides):
        raise MedpflError(f"{folder} holds another job of the sweep: {record.get('overrides')}")
    if record["status"] == COMPLETE:
        say_complete(folder)
        return
    check_resumable(folder, record, config_dir)
    continue_run(folder, record)


def _left_by_the_job(folder: Path) -> Row | None:
    """Return the record of a job that began; the one that a sweep made in its place is removed."""
    if not has_record(folder):
        return None
    record = open_record(folder)
    if not never_began(record):
        return record
    (folder / "run.json").unlink()
    return None


def _restored(folder: Path, config: DictConfig, overrides: Sequence[str]) -> Row:
    """Write the record that a job has lost, so that its finished images are kept.

    The sweep knows the job's settings, and the images are held against the dataset as always; when
    they were made, and by which version, is lost, and the record says so.
    """
    settings = cast(dict[str, object], OmegaConf.to_container(config, resolve=True))
    lost = RunFile.of_new_run(
        folder / "run.json",
        config=settings,
        overrides=overrides,
        seed=config.seed,
        device=config.device,
        restored=True,
    )
    try:
        lost.create()
    except OSError as error:
        raise unwritable(folder, error) from error
    make_console().print(
        f"\n  note: {folder} has lost its run.json. Its {finished_images(folder)} finished images "
        "are kept, and what is left is attacked with the sweep's settings; when they were made, "
        "and by which version, is not known any more",
        soft_wrap=True,
    )
    return open_record(folder)

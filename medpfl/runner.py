"""One experiment, from its configuration to its folder: the whole flow on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from medpfl.attacks import AttackContext
from medpfl.experiment import Experiment, build
from medpfl.metrics import Summary, ssim_over_steps, summarise
from medpfl.report.console import announce, progress
from medpfl.report.ending import draw, say_how_it_ended, say_interrupted
from medpfl.report.plan import describe_device, make_plan
from medpfl.report.record import RunRecord
from medpfl.round import Round


def run(config: DictConfig, folder: Path, *, overrides: Sequence[str] = ()) -> Summary:
    """Run one experiment and leave its record in a new folder.

    Args:
        config: the composed configuration.
        folder: where the record goes; must not hold a run yet.
        overrides: what the command line changed, for the record.

    Returns:
        The summary over all attacked images.

    Raises:
        MedpflError: a mistake in the configuration or the data, found before any compute.
    """
    settings = OmegaConf.to_container(config, resolve=True)
    record = RunRecord.create(
        folder,
        config=cast(dict[str, object], settings),
        overrides=overrides,
        seed=config.seed,
        device=config.device,
    )
    try:
        experiment = build(config)
        record.note_device(describe_device(experiment.device))
        attack(experiment, record)
        summary = summarise(record.scores)
        draw(record, experiment)
    except KeyboardInterrupt:
        record.interrupt()
        say_interrupted(record)
        raise
    except BaseException as error:
        record.fail(error)
        raise
    record.finish(summary)
    say_how_it_ended(record, experiment, summary)
    return summary


def attack(experiment: Experiment, record: RunRecord) -> None:
    """Attack every victim of the round and put each on record as it finishes."""
    e, round_ = experiment, Round(experiment)
    announce(make_plan(e, round_, record.folder))
    record.plan(round_.image_ids)
    mean_image = e.data.mean_image()
    successes = 0
    with progress(len(round_.image_ids)) as shown:
        context = AttackContext(
            seed=e.seed,
            device=e.device,
            progress=lambda rows, step: shown.pulse(f"{rows} rows, step {step}"),
        )
        for reconstruction in e.attack.reconstruct(round_.observations(), context):
            victim, facts = round_.pending.pop(reconstruction.victim_id)
            scores = e.scorer.score(victim, reconstruction, facts, mean_image, spec=e.data.spec)
            trace = reconstruction.trace
            ssim_trace = None if trace is None else ssim_over_steps(victim, trace)
            record.add(victim, reconstruction, scores, ssim_trace)
            successes += sum(score.success for score in scores)
            shown.update(len(record.scores), successes)

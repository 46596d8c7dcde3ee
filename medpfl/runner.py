"""One experiment, from its configuration to its folder: the whole flow on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from medpfl.attacks import AttackContext
from medpfl.attacks.base import Work
from medpfl.experiment import Experiment, build, check_keys
from medpfl.metrics import Grading, Summary, calibrate, line_up_size
from medpfl.report.bound_plan import plan_bounds
from medpfl.report.console import announce, progress
from medpfl.report.diary import RunDiary
from medpfl.report.duration import longest_time
from medpfl.report.ending import draw, say_how_it_ended, say_interrupted
from medpfl.report.forecast import Forecast
from medpfl.report.plan import describe_device, make_plan
from medpfl.report.profile_file import write_profile
from medpfl.report.record import RunRecord
from medpfl.resume.finished import finished
from medpfl.types import Capture, Observation


def run(config: DictConfig, folder: Path, *, overrides: Sequence[str] = ()) -> Summary:
    """Run one experiment and leave its record in a new folder.

    Args:
        config: the composed configuration.
        folder: where the record goes; must not hold a run yet.
        overrides: what the command line changed, for the record.

    Returns:
        The summary over all attacked images.

    Raises:
        MedpflError: a mistake in the configuration or the data, found before any compute, or a
            disk that cannot be written to.
    """
    check_keys(config)
    settings = cast(dict[str, object], OmegaConf.to_container(config, resolve=True))
    # Of whatever type they are: a mistake is on record as it was made.
    seed, device = (settings.get(key, None) for key in ("seed", "device"))
    record = RunRecord.create(
        folder,
        config=settings,
        overrides=overrides,
        seed=cast(int, seed),
        device=cast(str, device),
    )
    return carry_out(config, record)


def carry_out(config: DictConfig, record: RunRecord) -> Summary:
    """Attack what is not on record yet, and close the record, however that ends.

    Args:
        config: the configuration that the record was made for.
        record: a new one, or one that was reopened.

    Returns:
        The summary over all attacked images, whenever they were attacked.

    Raises:
        MedpflError: as `run`.
    """
    with _closing(record):
        experiment = build(config)
        record.note_device(describe_device(experiment.device))
        attack(experiment, record)
        summary = record.summarise()
        with record.writing():
            with experiment.profiler.phase("figures"):
                draw(record, experiment)
            write_profile(record.folder, experiment.profiler)
        record.finish(summary)
    say_how_it_ended(record, experiment, summary)
    return summary


@contextmanager
def _closing(record: RunRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        record.interrupt()
        say_interrupted(record)
        raise
    except BaseException as error:
        record.fail(error)
        raise


def attack(experiment: Experiment, record: RunRecord) -> None:
    """Attack every capture that is not on record, and put it there as it finishes."""
    e, source = experiment, experiment.source
    bounds = plan_bounds(e)
    announce(make_plan(e, record.folder, duration=longest_time(e), bounds=bounds.words))
    record.bounds_note = bounds.note
    record.plan(source.plan)
    record.described = source.describe()
    on_record = finished(source, record.victims())
    mean_image = e.data.mean_image()
    record.grading = grading = grading_of(e)
    waiting: dict[str, Capture] = {}
    left = [p for p in source.plan if p.capture_id not in on_record]
    before, successes = len(record.scores), 0
    forecast = Forecast(len(left))
    with progress(sum(p.images for p in left)) as shown:

        def follow(work: Work) -> None:
            forecast.follow(work)
            shown.pulse(forecast.where(), forecast.seconds_left())

        context = AttackContext(seed=e.seed, device=e.device, progress=follow, profiler=e.profiler)
        diary = RunDiary(
            record.folder,
            captured={planned.round for planned in source.plan},
            device=str(e.device),
            told=shown.pulse,
        )
        captures = e.profiler.drawn("client", source.captures(on_record, diary))
        for reconstruction in e.attack.reconstruct(observed(captures, waiting), context):
            capture = waiting.pop(reconstruction.capture_id)
            with e.profiler.phase("scoring"):
                judgement = e.scorer.judge(capture, reconstruction, mean_image, grading=grading)
            if e.bounds is not None:
                with e.profiler.phase("bounds"):
                    judgement = judgement.beside(e.bounds.bound(capture))
            with e.profiler.phase("writing"):
                record.add(capture, reconstruction, judgement)
            successes += sum(score.success for score in judgement.scores)
            if reconstruction.evaluations == 0:
                forecast.leave_out()
            shown.update(len(record.scores) - before, successes, forecast.seconds_left())


def observed(captures: Iterable[Capture], waiting: dict[str, Capture]) -> Iterator[Observation]:
    """Pass on what the attacker sees of each capture; the rest waits for the reconstruction.

    Args:
        captures: as they are made.
        waiting: where captures are put, by id.
    """
    for capture in captures:
        waiting[capture.capture_id] = capture
        yield capture.observation


def grading_of(experiment: Experiment) -> Grading | None:
    """Calibrate the grades on images spread over the attacked split, whichever are attacked.

    None where there are no others to tell an image from.
    """
    data = experiment.data
    if not data.has_others:
        return None
    with experiment.profiler.phase("scoring"):
        return calibrate(
            data.images.sample(line_up_size(data.spec.shape)),
            threshold=experiment.scorer.threshold,
            seed=experiment.seed,
        )

"""The end of a run: its figures, its table, and where everything is."""

from __future__ import annotations

from medpfl.experiment import Experiment
from medpfl.image_score import ImageScore
from medpfl.metrics import Summary
from medpfl.report.bound_figure import BoundedItem, bound_figure
from medpfl.report.console import make_console, paths, summary_table
from medpfl.report.diary import ROUNDS
from medpfl.report.figures import GalleryItem, TraceCurve, gallery, traces
from medpfl.report.leakage import FILE, leakage_by_round, leakage_table, norms_of, write_leakage
from medpfl.report.record import RunRecord, VictimRecord
from medpfl.report.recovery_figure import FILE as RECOVERY
from medpfl.report.recovery_figure import recovery_figure, write_recovery
from medpfl.report.rounds_figure import rounds_figure
from medpfl.report.rounds_file import RoundScore, read_rounds
from medpfl.report.run_folder import resume_command


def draw(record: RunRecord, experiment: Experiment) -> None:
    """Draw the gallery and the curves of a run into ``figures/``."""
    items, curves, bounded = [], [], list[BoundedItem]()
    several = len({score.round for score in record.scores}) > 1
    for victim in record.victims():
        items += [
            GalleryItem(
                f"round {score.round}: {score.image_id}" if several else score.image_id,
                original,
                reconstruction if score.matched else None,
                score.ssim,
                score.status,
                score.grade,
            )
            for original, reconstruction, score in zip(
                victim.originals, victim.reconstruction, victim.scores, strict=True
            )
        ]
        curve = None
        if victim.trace is not None and victim.ssim_trace is not None:
            curve = TraceCurve(victim.trace.steps, victim.trace.objective, victim.ssim_trace)
        curves.append(curve)
        bounded += _bounded(victim)
    synthetic, threshold = experiment.data.synthetic, experiment.scorer.threshold
    figures = record.folder / "figures"
    title = f"{experiment.attack.name} on {experiment.data.name}"
    gallery(figures / "gallery.png", items, title=title, synthetic=synthetic, threshold=threshold)
    if bounded:
        path = figures / "bounds.png"
        bound_figure(path, bounded, title=f"Bounds: {title}", synthetic=synthetic)
    if any(curves):
        path = figures / "traces.png"
        traces(path, curves, title=title, synthetic=synthetic, threshold=threshold)
    _draw_rounds(record, title=title, synthetic=synthetic, threshold=threshold)
    read_out = [score for score in record.scores if score.judged and score.readout]
    if read_out:
        write_recovery(record.folder, read_out)
        recovery_figure(figures / "recovery.png", read_out, title=title, synthetic=synthetic)


def _bounded(victim: VictimRecord) -> list[BoundedItem]:
    """Return the images of an update for the picture of bounds; none where it has none."""
    if victim.left is None:
        return []
    parts = zip(victim.original, victim.reconstruction, victim.left, victim.scores, strict=True)
    return [
        BoundedItem(
            score.image_id, original, reconstruction, left, score.mse, score.bounds["bound_mse"]
        )
        for original, reconstruction, left, score in parts
        if "bound_mse" in score.bounds and score.matched
    ]


def _draw_rounds(record: RunRecord, *, title: str, synthetic: bool, threshold: float) -> None:
    """Set what attacked rounds gave away against training, where there was any."""
    scores, rounds = _judged(record), _rounds(record)
    if not rounds and len({score.round for score in scores}) < 2:
        return
    write_leakage(record.folder, leakage_by_round(scores, rounds))
    ssim: dict[int, list[float]] = {}
    for score in scores:
        ssim.setdefault(score.round, []).append(score.ssim)
    rounds_figure(
        record.folder / "figures" / "rounds.png",
        rounds,
        title=title,
        threshold=threshold,
        ssim=ssim,
        gradient_norm=norms_of(scores),
        synthetic=synthetic,
    )


def _judged(record: RunRecord) -> list[ImageScore]:
    """Return the rows of images that are known: of others nobody can say that they leaked."""
    return [score for score in record.scores if score.judged]


def _rounds(record: RunRecord) -> tuple[RoundScore, ...]:
    path = record.folder / ROUNDS
    return read_rounds(path) if path.exists() else ()


def say_how_it_ended(record: RunRecord, experiment: Experiment, summary: Summary) -> None:
    """Print the table of a run and the paths of what it left."""
    summary_table(
        summary,
        synthetic=experiment.data.synthetic,
        threshold=experiment.scorer.threshold,
        ssim_per_image=[score.ssim for score in record.scores],
    )
    scores, rounds = _judged(record), _rounds(record)
    if rounds or len({score.round for score in scores}) > 1:
        out = make_console()
        out.print(leakage_table(leakage_by_round(scores, rounds)))
        out.print()
    named = {"folder": record.folder, "table": record.folder / "metrics.csv"}
    beside = (record.folder / name for name in (ROUNDS, FILE, RECOVERY))
    named |= {path.name: path for path in beside if path.exists()}
    figures = record.folder / "figures"
    named |= {f.stem: f for f in sorted(figures.glob("*.png"))}
    paths(named)


def say_interrupted(record: RunRecord) -> None:
    """Say what an interrupted run has kept."""
    make_console().print(f"\n  interrupted: {len(record.scores)} finished images are kept")
    paths({"folder": record.folder, "continue": resume_command(record.folder)})

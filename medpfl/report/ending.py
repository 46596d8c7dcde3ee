"""The end of a run: its figures, its table, and where everything is."""

from __future__ import annotations

from medpfl.experiment import Experiment
from medpfl.metrics import Summary
from medpfl.report.console import make_console, paths, summary_table
from medpfl.report.figures import GalleryItem, TraceCurve, gallery, traces
from medpfl.report.record import RunRecord
from medpfl.report.run_folder import resume_command


def draw(record: RunRecord, experiment: Experiment) -> None:
    """Draw the gallery and the curves of a run into ``figures/``."""
    items, curves = [], []
    for victim in record.victims():
        items += [
            GalleryItem(
                score.image_id, original, reconstruction, score.ssim, score.status, score.grade
            )
            for original, reconstruction, score in zip(
                victim.originals, victim.reconstruction, victim.scores, strict=True
            )
        ]
        curve = None
        if victim.trace is not None and victim.ssim_trace is not None:
            curve = TraceCurve(victim.trace.steps, victim.trace.objective, victim.ssim_trace)
        curves.append(curve)
    synthetic, threshold = experiment.data.synthetic, experiment.scorer.threshold
    figures = record.folder / "figures"
    title = f"{experiment.attack.name} on {experiment.data.name}"
    gallery(figures / "gallery.png", items, title=title, synthetic=synthetic, threshold=threshold)
    if any(curves):
        path = figures / "traces.png"
        traces(path, curves, title=title, synthetic=synthetic, threshold=threshold)


def say_how_it_ended(record: RunRecord, experiment: Experiment, summary: Summary) -> None:
    """Print the table of a run and the paths of what it left."""
    summary_table(
        summary,
        synthetic=experiment.data.synthetic,
        threshold=experiment.scorer.threshold,
        ssim_per_image=[score.ssim for score in record.scores],
    )
    figures = record.folder / "figures"
    named = {"folder": record.folder, "table": record.folder / "metrics.csv"}
    named |= {f.stem: f for f in sorted(figures.glob("*.png"))}
    paths(named)


def say_interrupted(record: RunRecord) -> None:
    """Say what an interrupted run has kept."""
    make_console().print(f"\n  interrupted: {len(record.scores)} finished images are kept")
    paths({"folder": record.folder, "continue": resume_command(record.folder)})

"""What a run says: the plan, the summary, the paths, an error.

Text looks the same on a terminal and in a pipe, less colour; paths are never wrapped or shortened,
so that they can be copied.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medpfl.outcomes import Grade
from medpfl.report.bound_words import in_words
from medpfl.report.palette import BAR_STYLE, ERROR_STYLE, WARNING_STYLE
from medpfl.report.progress import Progress, show_progress
from medpfl.report.readout_words import in_rows
from medpfl.report.tables import (
    format_number,
    format_percent,
    format_rate,
    format_seconds,
    format_value,
)
from medpfl.report.words import endings

if TYPE_CHECKING:
    from medpfl.metrics.success import DefenseSummary, Summary

SYNTHETIC = "SYNTHETIC DATA"
_MAX_WIDTH = 100
_HISTOGRAM_BINS = 10
_BLOCKS = " ▁▂▃▄▅▆▇█"
_BLOCKS_ASCII = " .:-=+*#@"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is about to run, in words.

    Args:
        attack: the attack's name.
        dataset: the dataset's name.
        source: where the images come from: a folder, a download or a generator.
        synthetic: whether the images are made up.
        model: the network's name.
        parameters: number of the network's parameters.
        defense: the defense in words, a line a part.
        noise: the noise in words, or None without noise.
        threat: the threat model in lines: what the server is, knows and is not given.
        device: where the attack runs.
        images: number of images to attack.
        batch_size: number of images behind one update.
        image_shape: ``(C, *S)`` of one image.
        notes: what a careful reader should know before believing the numbers.
        output: the run's folder.
        duration: how long it may take, where that is long.
        federation: who trains with whom, in lines, where that is not plain FedSGD.
        privacy: what the defense guarantees in words, or None without one.
        bounds: what is set beside the attack, or why not; None where that goes without saying.
    """

    attack: str
    dataset: str
    source: str
    synthetic: bool
    model: str
    parameters: int
    defense: str
    noise: str | None
    threat: tuple[str, ...]
    device: str
    images: int
    batch_size: int | str
    image_shape: tuple[int, ...]
    notes: tuple[str, ...]
    output: Path
    duration: str | None = None
    federation: tuple[str, ...] = ()
    privacy: str | None = None
    bounds: str | None = None


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on which text means itself: no markup, no emoji codes, no highlighting."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.width = min(console.width, _MAX_WIDTH)
    return console


def announce(plan: RunPlan, *, console: Console | None = None) -> None:
    """Say what is about to run, threat model included.

    Args:
        plan: what is about to run.
        console: where to say it; standard output by default.
    """
    out = console or make_console()
    shape = " x ".join(str(size) for size in plan.image_shape)
    facts = _facts()
    facts.add_row("attack", Text(plan.attack, style="bold"))
    facts.add_row("dataset", _dataset(plan.dataset, synthetic=plan.synthetic))
    facts.add_row("images", f"{plan.images} of shape {shape}, {plan.batch_size} behind each update")
    facts.add_row("model", f"{plan.model}, {plan.parameters:,} parameters")
    if plan.federation:
        facts.add_row("federation", "\n".join(plan.federation))
    facts.add_row("defense", plan.defense)
    facts.add_row("noise", plan.noise or "none")
    if plan.privacy is not None:
        facts.add_row("privacy", plan.privacy)
    if plan.bounds is not None:
        facts.add_row("bounds", plan.bounds)
    facts.add_row("threat", "\n".join(plan.threat))
    facts.add_row("device", plan.device)
    if plan.duration is not None:
        facts.add_row(Text("time", style=WARNING_STYLE), Text(plan.duration, style=WARNING_STYLE))
    for note in plan.notes:
        facts.add_row(Text("note", style="bold"), note)
    title = _title("medpfl", synthetic=plan.synthetic)
    out.print(Panel(facts, title=title, title_align="left", box=box.ROUNDED, padding=(0, 1)))
    paths({"source": plan.source, "output": plan.output}, console=out)


def progress(
    total: int, unit: str = "images", *, console: Console | None = None
) -> AbstractContextManager[Progress]:
    """Show how far long work has come: a bar on a terminal, plain lines elsewhere.

    Args:
        total: how many there are to finish.
        unit: what is counted, in the plural.
        console: where to show it; standard output by default.

    Returns:
        A context manager that gives the `Progress` to report to.
    """
    return show_progress(total, unit, console=console or make_console())


def summary_table(
    summary: Summary,
    *,
    synthetic: bool,
    threshold: float,
    ssim_per_image: Sequence[float] = (),
    console: Console | None = None,
) -> None:
    """Print a run's summary: every rate with its n, trivial guesses beside the results.

    Args:
        summary: the run's summary.
        synthetic: whether the images are made up.
        threshold: the SSIM from which a reconstruction counts as a success.
        ssim_per_image: the images' SSIM, for a histogram; none is drawn without them.
        console: where to print; standard output by default.
    """
    out = console or make_console()
    out.print()
    out.print(Text("  ") + _title("Summary", synthetic=synthetic))
    out.print(_rates(summary, threshold))
    if summary.n_judged:
        out.print(_quality(summary))
    if any(map(math.isfinite, ssim_per_image)):
        out.print(_histogram(ssim_per_image, ascii_only=not _has_unicode(out)))
    out.print()
    for sentence in summary.cautions:
        caution(sentence, console=out)
    if summary.cautions:
        out.print()


def caution(sentence: str, *, console: Console | None = None) -> None:
    """Print what keeps a number from saying what it seems to, wrapped below a mark.

    Args:
        sentence: without a full stop.
        console: where to print; standard output by default.
    """
    out = console or make_console()
    lines = Table.grid(padding=(0, 1))
    lines.add_row(Text("  !", style=WARNING_STYLE), Text(f"{sentence}."))
    out.print(lines)


def paths(named: Mapping[str, Path | str], *, console: Console | None = None) -> None:
    """Print where things are, a line each, unwrapped.

    Args:
        named: `{what: where}`, in the order of printing.
        console: where to print; standard output by default.
    """
    out = console or make_console()
    width = max(len(name) for name in named) if named else 0
    for name, path in named.items():
        line = Text("  ") + Text(name.ljust(width), style="dim") + Text(f"  {path}")
        out.print(line, soft_wrap=True)


def error(message: str, *, console: Console | None = None) -> None:
    """Print one error message for people, without a traceback.

    Args:
        message: what is wrong, where, and what to do; line breaks are kept.
        console: where to print; standard error by default.
    """
    out = console or make_console(stderr=True)
    prefix = "medpfl: error: "
    lines = [
        # Long words are paths and settings: whole, so that they can be copied.
        textwrap.fill(line, out.width, break_long_words=False, break_on_hyphens=False)
        for line in f"{prefix}{message.strip()}".splitlines()
    ]
    text = Text("\n".join(lines))
    text.stylize(ERROR_STYLE, 0, len(prefix) - 1)
    out.print(text, soft_wrap=True)


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _title(text: str, *, synthetic: bool) -> Text:
    title = Text(text, style="bold")
    return title + Text(f"  {SYNTHETIC}", style=WARNING_STYLE) if synthetic else title


def _dataset(name: str, *, synthetic: bool) -> Text:
    text = Text(name)
    return text.append("  SYNTHETIC: no patient's images", WARNING_STYLE) if synthetic else text


def _rates(summary: Summary, threshold: float) -> Table:
    zero, n = summary.zero_gradient_share, summary.n_judged
    table = _facts()
    if n:
        rate = format_rate(summary.asr, n, low=summary.asr_low, high=summary.asr_high)
        table.add_row(f"ASR (SSIM >= {threshold:g})", Text(rate, style="bold"))
    if summary.leaked is not None:
        table.add_row("at least recognisable", Text(_leaked(summary), style="bold"))
        table.add_row("grades", _grades(summary))
    if summary.n_identification:
        table.add_row("identified", _identified(summary))
    if n:
        table.add_row("ceiling", f"{format_percent(summary.asr_ceiling)}: {_ceiling(summary)}")
        table.add_row("zero gradient", format_rate(zero, n))
        table.add_row("labels right", format_rate(summary.label_accuracy, n))
    if n < summary.n:
        table.add_row("judged", f"{n} of {summary.n} images; nobody knows the others")
        table.add_row("objective", f"{format_value(summary.objective_median)} (median)")
        if not math.isnan(summary.unexplained_median):
            table.add_row("unexplained", _unexplained(summary))
        table.add_row("restarts", _restarts(summary))
        table.add_row("unjudged", endings(summary.unjudged))
    table.add_row("time", f"{format_seconds(summary.seconds_per_image)} an image")
    if summary.noise_scale_mean is not None:
        table.add_row("noise", _noise(summary))
    if summary.defense is not None:
        table.add_row("sent", _sent(summary.defense))
        if "refused" in summary.defense.means:
            table.add_row("inspection", _inspected(summary.defense.means))
        table.add_row("privacy", "\n".join(summary.defense.guarantee))
    if summary.bounds is not None:
        table.add_row("bounds", Text(in_words(summary.bounds), style="bold"))
    if summary.readout is not None:
        for name, told in in_rows(summary.readout).items():
            table.add_row(name, told)
    if n:
        table.add_row("ended", _ended(summary))
    return _indented(table)


def _leaked(summary: Summary) -> str:
    return format_rate(
        summary.leaked or 0.0, summary.n_judged, low=summary.leaked_low, high=summary.leaked_high
    )


def _grades(summary: Summary) -> str:
    """Return the images of every grade, what separates them, and the mean image's beside them."""
    s = summary
    counts = (f"{getattr(s, str(grade))} {grade}" for grade in Grade)
    return (
        f"{', '.join(counts)}\n"
        f"diagnostic from SSIM {format_number(s.diagnostic_from, 2)}; of {s.unrelated_pairs} "
        f"unrelated pairs 1 % exceed {format_number(s.unrelated_ssim, 2)}\n"
        f"recognisable: told from {s.others} other images; "
        f"so is the mean image of {format_percent(s.leaked_mean_image)}"
    )


def _identified(summary: Summary) -> str:
    """Return how often the original came first among the dataset's images, beside chance."""
    s = summary
    rate = format_rate(
        s.identification_top1 or 0.0,
        s.n_identification or 0,
        low=s.identification_top1_low,
        high=s.identification_top1_high,
    )
    by_chance = format_percent(s.identification_top1_chance)
    return (
        f"{rate}; by chance {by_chance}\n"
        f"mean reciprocal rank {format_number(s.identification_mrr)}; "
        f"by chance {format_number(s.identification_mrr_chance)}"
    )


def _noise(summary: Summary) -> str:
    scale = f"scale {summary.noise_scale_mean:.3g}"
    snr = summary.snr_db_mean
    return scale if snr is None else f"{scale}, signal-to-noise ratio {snr:.1f} dB"


def _unexplained(summary: Summary) -> str:
    left = format_value(summary.unexplained_median)
    return f"{left} (median) of what a blank image leaves of the objective"


def _restarts(summary: Summary) -> str:
    """Return how alike the two best restarts of an update are."""
    s = summary
    if not s.n_agreement:
        return "none to compare; attack.restarts=3 attack.restart_above=null makes some"
    over = _over(s.n_agreement, s.n)
    return f"alike to an SSIM of {format_number(s.agreement_median)} (median{over})"


def _sent(defense: DefenseSummary) -> str:
    """Return what a defended update costs and has left, as means."""
    means, words = defense.means, []
    if "expansion" in means:
        words.append(f"{means['bytes_sent']:,.0f} bytes a client and round")
        words.append(f"{format_number(means['expansion'])} times the plain update's")
        words.append(f"{format_seconds(means['aggregation_seconds'])} to add up a round")
        if means["entries_clipped"]:
            words.append(f"{means['entries_clipped']:,.0f} entries a round cut to clip_range")
    elif "bytes_sent" in means:
        words.append(f"{means['bytes_sent']:,.0f} bytes an update")
    if means.get("share_sent", 1.0) < 1:
        words.append(f"{format_percent(means['share_sent'])} of its entries")
    if "clip_factor" in means:
        words.append(f"clipped to {format_percent(means['clip_factor'])} of its norm")
    return ", ".join(words) or "the whole update"


def _inspected(means: Mapping[str, float]) -> str:
    """Return what clients made of the models that they were sent."""
    if not means["alarms"]:
        return "nothing found in the models that clients were sent"
    found = f"{format_number(means['alarms'], 2)} alarms a model (medpfl-inspect names them)"
    return f"{found}; {format_percent(means['refused'])} refused, of which zeros stand here"


def _ended(summary: Summary) -> str:
    """Return how the attacks ended that did not reach the threshold; the others have."""
    others = sum(summary.unsolved.values())
    solved = summary.n_judged - others
    if not others:
        return f"all {solved} reached the threshold"
    reached = f"{solved} reached the threshold; the others: " if solved else ""
    return f"{reached}{endings(summary.unsolved)}"


def _ceiling(summary: Summary) -> str:
    if summary.asr > summary.asr_ceiling:
        return "passed; it holds where gradients are squared in float32"
    return "the images with a gradient"


def _quality(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    n = summary.n_judged
    table.add_column(f"mean of {n} images", style="dim", overflow="fold")
    for heading in ("reconstructions", "all zeros", "mean image"):
        table.add_column(heading, justify="right", no_wrap=True)
    s = summary
    table.add_row("SSIM", *_cells(3, s.ssim_mean, s.ssim_zeros_mean, s.ssim_mean_image_mean))
    table.add_row("SSIM, median", *_cells(3, s.ssim_median))
    if s.n_ssim_paper:
        published = f"SSIM as published{_over(s.n_ssim_paper, n)}"
        table.add_row(published, *_cells(3, s.ssim_paper_mean))
    table.add_row("MSE", *_cells(4, s.mse_mean, s.mse_zeros_mean, s.mse_mean_image_mean))
    if n > s.n_exact:
        table.add_row(f"PSNR (dB){_over(n - s.n_exact, n)}", *_cells(1, s.psnr_db_mean))
    for name, own in s.measures.items():
        means = (own.mean, own.zeros_mean, own.mean_image_mean)
        table.add_row(f"{name}{_over(own.n, n)}", *map(format_value, means))
    return table


def _over(counted: int, n: int) -> str:
    return "" if counted == n else f", over {counted} of {n}"


def _cells(digits: int, *values: float) -> list[str]:
    return [format_number(value, digits) for value in values]


def _histogram(values: Sequence[float], *, ascii_only: bool) -> RenderableType:
    """Return ten bins over [0, 1] as block characters; negative SSIM falls in the first bin."""
    finite = [value for value in values if math.isfinite(value)]
    bins = Counter(min(max(int(v * _HISTOGRAM_BINS), 0), _HISTOGRAM_BINS - 1) for v in finite)
    counts = [bins[index] for index in range(_HISTOGRAM_BINS)]
    blocks = _BLOCKS_ASCII if ascii_only else _BLOCKS
    # Ceiling: a bin with one image must not look empty.
    heights = [math.ceil(8 * count / max(max(counts), 1)) for count in counts]
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    for _ in counts:
        table.add_column(justify="right", no_wrap=True, min_width=4)
    table.add_row("SSIM", *(Text(blocks[height] * 4, style=BAR_STYLE) for height in heights))
    table.add_row("images", *(str(count) for count in counts))
    table.add_row("from", *(f"{index / _HISTOGRAM_BINS:.1f}" for index in range(_HISTOGRAM_BINS)))
    return _indented(table)


def _indented(renderable: RenderableType) -> Table:
    table = Table.grid()
    table.add_row("  ", renderable)
    return table


def _has_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")

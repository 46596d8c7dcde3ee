"""The frontier as a table: a line a point, for readers, for scripts and on the screen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from medpfl.paper.frontier.choice import Verdict, cheapest, dominating, verdict
from medpfl.paper.frontier.points import Leakage, Point
from medpfl.paper.results import Estimate
from medpfl.report.palette import WARNING_STYLE
from medpfl.report.tables import MISSING, format_number, format_value

HEADER = (
    *("defense", "setting", "balanced accuracy %", "AUC"),
    *("ASR %, naive", "ASR %, adaptive", "SSIM, naive", "SSIM, adaptive"),
    *("first of k %, naive", "first of k %, adaptive", "MRR, naive", "MRR, adaptive"),
    *("out of steps", "bound", "epsilon", "bytes", "images are", "dominated by"),
)
NOTE = (
    "Balanced accuracy and AUC: of the global model after the last round of training under this "
    "very defense, the seeds' mean and their lowest and highest. Leakage: over the attacked "
    "images of all seeds and attacked rounds, with 95 % intervals (Wilson for rates, bootstrap "
    "for means). Naive: the attacker takes the update for an undefended one; adaptive: it knows "
    "the defense and its settings. First of k: how often the original comes first among the "
    "images of the dataset, by likeness to the reconstruction; MRR: the mean reciprocal rank. Both "
    "are at chance where no interval lies above what a guess reaches. Safe: under both attackers "
    "ASR is under 5 % and identification at chance, the ASR's whole interval: that takes 0 of 74 "
    "images; perhaps safe: where only the rate is. Bound: what no attack exceeds, where known. "
    "Epsilon: where it is a theorem. Out of steps: images, of both attackers, whose attack was cut "
    "short below the threshold, not beaten. Dominated: another point is no worse in accuracy, ASR "
    "and MRR, and better in one, by their means."
)


def lines(points: Sequence[Point]) -> list[list[str]]:
    """Return the table's cells, a line a point."""
    return [_line(point, points) for point in points]


def answer(points: Sequence[Point]) -> str:
    """Return in words what the cheapest safe defense is, and what keeps it from being one."""
    guessed = max((a.guessed for p in points for a in p.attacks), default=0.0)
    if not guessed:
        return _answer(points)
    return (
        f"{_answer(points)} The mean image alone reaches an SSIM of 0.9 for {100 * guessed:.0f} % "
        "of the images: go by identification, not by ASR."
    )


def _answer(points: Sequence[Point]) -> str:
    """Return what the cheapest safe defense is, or that there is none."""
    if not any(verdict(point) is not Verdict.UNKNOWN for point in points):
        return "No point was attacked by both attackers: nothing can be said."
    best = cheapest(points)
    if best is None:
        return "Nothing here keeps ASR under 5 % and identification at chance."
    undefended = [p.accuracy.value for p in points if p.defense == "none"]
    cost = ""
    if undefended and math.isfinite(undefended[0]):
        lost = 100 * (undefended[0] - best.accuracy.value)
        cost = f", {abs(lost):.1f} points {'below' if lost >= 0 else 'above'} no defense"
    sure = (
        ""
        if verdict(best) is Verdict.SAFE
        else (" The images are too few to be sure of the 5 %: raise n_images.")
    )
    if any(attack.cut_short for attack in best.attacks):
        sure += (
            f" The attacks ran out of steps on {_cut_short(best)} images there: they were cut "
            "short, not beaten."
        )
    return (
        f"Cheapest that keeps ASR under 5 % and identification at chance: {called(best)}, at a "
        f"balanced accuracy of {100 * best.accuracy.value:.1f} %{cost}.{sure}"
    )


def called(point: Point) -> str:
    """Return a point's name for readers."""
    named = point.defense != "none" and point.setting
    return f"{point.defense} ({point.setting})" if named else point.defense


def records(dataset: str, points: Sequence[Point]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of a table for scripts: each number in a column of its own."""
    rows = [_record(dataset, point, points) for point in points]
    return list(rows[0]) if rows else ["dataset"], [list(row.values()) for row in rows]


def screen(title: str, points: Sequence[Point]) -> Table:
    """Return the table for a console of 80 columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("defense", overflow="fold")
    table.add_column("setting", overflow="fold")
    for heading in ("accuracy", "ASR %", "know", "first %", "know"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("images are", overflow="fold")
    best = cheapest(points)
    for point in points:
        worse = dominating(point, points) is not None
        cells = [
            *(point.defense, point.setting, format_number(100 * point.accuracy.value, 1)),
            *(_percent(a, "asr") for a in (point.naive, point.adaptive)),
            *(_percent(a, "top1") for a in (point.naive, point.adaptive)),
        ]
        style = "bold" if point is best else "dim" if worse else None
        judged = verdict(point)
        marked = Text(str(judged), style=WARNING_STYLE if judged is Verdict.LEAKS else "")
        table.add_row(*cells, marked, style=style)
    return table


def _line(point: Point, points: Sequence[Point]) -> list[str]:
    pair = (point.naive, point.adaptive)
    other = dominating(point, points)
    return [
        point.defense,
        point.setting,
        point.accuracy.text(1, percent=True),
        point.auc.text(3),
        *_texts((None if a is None else a.asr for a in pair), 1, percent=True),
        *_texts((None if a is None else a.ssim for a in pair), 3),
        *_texts((None if a is None else a.top1 for a in pair), 1, percent=True),
        *(_mrr(a) for a in pair),
        _cut_short(point),
        _bound(point),
        _epsilon(point.epsilon),
        MISSING if math.isnan(point.bytes_sent) else f"{point.bytes_sent:,.0f}",
        str(verdict(point)),
        "" if other is None else called(other),
    ]


def _texts(found: Iterable[Estimate | None], digits: int, *, percent: bool = False) -> list[str]:
    return [MISSING if one is None else one.text(digits, percent=percent) for one in found]


def _mrr(attack: Leakage | None) -> str:
    found = None if attack is None else attack.identification
    if found is None:
        return MISSING
    interval = Estimate(found.mrr, found.mrr_low, found.mrr_high, found.n).text(3)
    return f"{interval}; chance {found.mrr_chance:.3f}"


def _cut_short(point: Point) -> str:
    return f"{sum(a.cut_short for a in point.attacks)} of {sum(a.asr.n for a in point.attacks)}"


def _bound(point: Point) -> str:
    words = []
    bounds = [a.bound_psnr_db for a in point.attacks if a.bound_psnr_db.n]
    if bounds:
        words.append(f"PSNR at most {bounds[-1].text(1)} dB")
    if point.rero is not None:
        words.append(f"ReRo {point.rero:.3f}")
    return ", ".join(words) or "none"


def _epsilon(value: float | None) -> str:
    if value is None:
        return "none"
    return format_value(value) if math.isfinite(value) else "infinite"


def _percent(attack: Leakage | None, name: str) -> str:
    return MISSING if attack is None else format_number(100 * getattr(attack, name).value, 0)


def _record(dataset: str, point: Point, points: Sequence[Point]) -> dict[str, object]:
    other = dominating(point, points)
    row: dict[str, object] = {
        "dataset": dataset,
        "point": point.name,
        "defense": point.defense,
        "setting": point.setting,
        **_columns("balanced_accuracy", point.accuracy),
        **_columns("auc", point.auc),
    }
    for kind, attack in (("naive", point.naive), ("adaptive", point.adaptive)):
        nothing = Estimate(math.nan, math.nan, math.nan, 0)
        for name in ("asr", "ssim", "top1", "psnr_db", "bound_psnr_db"):
            found = nothing if attack is None else getattr(attack, name)
            row |= _columns(f"{kind}_{name}", found)
        ranked = None if attack is None else attack.identification
        for name in ("mrr", "mrr_low", "mrr_high", "mrr_chance", "top1_chance"):
            row[f"{kind}_{name}"] = None if ranked is None else getattr(ranked, name)
        row[f"{kind}_cut_short"] = None if attack is None else attack.cut_short
        row[f"{kind}_attacker"] = None if attack is None else attack.attacker
    return {
        **row,
        "epsilon": point.epsilon,
        "rero": point.rero,
        "bytes_sent": point.bytes_sent,
        "verdict": str(verdict(point)),
        "dominated_by": None if other is None else other.name,
        "cheapest": point is cheapest(points),
    }


def _columns(name: str, found: Estimate) -> dict[str, object]:
    return {
        name: found.value,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        f"{name}_n": found.n,
    }

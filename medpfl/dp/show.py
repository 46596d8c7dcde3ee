"""An answer as people and as scripts read it."""

from __future__ import annotations

import math
import sys

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medpfl.dp.answers import Answer, Cost
from medpfl.report._strict_json import dumps, spell
from medpfl.report.console import caution, make_console
from medpfl.report.palette import WARNING_STYLE

_HIDDEN = {"add_remove": "more or less", "replace": "for another"}
_ACCOUNTANTS = {"exact": "PLD, exact", "pld": "PLD", "pure": "pure", "none": "epsilon"}


def show(found: Answer) -> None:
    """Print an answer for people."""
    out = make_console()
    facts = _grid()
    for name, text in found.what.items():
        facts.add_row(name, text)
    out.print(Panel(facts, title="medpfl-dp", title_align="left", box=box.ROUNDED, padding=(0, 1)))
    out.print()
    if found.claimed is not None:
        line = _grid()
        line.add_row("  claimed", f"epsilon {found.claimed:g} {found.claimed_words}")
        out.print(line)
    out.print(_costs(found))
    out.print()
    line = _grid()
    line.add_row("  reconstruction", Text(_rero(found), style="bold"))
    line.add_row("", _chance(found))
    if found.unbiased_mse is not None:
        line.add_row("  pixels", _error(found.unbiased_mse))
    out.print(line)
    out.print()
    if found.why is not None:
        caution(f"epsilon is infinite: {found.why}", console=out)
    for note in found.notes:
        caution(note, console=out)


def show_json(found: Answer) -> None:
    """Print an answer for scripts: strict JSON, an infinity as the text ``inf``."""
    total = found.costs[-1]
    record = {
        "epsilon": total.pld,
        "delta": found.delta,
        "accountant": found.accountant,
        "neighbours": total.neighbours,
        "epsilon_rdp": total.rdp,
        "claimed_epsilon": found.claimed,
        "unit": found.unit,
        "candidates": found.candidates,
        "kappa": 1 / found.candidates,
        "rero": found.rero,
        "unbiased_mse": found.unbiased_mse,
        "why": found.why,
        "notes": list(found.notes),
        **found.settings,
        "costs": [
            {"releases": c.releases, "neighbours": c.neighbours, "epsilon": c.pld, "rdp": c.rdp}
            for c in found.costs
        ],
    }
    sys.stdout.write(dumps(spell(record)))


def _costs(found: Answer) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("epsilon hides", style="dim", overflow="fold")
    table.add_column("of", overflow="fold")
    table.add_column(_ACCOUNTANTS[found.accountant], justify="right", no_wrap=True)
    renyi = any(cost.rdp is not None for cost in found.costs) and found.why is None
    if renyi:
        table.add_column("RDP", justify="right", no_wrap=True)
    for cost in found.costs:
        row = [_hidden(cost, found.unit), cost.words]
        numbers = [Text(_number(cost.pld), style=_style(cost))]
        table.add_row(*row, *numbers, *([_number(cost.rdp)] if renyi else []))
    if found.delta:
        table.caption = f"at delta {found.delta:.5g}"
        table.caption_justify = "left"
        table.caption_style = "dim"
    return table


def _hidden(cost: Cost, unit: str) -> str:
    return "nothing" if cost.neighbours is None else f"one {unit} {_HIDDEN[cost.neighbours]}"


def _style(cost: Cost) -> str:
    return "bold" if math.isfinite(cost.pld) else WARNING_STYLE


def _number(epsilon: float | None) -> str:
    if epsilon is None:
        return "not known"
    if math.isinf(epsilon):
        return "infinite"
    return f"{epsilon:.3f}" if epsilon < 100 else f"{epsilon:,.1f}"


def _rero(found: Answer) -> str:
    one_of = f"the right one of {found.candidates:,} candidates"
    if found.rero >= 1:
        return f"no bound: nothing keeps an attacker from finding {one_of}"
    bound = f"{found.rero:.3f}" if found.rero >= 0.1 else f"{found.rero:.3g}"
    return f"{one_of} is found with probability at most {bound}"


def _chance(found: Answer) -> str:
    return f"whatever else the attacker knows; a guess has {1 / found.candidates:.3g}"


def _error(mse: float) -> str:
    return (
        "an unbiased attacker (without a prior) misses them by a mean squared error of at least "
        f"{mse:.3g} (pixels in [0, 1])"
    )


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table

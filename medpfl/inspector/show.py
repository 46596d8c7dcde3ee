"""Verdicts as people and as scripts read them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from medpfl.inspection.verdict import Finding
from medpfl.inspector.answers import Answer
from medpfl.report._strict_json import dumps, spell
from medpfl.report.console import caution, make_console
from medpfl.report.palette import ERROR_STYLE, WARNING_STYLE


def show(answers: Sequence[Answer]) -> None:
    """Print verdicts for people."""
    out = make_console()
    for answer in answers:
        style = ERROR_STYLE if answer.verdict.suspicious else "bold"
        out.print(Text(_in_words(answer), style=style) + Text(f"  {answer.name}"), soft_wrap=True)
        agreed = "" if answer.agreed is None else _agreed(answer)
        out.print(Text(f"{answer.parameters:,} parameters; architecture {answer.hash}{agreed}"))
        if answer.verdict.findings:
            out.print(_table(answer.verdict.findings))
        for why in dict.fromkeys(finding.why for finding in answer.verdict.findings):
            caution(why, console=out)


def show_json(answers: Sequence[Answer]) -> None:
    """Print verdicts for scripts: strict JSON, ``models`` in their order."""
    record = {
        "suspicious": any(answer.verdict.suspicious for answer in answers),
        "models": [
            {
                "name": answer.name,
                "suspicious": answer.verdict.suspicious,
                "parameters": answer.parameters,
                "hash": answer.hash,
                "agreed": answer.agreed,
                "findings": [vars(finding) for finding in answer.verdict.findings],
            }
            for answer in answers
        ],
    }
    sys.stdout.write(dumps(spell(record)))


def show_hashes(hashes: Mapping[str, str], *, as_json: bool) -> None:
    """Print the hashes of architectures, a line each: the hash, then the model."""
    if as_json:
        sys.stdout.write(dumps(dict(hashes)))
        return
    for name, value in hashes.items():
        make_console().print(f"{value}  {name}", soft_wrap=True)


def _in_words(answer: Answer) -> str:
    if answer.verdict.suspicious:
        return "suspicious"
    return "nothing found" if not answer.verdict.findings else "nothing suspicious"


def _agreed(answer: Answer) -> str:
    return ", the one agreed on" if answer.agreed == answer.hash else ", NOT the one agreed on"


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("finding", "where", "measured", "from"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        style = WARNING_STYLE if finding.weight == "alarm" else "dim"
        head = Text(finding.check.replace("_", " "), style=style)
        if finding.weight == "note":
            head += Text(" (note)", style="dim")
        cells = (finding.where, _numbers(finding.measured), _numbers(finding.threshold))
        table.add_row(head, *cells)
    return table


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())

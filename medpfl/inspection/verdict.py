"""What an inspection finds, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weight = Literal["alarm", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a model that a client should know.

    Args:
        check: the check that found it, by its name.
        weight: ``alarm``: honest models do not have it; ``note``: some do.
        where: the parameter, or parameters.
        measured: what was measured, by name.
        threshold: from which value on it is a finding, by the names of what was measured.
        why: what it lets a server do, in a sentence without a full stop.
    """

    check: str
    weight: Weight
    where: str
    measured: dict[str, float]
    threshold: dict[str, float]
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All that was found in a model.

    Args:
        findings: in the order of the checks.
    """

    findings: tuple[Finding, ...] = ()

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that honest models do not have."""
        return tuple(finding for finding in self.findings if finding.weight == "alarm")

    @property
    def suspicious(self) -> bool:
        """Whether a client should not train this model."""
        return bool(self.alarms)

    def joined(self, other: Verdict) -> Verdict:
        """Return what both have found."""
        return Verdict(findings=(*self.findings, *other.findings))

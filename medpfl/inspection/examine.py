"""All checks of a model, one after the other."""

from __future__ import annotations

from medpfl.inspection import agreed as agreement
from medpfl.inspection import balanced, blank, kernels, numbers, paired, repeated, wide
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Verdict

CHECKS = (numbers, wide, repeated, blank, paired, balanced, kernels)
"""In the order in which findings are told; each a file with a `NAME` and a `check`."""


def examine(received: Received, agreed: str | None = None) -> Verdict:
    """Look for what a malicious server plants.

    Args:
        received: the model; not changed.
        agreed: the hash of the architecture agreed on, or None.

    Returns:
        What was found. Where numbers are not finite, nothing else is looked at.
    """
    findings = [] if agreed is None else list(agreement.check(received, agreed))
    odd = list(numbers.check(received))
    if any("not_finite" in finding.measured for finding in odd):
        return Verdict(findings=(*findings, *odd))
    rest = [one for check in CHECKS[1:] for one in check.check(received)]
    return Verdict(findings=(*findings, *odd, *rest))

"""Look at the received model before training it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from medpfl.defenses.base import Inspected
from medpfl.errors import ConfigurationError
from medpfl.inspection.agreed import check_hash
from medpfl.inspection.examine import examine
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Verdict
from medpfl.settings.hints import checked
from medpfl.types import DataSpec, DefenseFacts, ServerPayload


@dataclass(frozen=True, kw_only=True)
class InspectFacts(DefenseFacts):
    """What is public of `Inspect`; see there."""

    action: str


@checked("defense.inspect")
@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Refuse models that show what malicious servers plant.

    Args:
        action: ``refuse``: of a suspicious model the client sends nothing, in a simulation an
            update of zeros; ``flag``: it is counted, and trained.
        agreed: the hash of the architecture agreed on, as ``medpfl-inspect --hash`` prints it; null
            where nothing was agreed on.
    """

    name: ClassVar[str] = "inspect"

    action: Literal["refuse", "flag"] = "refuse"
    agreed: str | None = None
    _last: _Last = field(default_factory=lambda: _Last(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.action not in ("refuse", "flag"):
            raise ConfigurationError(f"defense.inspect.action={self.action}: choose refuse or flag")
        if self.agreed is not None:
            check_hash(self.agreed, "defense.inspect.agreed")

    def describe(self) -> str | None:
        """See `Part.describe`."""
        what = "sends nothing of" if self.action == "refuse" else "counts"
        agreed = "" if self.agreed is None else f", or is not {self.agreed[:12]}..."
        return f"{what} a model that shows planted rows, weights or layers{agreed}"

    def facts(self) -> DefenseFacts:
        """See `Public.facts`."""
        return InspectFacts(name=self.name, action=self.action)

    def inspect(self, payload: ServerPayload, spec: DataSpec) -> Inspected:
        """See `InspectingDefense.inspect`; clients that were sent the same model look once."""
        if self._last.payload is not payload or self._last.verdict is None:
            received = Received.of_payload(payload, spec.shape)
            self._last.payload, self._last.verdict = payload, examine(received, self.agreed)
        verdict = self._last.verdict
        refused = self.action == "refuse" and verdict.suspicious
        return Inspected(alarms=len(verdict.alarms), refused=refused)


@dataclass
class _Last:
    """The last model that was looked at, and what was found."""

    payload: ServerPayload | None = None
    verdict: Verdict | None = None

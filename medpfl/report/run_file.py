"""``run.json``: what a run is, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from medpfl._atomic import create_text, write_text
from medpfl.metrics.success import Summary
from medpfl.report import _provenance, _strict_json
from medpfl.report.jobs import read_record

RunStatus = Literal["running", "complete", "interrupted", "failed"]

_OF_THE_END = ("status", "error", "seconds", "summary")


class RunFile:
    """The ``run.json`` of a run, rewritten as a whole whenever something changes.

    Args:
        path: the file.
        facts: what does not depend on how the run goes.
        seconds: what the run took before it was resumed.
    """

    def __init__(self, path: Path, facts: Mapping[str, object], *, seconds: float = 0.0) -> None:
        self.path = path
        self._facts = dict(facts)
        self._seconds = seconds
        self._began = time.perf_counter()

    @classmethod
    def of_new_run(
        cls,
        path: Path,
        *,
        config: Mapping[str, object],
        overrides: Sequence[str],
        seed: int,
        device: str | None,
        restored: bool = False,
    ) -> RunFile:
        """Collect what is to be known of a run; `create` writes it.

        Args:
            path: the file.
            config: the full configuration, resolved to plain values.
            overrides: what the command line changed.
            seed: the run's seed.
            device: what the run computes on, in words; None until it is known.
            restored: the file takes the place of one that was lost, beside finished images.
        """
        return cls(
            path,
            {
                # Infinite settings are spelled: with null, the run could not be continued.
                "config": _strict_json.spell(config),
                "overrides": list(overrides),
                "seed": seed,
                "device": device,
                "versions": _provenance.versions(),
                "commit": _provenance.commit(),
                "started": _now(),
                **({"restored": _now()} if restored else {}),
            },
        )

    @classmethod
    def of_old_run(cls, path: Path) -> RunFile:
        """Take over what is known of a run that goes on now; ``resumed`` lists every such time.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a run's.
        """
        kept = read_record(path.parent)
        facts = {key: value for key, value in kept.items() if key not in _OF_THE_END}
        facts["resumed"] = [*(kept.get("resumed") or ()), _now()]
        return cls(path, facts, seconds=float(kept.get("seconds") or 0.0))

    def create(self) -> None:
        """Write the file of a run that begins.

        Raises:
            FileExistsError: there is one.
            OSError: it cannot be written.
        """
        create_text(self.path, self._text("running"))

    def note_device(self, device: str) -> None:
        """Change the device, from the next `write` on."""
        self._facts["device"] = device

    def write(
        self,
        status: RunStatus,
        *,
        error: Mapping[str, str] | None = None,
        summary: Summary | None = None,
    ) -> None:
        """Write how the run stands.

        Raises:
            OSError: the file cannot be written; the one that was there stays.
        """
        write_text(self.path, self._text(status, error, summary))

    def _text(
        self,
        status: RunStatus,
        error: Mapping[str, str] | None = None,
        summary: Summary | None = None,
    ) -> str:
        content = {
            "status": status,
            "error": error,
            **self._facts,
            "seconds": self._seconds + time.perf_counter() - self._began,
            "summary": None if summary is None else _written(summary),
        }
        return _strict_json.dumps(content)


def _written(summary: Summary) -> dict[str, object]:
    """Return a summary as plain values; an infinite epsilon is no unknown one, and is spelled."""
    plain = asdict(summary)
    return {**plain, "epsilon": _strict_json.spell(plain["epsilon"])}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What a run leaves behind, on disk from the first victim on."""

from __future__ import annotations

import csv
import io
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from torch import Tensor

from medpfl.errors import MedpflError
from medpfl.metrics.matching import match
from medpfl.metrics.success import Summary, summarise
from medpfl.report import _provenance, _strict_json
from medpfl.report._atomic import claim, make_private_folder, replacing, write_text
from medpfl.report.panels import draw_panels
from medpfl.report.victim_file import VictimRecord, load_victim, safe_name, save_victim
from medpfl.types import ImageScore, Reconstruction, VictimBatch

__all__ = ["COLUMNS", "RunRecord", "VictimRecord", "load_victim"]

COLUMNS = tuple(field.name for field in fields(ImageScore))
"""The columns of ``metrics.csv``, in order."""

RunStatus = Literal["running", "complete", "interrupted", "failed"]

_SECONDS_BETWEEN_TABLES = 2.0
_log = logging.getLogger(__name__)


class RunRecord:
    """The folder of one run: ``run.json``, ``metrics.csv``, ``reconstructions/``, ``figures/``.

    Only its owner can read it: reconstructions are patients' images. Each file is there whole or
    not at all, so a run that ends anyhow leaves every finished victim readable.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        self.folder = folder
        self._facts = dict(facts)
        self._began = time.perf_counter()
        self._scores: list[ImageScore] = []
        self._planned: dict[str, int] = {}
        self._victims: list[tuple[str, Path]] = []
        self._table_written = -float("inf")

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        config: Mapping[str, object],
        overrides: Sequence[str],
        seed: int,
        device: str | None = None,
    ) -> RunRecord:
        """Start the record of a run: make the folder and write ``run.json``, status running.

        Args:
            folder: where to write; made if missing, and closed to others.
            config: the full configuration, resolved to plain values.
            overrides: what the command line changed.
            seed: the run's seed.
            device: what the run computes on, in words; None until `note_device` says.

        Raises:
            MedpflError: the folder holds a run already, or cannot be written to.
        """
        try:
            make_private_folder(folder)
            claim(folder / "run.json")
            for name in ("reconstructions", "figures"):
                make_private_folder(folder / name)
        except FileExistsError as error:
            raise _occupied(folder) from error
        except OSError as error:
            raise _unwritable(folder, error) from error
        record = cls(
            folder,
            {
                "config": config,
                "overrides": list(overrides),
                "seed": seed,
                "device": device,
                "versions": _provenance.versions(),
                "commit": _provenance.commit(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        record._write_run("running")
        return record

    @property
    def scores(self) -> list[ImageScore]:
        """The rows so far: in the planned order where one is known, then as they arrived."""
        return sorted(self._scores, key=lambda score: self._place(score.image_id))

    def victims(self) -> Iterator[VictimRecord]:
        """Read the recorded victims back one at a time, in the order of `scores`."""
        for _, path in sorted(self._victims, key=lambda victim: self._place(victim[0])):
            yield load_victim(path)

    def plan(self, image_ids: Sequence[str]) -> None:
        """Fix the order of the rows, whatever order the victims finish in."""
        self._planned = {image_id: place for place, image_id in enumerate(image_ids)}

    def note_device(self, device: object) -> None:
        """Put what the run computes on into ``run.json``.

        Raises:
            MedpflError: the file cannot be written.
        """
        self._facts["device"] = str(device)
        self._write_run("running")

    def add(
        self,
        victim: VictimBatch,
        reconstruction: Reconstruction,
        scores: tuple[ImageScore, ...],
        ssim_trace: Tensor | None,
    ) -> None:
        """Put one finished victim on disk: a PNG an image, then the arrays.

        Args:
            victim: the truth.
            reconstruction: what the attacker handed in, in any order.
            scores: one row for each of the victim's images.
            ssim_trace: `(T,)` mean SSIM at the steps of the reconstruction's trace, or None.

        Raises:
            MedpflError: the files cannot be written, for instance on a full disk; the victims
                before this one stay as they are.
            ValueError: a victim of this id is recorded already.
        """
        arrays = self._path(reconstruction.victim_id, ".npz")
        if arrays.exists():
            raise ValueError(f"victim {reconstruction.victim_id!r} is recorded already: {arrays}")
        kept = _in_order(victim, reconstruction, scores, ssim_trace)
        with self._writing():
            self._draw(reconstruction.victim_id, kept)
            save_victim(arrays, kept)
            self._victims.append((scores[0].image_id, arrays))
            self._scores.extend(scores)
            if time.monotonic() - self._table_written >= _SECONDS_BETWEEN_TABLES:
                self._write_table()

    def finish(self, summary: Summary | None) -> None:
        """Close the record of a run that went to its end.

        Raises:
            MedpflError: the files cannot be written.
        """
        self._write_table()
        self._write_run("complete", summary=summary)

    def interrupt(self) -> None:
        """Close the record of a run that the user stopped, with a summary of what there is.

        Raises:
            MedpflError: the files cannot be written.
        """
        self._write_table()
        self._write_run("interrupted", summary=summarise(self.scores) if self._scores else None)

    def fail(self, error: BaseException) -> None:
        """Close the record of a run that an error ended; what is written stays.

        A disk that refuses even this is logged, not raised: it must not hide the error itself.
        """
        description = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        try:
            self._write_run("failed", error=description)
            self._write_table()
        except MedpflError as second:
            _log.error("The failure could not be recorded: %s", second)

    def _place(self, image_id: str) -> int:
        return self._planned.get(image_id, len(self._planned))

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / "reconstructions" / f"{safe_name(name)}{suffix}"

    def _draw(self, victim_id: str, kept: VictimRecord) -> None:
        alone = len(kept.scores) == 1
        pairs = zip(kept.original, kept.reconstruction, kept.scores, strict=True)
        for original, reconstruction, score in pairs:
            name = victim_id if alone else f"{victim_id}/{score.image_id}"
            sheet = draw_panels(original, reconstruction, score)
            with replacing(self._path(name, ".png")) as file:
                sheet.save(file, format="PNG", compress_level=1)

    def _write_table(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(astuple(score) for score in self.scores)
        with self._writing():
            write_text(self.folder / "metrics.csv", text.getvalue())
        self._table_written = time.monotonic()

    def _write_run(
        self,
        status: RunStatus,
        *,
        error: Mapping[str, str] | None = None,
        summary: Summary | None = None,
    ) -> None:
        content = {
            "status": status,
            "error": error,
            **self._facts,
            "seconds": time.perf_counter() - self._began,
            "summary": None if summary is None else asdict(summary),
        }
        with self._writing():
            write_text(self.folder / "run.json", _strict_json.dumps(content))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MedpflError(
                f"Cannot write to {self.folder}: {error.strerror or error}. "
                f"The {len(self._scores)} images recorded so far are safe there: "
                "free some space or mend the disk, then run again into a new folder."
            ) from error


def _in_order(
    victim: VictimBatch,
    reconstruction: Reconstruction,
    scores: tuple[ImageScore, ...],
    ssim_trace: Tensor | None,
) -> VictimRecord:
    """Put the reconstructions in the order of the originals, as the scores are."""
    order = match(victim.inputs, reconstruction.inputs)
    trace = reconstruction.trace
    return VictimRecord(
        original=victim.inputs.detach().cpu(),
        reconstruction=reconstruction.inputs.detach().cpu()[order],
        scores=scores,
        trace=None if trace is None else replace(trace, inputs=trace.inputs.cpu()[:, order]),
        ssim_trace=ssim_trace,
    )


def _occupied(folder: Path) -> MedpflError:
    return MedpflError(
        f"{folder} already holds a run (run.json), or is a file: nothing was written. "
        "Give another folder with hydra.run.dir=..., or move that one away."
    )


def _unwritable(folder: Path, error: OSError) -> MedpflError:
    return MedpflError(
        f"Cannot write the run's folder {folder}: {error.strerror or error}. "
        "Give a folder that you own and can write to with hydra.run.dir=..."
    )

"""What a run leaves behind, on disk from the first victim on."""

from __future__ import annotations

import logging
import math
import os
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medpfl._atomic import (
    make_private_folder,
    remove_temporaries,
    replacing,
    write_text,
)
from medpfl.bounds.columns import BOUND_COLUMNS
from medpfl.data.volumes.nifti import write_nifti
from medpfl.errors import MedpflError
from medpfl.image_score import DEFENSE_COLUMNS, READOUT_COLUMNS, ImageScore
from medpfl.metrics.grades import Grading
from medpfl.metrics.matching import UNMATCHED
from medpfl.metrics.scoring import Judgement
from medpfl.metrics.success import Summary, summarise
from medpfl.report.panels import draw_panels
from medpfl.report.run_file import RunFile, RunStatus
from medpfl.report.run_folder import held, occupied, resume_command, unwritable
from medpfl.report.slices import save_slices
from medpfl.report.tables import csv_table
from medpfl.report.victim_file import VictimRecord, load_victim, safe_name, save_victim
from medpfl.source import Described, Planned
from medpfl.types import Capture, Reconstruction

__all__ = [
    "COLUMNS",
    "RunRecord",
    "VictimRecord",
    "load_victim",
]

COLUMNS = ImageScore.fixed_columns()
"""The columns of ``metrics.csv``, in order; those of one's own measures follow."""

ARRAYS, _FIGURES = "reconstructions", "figures"
_SECONDS_BETWEEN_TABLES = 2.0
_log = logging.getLogger(__name__)


class RunRecord:
    """The folder of one run: ``run.json``, ``metrics.csv``, ``reconstructions/``, ``figures/``.

    Only its owner can read it: reconstructions are patients' images. Each file is there whole or
    not at all, so a run that ends anyhow leaves every finished victim readable. One process at a
    time writes to it. `grading` is what images are graded with, `described` where updates come
    from, and `bounds_note` why bounds are left out, once these are known.
    """

    def __init__(self, run_file: RunFile) -> None:
        self.folder = run_file.path.parent
        self._run_file = run_file
        self._scores: list[ImageScore] = []
        self._planned: dict[str, int] = {}
        self._victims: list[tuple[ImageScore, Path]] = []
        self._damaged: list[str] = []
        self.grading: Grading | None = None
        self.described: Described | None = None
        self.bounds_note: str | None = None
        self._table_written = -float("inf")
        self._release: Callable[[], object] = lambda: None

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
        run_file = RunFile.of_new_run(
            folder / "run.json", config=config, overrides=overrides, seed=seed, device=device
        )
        record = cls(run_file)
        try:
            make_private_folder(folder)
            record._hold()
            remove_temporaries(folder)
            run_file.create()
            record._make_folders()
        except FileExistsError as error:
            raise occupied(folder) from error
        except OSError as error:
            raise unwritable(folder, error) from error
        return record

    @classmethod
    def reopen(cls, folder: Path) -> RunRecord:
        """Take up the record of a run that did not end: its finished victims are read back.

        What a kill left half-written is removed, and so are victims that cannot be read (named in
        `damaged`). ``run.json`` keeps when the run started, and lists when it was resumed.

        Args:
            folder: the run's.

        Raises:
            MedpflError: the folder holds no run, or one that is still running, or it cannot be
                read or written to.
        """
        try:
            record = cls(RunFile.of_old_run(folder / "run.json"))
            record._hold()
            record._make_folders()
            for part in (folder, folder / ARRAYS, folder / _FIGURES):
                remove_temporaries(part)
            record._read_back()
        except ValueError as error:
            raise MedpflError(f"{folder / 'run.json'} is not a run's record: {error}") from error
        except OSError as error:
            raise MedpflError(
                f"Cannot continue the run in {folder}: {error}. "
                "Everything in the folder must be yours to read and to write."
            ) from error
        record._write_run("running")
        return record

    @property
    def damaged(self) -> tuple[str, ...]:
        """The files of victims that could not be read back, and were removed."""
        return tuple(self._damaged)

    @property
    def scores(self) -> list[ImageScore]:
        """The rows so far: in the planned order where one is known, then as they arrived."""
        return sorted(self._scores, key=self._place)

    def summarise(self) -> Summary:
        """Summarise the rows so far.

        Raises:
            ValueError: there are no rows.
        """
        return summarise(self.scores, self.grading, self.described, self.bounds_note)

    def victims(self) -> Iterator[VictimRecord]:
        """Read the recorded victims back one at a time, in the order of `scores`."""
        for _, path in sorted(self._victims, key=lambda victim: self._place(victim[0])):
            yield load_victim(path)

    def plan(self, captures: Sequence[Planned]) -> None:
        """Fix the order of the rows, whatever order the updates finish in."""
        self._planned = {planned.capture_id: place for place, planned in enumerate(captures)}

    def note_device(self, device: object) -> None:
        """Put what the run computes on into ``run.json``.

        Raises:
            MedpflError: the file cannot be written.
        """
        self._run_file.note_device(str(device))
        self._write_run("running")

    def add(
        self,
        capture: Capture,
        reconstruction: Reconstruction,
        judgement: Judgement,
    ) -> None:
        """Put one finished update on disk: a PNG an image, of volumes NIfTI and GIF, then arrays.

        Args:
            capture: with the images behind it.
            reconstruction: what the attacker handed in, in any order.
            judgement: how they compare.

        Raises:
            MedpflError: the files cannot be written, for instance on a full disk; the victims
                before this one stay as they are.
            ValueError: an update of this id is recorded already.
        """
        arrays = self._path(reconstruction.capture_id, ".npz")
        if arrays.exists():
            raise ValueError(f"{reconstruction.capture_id!r} is recorded already: {arrays}")
        kept, scores = _in_order(capture, reconstruction, judgement), judgement.scores
        with self.writing():
            self._draw(reconstruction.capture_id, kept)
            self._write_volumes(reconstruction.capture_id, kept)
            save_victim(arrays, kept)
            self._victims.append((scores[0], arrays))
            self._scores.extend(scores)
            if time.monotonic() - self._table_written >= _SECONDS_BETWEEN_TABLES:
                self._write_table()
                self._write_run("running")

    def finish(self, summary: Summary | None) -> None:
        """Close the record of a run that went to its end.

        Raises:
            MedpflError: the files cannot be written.
        """
        self._write_table()
        self._write_run("complete", summary=summary)
        self._release()

    def interrupt(self) -> None:
        """Close the record of a run that the user stopped, with a summary of what there is.

        Raises:
            MedpflError: the files cannot be written.
        """
        self._write_table()
        self._write_run("interrupted", summary=self.summarise() if self._scores else None)
        self._release()

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
        self._release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say it for people where the disk refuses what is written inside.

        Raises:
            MedpflError: instead of an OSError.
        """
        try:
            yield
        except OSError as error:
            raise MedpflError(
                f"Cannot write to {self.folder}: {error.strerror or error}. "
                f"The {len(self._scores)} images recorded so far are safe there: "
                f"free some space or mend the disk, then go on with {resume_command(self.folder)}"
            ) from error

    def _hold(self) -> None:
        descriptor = held(self.folder)
        if descriptor is not None:
            self._release = weakref.finalize(self, os.close, descriptor)

    def _make_folders(self) -> None:
        for name in (ARRAYS, _FIGURES):
            make_private_folder(self.folder / name)

    def _read_back(self) -> None:
        for path in sorted((self.folder / ARRAYS).glob("*.npz")):
            path.open("rb").close()  # one that is closed to us is not damaged
            try:
                scores = load_victim(path).scores
            except MedpflError:
                path.unlink()
                self._damaged.append(path.name)
            else:
                self._victims.append((scores[0], path))
                self._scores.extend(scores)

    def _place(self, score: ImageScore) -> int:
        # The rows of a capture were added in their order, and sorting keeps it.
        return self._planned.get(score.capture_id, len(self._planned))

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / ARRAYS / f"{safe_name(name)}{suffix}"

    def _draw(self, capture_id: str, kept: VictimRecord) -> None:
        pairs = zip(kept.originals, kept.reconstruction, kept.scores, strict=True)
        for original, reconstruction, score in pairs:
            name = f"{capture_id}/{score.image_id}"
            sheet = draw_panels(original, reconstruction, score)
            with replacing(self._path(name, ".png")) as file:
                sheet.save(file, format="PNG", compress_level=1)
            if reconstruction.ndim == 4:
                shown = reconstruction if score.matched else None
                with replacing(self._path(name, ".gif")) as file:
                    save_slices(file, original, shown)

    def _write_volumes(self, capture_id: str, kept: VictimRecord) -> None:
        """Write volumes whose place is known, so that a viewer lays one over the other."""
        for number, geometry in enumerate(kept.geometry):
            if geometry is None or not kept.scores[number].matched:
                continue
            name = f"{capture_id}/{kept.scores[number].image_id}"
            write_nifti(self._path(name, ".nii.gz"), kept.reconstruction[number], geometry)
            write_nifti(self._path(name, ".original.nii.gz"), kept.original[number], geometry)

    def _write_table(self) -> None:
        scores = self.scores
        defense = [n for n in DEFENSE_COLUMNS if any(n in score.defense for score in scores)]
        bounds = [n for n in BOUND_COLUMNS if any(n in score.bounds for score in scores)]
        readout = [n for n in READOUT_COLUMNS if any(n in score.readout for score in scores)]
        measures = [name for score in scores for name in score.measures]
        header = dict.fromkeys([*COLUMNS, *defense, *bounds, *readout, *measures])
        rows = [[row.get(name, math.nan) for name in header] for row in (s.row() for s in scores)]
        with self.writing():
            write_text(self.folder / "metrics.csv", csv_table([*header], rows))
        self._table_written = time.monotonic()

    def _write_run(
        self,
        status: RunStatus,
        *,
        error: Mapping[str, str] | None = None,
        summary: Summary | None = None,
    ) -> None:
        with self.writing():
            self._run_file.write(status, error=error, summary=summary)


def _in_order(
    capture: Capture, reconstruction: Reconstruction, judgement: Judgement
) -> VictimRecord:
    """Put the reconstructions in the order of the originals, as the scores are."""
    order, trace, truth = judgement.order, reconstruction.trace, capture.truth
    handed_in = reconstruction.inputs.detach().cpu()
    guesses = handed_in.new_zeros(len(order), *handed_in.shape[1:])
    matched = order != UNMATCHED
    guesses[matched] = handed_in[order[matched]]
    return VictimRecord(
        original=guesses[:0] if truth is None else truth.inputs.detach().cpu(),
        reconstruction=guesses,
        scores=judgement.scores,
        trace=None if trace is None else replace(trace, inputs=trace.inputs.cpu()[:, order]),
        ssim_trace=judgement.ssim_trace,
        left=judgement.left,
        geometry=() if truth is None else truth.geometry,
    )

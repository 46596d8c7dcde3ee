"""From a capture and what the attacker handed in to the rows of ``metrics.csv``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from medpfl.bounds.columns import BOUND_COLUMNS, UpdateBound
from medpfl.image_score import DEFENSE_COLUMNS, GROUPS, READOUT_COLUMNS, ImageScore
from medpfl.metrics.grades import Grading
from medpfl.metrics.image_quality import psnr_db_of, ssim_per_image
from medpfl.metrics.line_up import Likeness
from medpfl.metrics.matching import UNMATCHED, match
from medpfl.metrics.measures.base import Measure, compare
from medpfl.metrics.measures.columns import check_names, columns_of
from medpfl.metrics.measures.own import OwnMeasure
from medpfl.metrics.measures.plain import EVERY_RUN
from medpfl.metrics.measures.slices import OF_VOLUMES
from medpfl.metrics.protocols import ALL_PROTOCOLS, OracleChoice, PaperProtocol, paper_defense
from medpfl.metrics.readout import is_readout, quality_columns, readout_columns
from medpfl.metrics.signs import NO_SIGNS, Signs, signs_of
from medpfl.outcomes import Grade, Status
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import Capture, DataSpec, Reconstruction, Trace, Truth, UpdateFacts

# Required columns that only the truth can fill.
_OF_THE_TRUTH = (
    *("ssim", "mse", "psnr_db", "true_probability", "ssim_paper"),
    *("ssim_zeros", "mse_zeros", "ssim_mean_image", "mse_mean_image"),
)


@dataclass(frozen=True)
class Judgement:
    """How a reconstruction compares with the truth.

    Args:
        order: `(N,)` int64: entry n is the reconstruction that goes with original n, or
            `UNMATCHED`.
        scores: a row of ``metrics.csv`` for each original, in their order.
        ssim_trace: `(T,)` mean SSIM at the steps of the reconstruction's trace, or None.
        left: `(N, C, *S)`: what the update leaves open of each pixel, see `UpdateBound`, or None.
    """

    order: Tensor
    scores: tuple[ImageScore, ...]
    ssim_trace: Tensor | None = None
    left: Tensor | None = None

    def beside(self, bound: UpdateBound | None) -> Judgement:
        """Return the same with what no attack exceeds beside it; None where nothing is known."""
        if bound is None:
            return self
        pairs = zip(self.scores, bound.columns, strict=True)
        scores = tuple(replace(score, bounds=_in_decibels(columns)) for score, columns in pairs)
        return replace(self, scores=scores, left=bound.left)


@checked("metrics")
@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Score reconstructions against the truth, beside two guesses that need no attack.

    Every published SSIM is computed in every run, each in its own column, and so is every measure
    of `measures`, and that of slices where images are volumes; success is decided by the SSIM on
    [0, 1] alone, of a whole volume.

    Args:
        threshold: the SSIM from which an image counts as reconstructed, in (-1, 1].
        paper: a published protocol to report as ``ssim_paper``, or None.
        rank_by: what decides the rank of the original among images of the dataset: ``correlation``
            or ``mse`` of the pixels, or ``ssim``.
        measures: more measures by name, each a column of ``metrics.csv``; None entries are left
            out.
    """

    threshold: Annotated[float, Range(-1, 1, "(]"), "the papers use 0.9"] = 0.9
    paper: PaperProtocol | None = None
    rank_by: Likeness = "correlation"
    measures: Mapping[str, Measure | None] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(
            self.measures or {},
            taken=(
                *(*ImageScore.fixed_columns(), *DEFENSE_COLUMNS, *BOUND_COLUMNS),
                *(*READOUT_COLUMNS, *GROUPS),
                *(column for name in OF_VOLUMES for column in columns_of(name)),
            ),
        )

    def check(self, spec: DataSpec) -> None:
        """Try the measures of one's own on noise, so that a mistake is found before any compute.

        Raises:
            ConfigurationError: one fails on such images, or returns no number; names it.
        """
        stream = generator(0, "trial of measures")
        first, second = (torch.rand(spec.shape, generator=stream) for _ in range(2))
        compare(self._own, first, second, torch.full(spec.shape, 0.5), spec)

    @property
    def _own(self) -> dict[str, Measure]:
        given = (self.measures or {}).items()
        return {n: OwnMeasure(name=n, measure=m) for n, m in given if m is not None}

    def _added(self, spec: DataSpec) -> dict[str, Measure]:
        """Return the measures beside those of every run: those of volumes, and one's own."""
        return {**(OF_VOLUMES if len(spec.shape) == 4 else {}), **self._own}

    def judge(
        self,
        capture: Capture,
        reconstruction: Reconstruction,
        mean_image: Tensor,
        *,
        grading: Grading | None = None,
    ) -> Judgement:
        """Match reconstructions to the truth once, one to one, and score every pair.

        Inferred labels follow the matched image, and each row carries an equal share of the
        seconds. Where fewer were handed in than there are originals, the others have rows, too: a
        black image stands in for theirs, which is no success, whatever its scores. Where nobody
        knows the truth, what is left are the signs of `medpfl.metrics.signs`.

        Args:
            capture: the truth, and what the client's side knows.
            reconstruction: what the attacker handed in, in any order.
            mean_image: `(C, *S)` in [0, 1]: the guess of someone who knows the kind of image only.
            grading: what separates the grades on this dataset; None leaves them out.

        Raises:
            ConfigurationError: the images are smaller than SSIM's window.
            ValueError: shapes do not agree, or pixels are not finite or not in [0, 1].
        """
        if capture.truth is None:
            return self._unjudged(capture, reconstruction)
        truth, facts = check_agreement(capture, reconstruction)
        trace = reconstruction.trace
        oracle = paper_defense(truth.inputs, trace)
        order = match(truth.inputs, reconstruction.inputs)
        pairs = _pairs(truth, reconstruction, order)
        mean_image = mean_image.detach().cpu()
        rows = (
            self._row(capture, truth, facts, reconstruction, pair, mean_image, oracle[pair.n])
            for pair in pairs
        )
        readouts = readout_columns(capture, truth, reconstruction, order)
        informed = reconstruction.status != Status.NO_GRADIENT
        scores = tuple(
            replace(
                _graded(row, pair, mean_image, grading, informed=informed, rank_by=self.rank_by),
                readout=readout,
            )
            for row, pair, readout in zip(rows, pairs, readouts, strict=True)
        )
        ssim_trace = None if trace is None else ssim_over_steps(truth, trace, order)
        return Judgement(order=order, scores=scores, ssim_trace=ssim_trace)

    def _unjudged(self, capture: Capture, reconstruction: Reconstruction) -> Judgement:
        """Return rows that hold what is known without the truth: how the attack ended."""
        check_handed_in(reconstruction)
        count, facts = len(reconstruction.inputs), capture.facts
        unknown: dict[str, Any] = dict.fromkeys(_OF_THE_TRUTH, math.nan)
        added = self._added(capture.observation.spec)
        own = [column for name in added for column in columns_of(name)]
        signs = signs_of(reconstruction) or (NO_SIGNS,)
        # A row all the same, where nothing was handed in for images that nobody knows.
        order = list(range(count)) or [UNMATCHED]
        readout = is_readout(reconstruction, capture.observation.num_examples or count)
        scores = tuple(
            ImageScore(
                capture_id=capture.capture_id,
                round=capture.round,
                client=capture.client,
                image_id=f"{capture.capture_id}/image-{n}",
                label=None,
                label_inferred=None if m == UNMATCHED else int(reconstruction.labels[m]),
                success=False,
                gradient_norm=math.nan if facts is None else float(facts.gradient_norm),
                noise_scale=None if facts is None else facts.noise_scale,
                snr_db=None if facts is None else facts.snr_db,
                defense={} if facts is None else facts.defense,
                measures=dict.fromkeys(own, math.nan),
                readout=quality_columns(reconstruction, m) if readout else {},
                **_of_the_attack(reconstruction, len(order), matched=m != UNMATCHED),
                **asdict(signs[n]),
                **unknown,
            )
            for n, m in enumerate(order)
        )
        return Judgement(order=torch.tensor(order), scores=scores)

    def _row(
        self,
        capture: Capture,
        truth: Truth,
        facts: UpdateFacts,
        reconstruction: Reconstruction,
        pair: _Pair,
        mean_image: Tensor,
        oracle: OracleChoice,
    ) -> ImageScore:
        original, guess, spec = pair.original, pair.guess, capture.observation.spec
        images = original, guess, mean_image, spec
        found: dict[str, Any] = compare(EVERY_RUN, *images)
        found |= {f"ssim_paper_{k}": p(original, guess, spec) for k, p in ALL_PROTOCOLS.items()}
        return ImageScore(
            capture_id=capture.capture_id,
            round=capture.round,
            client=capture.client,
            image_id=truth.ids[pair.n],
            label=int(truth.labels[pair.n]),
            label_inferred=int(reconstruction.labels[pair.m]) if pair.matched else None,
            psnr_db=psnr_db_of(found["mse"]),
            success=pair.matched and found["ssim"] >= self.threshold,
            gradient_norm=float(facts.gradient_norm),
            true_probability=float(facts.true_probability[pair.n]),
            noise_scale=facts.noise_scale,
            snr_db=facts.snr_db,
            defense=facts.defense,
            ssim_paper=math.nan if self.paper is None else self.paper(original, guess, spec),
            ssim_oracle=oracle.ssim,
            mse_oracle=oracle.mse,
            measures=compare(self._added(spec), *images),
            **_of_the_attack(reconstruction, len(truth.ids), matched=pair.matched),
            **asdict(pair.signs),
            **found,
        )


@dataclass(frozen=True)
class _Pair:
    """An original, number `n` of its update, and the reconstruction, number `m`, that shows it.

    `signs` are what the reconstruction tells without the original. Where `m` is `UNMATCHED`, the
    guess is black.
    """

    n: int
    m: int
    original: Tensor
    guess: Tensor
    signs: Signs

    @property
    def matched(self) -> bool:
        return self.m != UNMATCHED


def _pairs(truth: Truth, reconstruction: Reconstruction, order: Tensor) -> list[_Pair]:
    originals, guesses = (x.detach().cpu() for x in (truth.inputs, reconstruction.inputs))
    signs = signs_of(reconstruction)
    return [
        _Pair(n, m, original, torch.zeros_like(original), NO_SIGNS)
        if m == UNMATCHED
        else _Pair(n, m, original, guesses[m], signs[m])
        for n, (original, m) in enumerate(zip(originals, order.tolist(), strict=True))
    ]


def _in_decibels(columns: Mapping[str, float]) -> dict[str, float]:
    found = dict(columns)
    if "bound_mse" in columns:
        found["bound_psnr_db"] = psnr_db_of(columns["bound_mse"])
    return {name: found[name] for name in BOUND_COLUMNS if name in found}


def _of_the_attack(
    reconstruction: Reconstruction, count: int, *, matched: bool = True
) -> dict[str, Any]:
    """Return the columns that the attack itself fills, for one of an update's images."""
    return {
        "objective": reconstruction.objective,
        "steps": reconstruction.steps,
        "evaluations": reconstruction.evaluations,
        "seconds": reconstruction.seconds / count,
        "status": str(reconstruction.status if matched else Status.UNMATCHED),
        "closed_form": reconstruction.closed_form,
        "unknowns": reconstruction.unknowns,
        "determined": reconstruction.determined,
    }


def _graded(
    row: ImageScore,
    pair: _Pair,
    mean_image: Tensor,
    grading: Grading | None,
    *,
    informed: bool,
    rank_by: Likeness,
) -> ImageScore:
    if grading is None:
        return row
    grades = (
        grading.grade(pair.original, pair.guess, informed=informed)
        if pair.matched
        else Grade.NOTHING,
        grading.grade(pair.original, mean_image),
    )
    own, guessed = ("" if grade is None else str(grade) for grade in grades)
    row = replace(row, grade=own, grade_mean_image=guessed)
    if not grading.pairs:  # nobody to be taken for
        return row
    found = grading.line_up.rank(pair.original, pair.guess, rank_by)
    return replace(row, identification_rank=found.rank, identification_candidates=found.candidates)


def ssim_over_steps(truth: Truth, trace: Trace, order: Tensor) -> Tensor:
    """Return the mean SSIM over an update's images at each recorded step; `(T,)` float64.

    Args:
        truth: the images.
        trace: T recorded steps.
        order: `(N,)`: which reconstruction goes with each original; one order for all steps, so
            that a curve follows one image.

    Raises:
        ConfigurationError: the images are smaller than SSIM's window.
        ValueError: shapes do not agree, or pixels are not finite or not in [0, 1].
    """
    if len(trace.inputs) == 0:
        return torch.empty(0, dtype=torch.float64)
    order = order.to(trace.inputs.device)
    means = [ssim_per_image(truth.inputs, step[order]).mean() for step in trace.inputs]
    return torch.stack(means)


def check_agreement(capture: Capture, reconstruction: Reconstruction) -> tuple[Truth, UpdateFacts]:
    """Refuse parts that do not speak of the same N images, or of the same M reconstructions."""
    truth, facts = capture.truth, capture.facts
    if truth is None or facts is None:
        raise ValueError(f"{capture.capture_id} has no ground truth to be judged by")
    count = len(truth.ids)
    lengths = {
        "truth.inputs": len(truth.inputs),
        "truth.labels": len(truth.labels),
        "facts.true_probability": len(facts.true_probability),
    }
    if reconstruction.trace is not None:  # of a search, which hands in as many as there are
        lengths["reconstruction.inputs"] = len(reconstruction.inputs)
        lengths["reconstruction.trace"] = reconstruction.trace.inputs.shape[1]
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"{name} holds {length} images; the truth has {count} ids")
    check_handed_in(reconstruction)
    return truth, facts


def check_handed_in(reconstruction: Reconstruction) -> None:
    """Refuse a reconstruction whose parts are of other numbers of images."""
    count = len(reconstruction.inputs)
    parts = {"labels": reconstruction.labels, **reconstruction.quality}
    for name, values in parts.items():
        if len(values) != count:
            raise ValueError(
                f"reconstruction.{name} holds {len(values)} images; reconstruction.inputs {count}"
            )

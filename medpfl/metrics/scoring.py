"""From a victim and what the attacker handed in to the rows of ``metrics.csv``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from medpfl.metrics.grades import Grading
from medpfl.metrics.image_quality import mse, psnr_db_of, ssim, ssim_per_image
from medpfl.metrics.matching import match
from medpfl.metrics.protocols import ALL_PROTOCOLS, OracleChoice, PaperProtocol, paper_defense
from medpfl.outcomes import Status
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec, ImageScore, Reconstruction, Trace, VictimBatch


@dataclass(frozen=True)
class VictimFacts:
    """What the client's side knows about one update; it explains a score and never the attack.

    Args:
        gradient_norm: l2 norm of the update before any defense, not negative.
        true_probability: `(N,)`: the network's probability of each image's true class.
        noise_scale: scale of the noise that a defense added, or None.
        snr_db: update against noise, or None without noise.
    """

    gradient_norm: float
    true_probability: Tensor
    noise_scale: float | None
    snr_db: float | None


@checked("metrics")
@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Score reconstructions against the truth, beside two guesses that need no attack.

    Every published SSIM is computed in every run, each in its own column; success is decided by
    the SSIM on [0, 1] alone.

    Args:
        threshold: the SSIM from which an image counts as reconstructed, in (-1, 1].
        paper: a published protocol to report as ``ssim_paper``, or None.
    """

    threshold: Annotated[float, Range(-1, 1, "(]"), "the papers use 0.9"] = 0.9
    paper: PaperProtocol | None = None

    def score(
        self,
        victim: VictimBatch,
        reconstruction: Reconstruction,
        facts: VictimFacts,
        mean_image: Tensor,
        *,
        spec: DataSpec,
        grading: Grading | None = None,
    ) -> tuple[ImageScore, ...]:
        """Return one row for each of the victim's images, in the victim's order.

        Images that share an update are first matched one to one on squared error; inferred labels
        follow the matched image, and each row carries an equal share of the seconds.

        Args:
            victim: the truth.
            reconstruction: what the attacker handed in, in any order.
            facts: what the client's side knows about the update.
            mean_image: `(C, *S)` in [0, 1]: the guess of someone who knows the kind of image only.
            spec: the data's shape and normalisation.
            grading: what separates the grades on this dataset; None leaves them out.

        Raises:
            ConfigurationError: the images are smaller than SSIM's window.
            ValueError: shapes do not agree, or pixels are not finite or not in [0, 1].
        """
        check_agreement(victim, reconstruction, facts)
        order = match(victim.inputs, reconstruction.inputs)
        oracle = paper_defense(victim.inputs, reconstruction.trace)
        return tuple(
            self._graded(
                self._row(victim, reconstruction, facts, mean_image, spec, n, m, oracle[n]),
                victim.inputs[n].detach().cpu(),
                reconstruction.inputs[m].detach().cpu(),
                mean_image.detach().cpu(),
                grading,
            )
            for n, m in enumerate(order.tolist())
        )

    def _graded(
        self,
        row: ImageScore,
        original: Tensor,
        guess: Tensor,
        mean_image: Tensor,
        grading: Grading | None,
    ) -> ImageScore:
        if grading is None:
            return row
        informed = row.status != Status.NO_GRADIENT
        grades = (
            grading.grade(original, guess, informed=informed),
            grading.grade(original, mean_image),
        )
        own, guessed = ("" if grade is None else str(grade) for grade in grades)
        return replace(row, grade=own, grade_mean_image=guessed)

    def _row(
        self,
        victim: VictimBatch,
        reconstruction: Reconstruction,
        facts: VictimFacts,
        mean_image: Tensor,
        spec: DataSpec,
        n: int,
        m: int,
        oracle: OracleChoice,
    ) -> ImageScore:
        original = victim.inputs[n].detach().cpu()
        guess = reconstruction.inputs[m].detach().cpu()
        zeros, mean_image = torch.zeros_like(original), mean_image.detach().cpu()
        similarity, error = ssim(original, guess), mse(original, guess)
        published = {k: protocol(original, guess, spec) for k, protocol in ALL_PROTOCOLS.items()}
        return ImageScore(
            image_id=victim.ids[n],
            label=int(victim.labels[n]),
            label_inferred=int(reconstruction.labels[m]),
            ssim=similarity,
            mse=error,
            psnr_db=psnr_db_of(error),
            success=similarity >= self.threshold,
            gradient_norm=float(facts.gradient_norm),
            true_probability=float(facts.true_probability[n]),
            objective=reconstruction.objective,
            steps=reconstruction.steps,
            evaluations=reconstruction.evaluations,
            seconds=reconstruction.seconds / len(victim.ids),
            status=str(reconstruction.status),
            noise_scale=facts.noise_scale,
            snr_db=facts.snr_db,
            ssim_paper=math.nan if self.paper is None else self.paper(original, guess, spec),
            ssim_zeros=ssim(original, zeros),
            mse_zeros=mse(original, zeros),
            ssim_mean_image=ssim(original, mean_image),
            mse_mean_image=mse(original, mean_image),
            ssim_paper_cpl=published["cpl"],
            ssim_paper_dlg=published["dlg"],
            ssim_paper_gradinv=published["gradinv"],
            ssim_oracle=oracle.ssim,
            mse_oracle=oracle.mse,
            closed_form=reconstruction.closed_form,
            unknowns=reconstruction.unknowns,
            determined=reconstruction.determined,
        )


def ssim_over_steps(victim: VictimBatch, trace: Trace) -> Tensor:
    """Return the mean SSIM over the victim's images at each recorded step; `(T,)` float64.

    Images are matched once, by the last recorded step, so that a curve follows one image.

    Raises:
        ConfigurationError: the images are smaller than SSIM's window.
        ValueError: shapes do not agree, or pixels are not finite or not in [0, 1].
    """
    if len(trace.inputs) == 0:
        return torch.empty(0, dtype=torch.float64)
    order = match(victim.inputs, trace.inputs[-1]).to(trace.inputs.device)
    means = [ssim_per_image(victim.inputs, step[order]).mean() for step in trace.inputs]
    return torch.stack(means)


def check_agreement(
    victim: VictimBatch, reconstruction: Reconstruction, facts: VictimFacts
) -> None:
    """Refuse parts that do not speak of the same N images."""
    count = len(victim.ids)
    lengths = {
        "victim.inputs": len(victim.inputs),
        "victim.labels": len(victim.labels),
        "reconstruction.inputs": len(reconstruction.inputs),
        "reconstruction.labels": len(reconstruction.labels),
        "facts.true_probability": len(facts.true_probability),
    }
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"{name} holds {length} images; the victim has {count} ids")

"""DP-SGD: every image's gradient is clipped by itself, and noise is added to their sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.defenses.base import DefenseReport
from medpfl.defenses.noise import Gaussian, Laplace
from medpfl.defenses.per_example import Norm, clipped_sum
from medpfl.defenses.perturbation import snr_db
from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Budget, Candidates, Delta, Range
from medpfl.training import Forward, Gradient, Parameters
from medpfl.types import ClientUpdate, DataSpec, DefenseFacts, ServerPayload

_PLAIN_NOISE = 1.0
_LEAST_NOISE = 1e-3


@dataclass(frozen=True, kw_only=True)
class DpSgdFacts(DefenseFacts):
    """What an attacker may know of `DpSgd`.

    One step follows ``(sum_i clip(g_i) + noise) / E``: g_i is the gradient of image i alone, E the
    expected number of images of a step, `LocalTraining.expected`. Of one image in one step that is
    ``clip(g) + noise``.

    Args:
        max_grad_norm: C: ``clip(g) = g min(1, C / |g|)``, all tensors of an image together.
        norm: ``l2`` or ``l1``: which norm |g| is.
        law: of the noise: ``gaussian``, or ``laplace``.
        noise_multiplier: the noise's scale over C.
        noise_scale: their product: standard deviation (Gaussian) or b (Laplace) of every entry of
            the noise on the sum, before it is divided by E; drawn anew in every step.
    """

    max_grad_norm: float
    norm: Norm
    law: Literal["gaussian", "laplace"]
    noise_multiplier: float
    noise_scale: float

    def scale_in_update(self, expected: float, steps: int = 1) -> float:
        """Return the noise's scale in the unit of a gradient, as attacks read an update.

        Args:
            expected: E.
            steps: that the client takes: an update is the mean of these, whose noise is
                independent and adds up in squares (of SGD without momentum; Laplace noise of
                several steps is no longer Laplace, and this is the b of as much variance).
        """
        return self.noise_scale / expected / math.sqrt(steps)


@checked("defense.dp_sgd")
@dataclass(frozen=True, kw_only=True)
class DpSgd:
    """Differentially private SGD (Abadi et al. 2016, Alg. 1), at every client.

    Every step of a client's follows the sum of its images' gradients, each clipped to norm C by
    itself, plus noise, over the expected number of images of a step. Under FedSGD that is one step
    on all images. What it guarantees is kept account of by `medpfl.federated.account`: amplified by
    sampling only with ``federation.local.sampling=poisson``.

    What parts before this one make of a gradient is taken image by image, too.

    Args:
        max_grad_norm: C, positive, in the unit of one image's gradient.
        noise_multiplier: the noise's scale over C: 0 (clipping alone, which guarantees nothing) or
            at least 0.001; None is found from `target_epsilon`, or 1 without one.
        target_epsilon: what all rounds of training together may cost, or the attacked updates
            where there is no training.
        target_delta: the probability with which epsilon may fail.
        budget_epsilon: training ends before the round that would cost more than this in all.
        mechanism: ``gaussian``: Gaussian noise, C bounds the Euclidean norm; ``laplace``: Laplace
            noise, C bounds the L1 norm, and epsilon is finite at delta 0 as well (Dwork et al.
            2006).
        accountant: ``pld`` or ``rdp``; see `medpfl.accounting.epsilon`.
        candidates: of how many images an attacker has to pick the right one, in the bound on how
            often any attack does.
    """

    name: ClassVar[str] = "dp_sgd"

    max_grad_norm: Annotated[float, Range(1e-9, 1e9), "without clipping, no epsilon is finite"]
    noise_multiplier: Annotated[float, Range(0, 1e6)] | None = None
    target_epsilon: Budget | None = None
    target_delta: Delta = 1e-5
    budget_epsilon: Budget | None = None
    mechanism: Literal["gaussian", "laplace"] = "gaussian"
    accountant: Literal["pld", "rdp"] = "pld"
    candidates: Candidates = 1000

    def __post_init__(self) -> None:
        for name, choices in (("mechanism", ("gaussian", "laplace")), ("accountant", _ACCOUNTANTS)):
            if getattr(self, name) not in choices:
                raise self._wrong(name, f"choose {' or '.join(choices)}")
        if self.mechanism == "laplace" and self.accountant == "rdp":
            raise self._wrong("accountant", "not known for Laplace noise; choose pld")
        noise = self.noise_multiplier
        if noise is None:
            return
        if 0 < noise < _LEAST_NOISE:
            raise self._wrong("noise_multiplier", f"must be 0, or at least {_LEAST_NOISE:g}")
        if noise == 0 and (self.target_epsilon or self.budget_epsilon):
            which = "target_epsilon" if self.target_epsilon else "budget_epsilon"
            raise self._wrong(
                "noise_multiplier",
                f"without noise epsilon is infinite, and defense.dp_sgd.{which}="
                f"{getattr(self, which):g} is never kept to: leave noise_multiplier out",
            )
        if self.target_epsilon is not None:
            raise self._wrong(
                "noise_multiplier",
                f"it follows from defense.dp_sgd.target_epsilon={self.target_epsilon:g}: give only "
                "one of them. To end training where that is spent, set "
                f"defense.dp_sgd.budget_epsilon={self.target_epsilon:g} instead",
            )

    @property
    def multiplier(self) -> float | None:
        """The noise multiplier; None where it is still to be found from `target_epsilon`."""
        if self.noise_multiplier is None and self.target_epsilon is None:
            return _PLAIN_NOISE
        return self.noise_multiplier

    @property
    def norm(self) -> Norm:
        """Which norm `max_grad_norm` bounds."""
        return "l2" if self.mechanism == "gaussian" else "l1"

    def describe(self) -> str | None:
        """See `Part.describe`."""
        norm = "a norm" if self.norm == "l2" else "an L1 norm"
        return f"each image's gradient to {norm} of {self.max_grad_norm:g}, noise on their sum"

    def noise_in_words(self) -> str | None:
        """Return the noise on the sum of a step's gradients; None without."""
        if self.multiplier == 0:
            return None
        law = self.mechanism.capitalize()
        if self.multiplier is None:
            return f"{law}, as little as the target takes"
        return f"{law}, {self.multiplier:.4g} x the clipping norm in every step"

    def facts(self) -> DpSgdFacts:
        """See `Public.facts`."""
        noise = self._noise()
        return DpSgdFacts(
            name=self.name,
            max_grad_norm=self.max_grad_norm,
            norm=self.norm,
            law=self.mechanism,
            noise_multiplier=noise,
            noise_scale=noise * self.max_grad_norm,
        )

    def check(self, model: nn.Module, spec: DataSpec) -> None:
        """See `Checked.check`."""
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise ConfigurationError(
                    f"defense=dp_sgd: {name} ({type(module).__name__}) mixes the images of a "
                    "batch, so that no image's gradient is its own. Choose a network with "
                    "GroupNorm (model=resnet18 model.norm=group), or BatchNorm with the server's "
                    "statistics (federation.batch_norm=eval_public)"
                )

    def expecting(self, images: float) -> _Step:
        """See `Expecting.expecting`."""
        return _Step(self, images)

    def gradient(
        self, inner: Gradient, payload: ServerPayload, generator: torch.Generator
    ) -> Gradient:
        """See `TrainingDefense.gradient`; divides by the images that a step has, at least 1."""
        return _Step(self, None).gradient(inner, payload, generator)

    def _noise(self) -> float:
        if self.multiplier is None:
            raise self._wrong("target_epsilon", "its noise is found from a federation's rounds")
        return self.multiplier

    def _wrong(self, name: str, advice: str) -> ConfigurationError:
        value = getattr(self, name)
        told = f"{value:g}" if isinstance(value, int | float) else value
        return ConfigurationError(f"defense.dp_sgd.{name}={told}: {advice}")


_ACCOUNTANTS = ("pld", "rdp")


@dataclass(frozen=True)
class _Step:
    """The steps of a client that takes so many images in each, in the mean."""

    part: DpSgd
    expected: float | None

    def gradient(
        self, inner: Gradient, payload: ServerPayload, generator: torch.Generator
    ) -> NoisyMean:
        return NoisyMean(self.part.facts(), self.expected, inner, generator)


class NoisyMean:
    """What the steps of one update follow; it adds up its noise, for the record.

    Args:
        facts: of the part.
        expected: images of a step, in the mean; None for as many as it has, at least 1.
        inner: of single images.
        generator: of the noise.
    """

    def __init__(
        self,
        facts: DpSgdFacts,
        expected: float | None,
        inner: Gradient,
        generator: torch.Generator,
    ) -> None:
        self._facts, self._expected = facts, expected
        self._inner, self._generator = inner, generator
        self._noise: dict[str, Tensor] = {}
        self._variance = 0.0

    def __call__(
        self, forward: Forward, parameters: Parameters, inputs_norm: Tensor, probabilities: Tensor
    ) -> dict[str, Tensor]:
        """See `Gradient`."""
        total = clipped_sum(
            self._inner,
            forward,
            parameters,
            inputs_norm,
            probabilities,
            max_norm=self._facts.max_grad_norm,
            norm=self._facts.norm,
        )
        expected = self._expected or max(1, len(inputs_norm))
        self._variance += (self._facts.noise_scale / expected) ** 2
        # In place: the sum is this step's own.
        return {n: self._noisy(n, t, expected).div_(expected) for n, t in total.items()}

    def report(self, update: ClientUpdate) -> DefenseReport:
        """See `Reporting.report`."""
        training = update.local_training
        plain = training is None or (training.optimizer == "sgd" and not training.momentum)
        if not (self._noise and plain):
            return DefenseReport()
        factor = 1.0 if training is None or update.kind == "gradient" else -training.lr
        noise = {name: tensor * factor for name, tensor in self._noise.items()}
        clean = [tensor - noise[name] for name, tensor in update.tensors.items()]
        return DefenseReport(
            noise_scale=abs(factor) * math.sqrt(self._variance),
            snr_db=snr_db(clean, noise.values()),
        )

    def _noisy(self, name: str, total: Tensor, expected: float) -> Tensor:
        facts = self._facts
        if not facts.noise_scale:
            return total
        law = (
            Gaussian(std=facts.noise_scale)
            if facts.law == "gaussian"
            else Laplace(scale=facts.noise_scale)
        )
        noise = law.sample_like(total, self._generator)
        total.add_(noise)
        drawn = noise.div_(expected)
        self._noise[name] = self._noise[name] + drawn if name in self._noise else drawn
        return total

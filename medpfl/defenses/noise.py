"""Laws of the noise that a defense adds: centred, independent in every entry.

Samples are drawn in float64 on the generator's device and then rounded to the tensor's dtype, so
that a run adds the same noise on every machine and float32's coarse uniforms do not cut the tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.settings.hints import checked
from medpfl.settings.ranges import NO_NOISE, Range, Scale

# The smallest uniform kept: torch.rand can return 0, where the inverse CDF is minus infinity.
_SMALLEST_UNIFORM = 2.0**-54


class Noise(Protocol):
    """A law of noise."""

    @property
    def scale(self) -> float:
        """The law's scale: Laplace b, Gaussian standard deviation, 0 for no noise."""
        ...

    def describe(self) -> str:
        """Return the law in words."""
        ...

    def sample_like(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return a sample in the shape, dtype and device of `tensor`, from the generator alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoNoise:
    """Add nothing."""

    @property
    def scale(self) -> float:
        """Zero."""
        return 0.0

    def describe(self) -> str:
        """Return the law in words."""
        return "none"

    def sample_like(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return zeros; the generator is left alone."""
        return torch.zeros_like(tensor)


def law_of(noise: Noise) -> str:
    """Return the name of the density that noise is drawn from; of one's own law, its class."""
    if isinstance(noise, Gaussian):
        return "gaussian"
    return "laplace" if isinstance(noise, Laplace | MedPFLLevel) else type(noise).__name__


@checked("noise")
@dataclass(frozen=True, kw_only=True)
class Laplace:
    """Laplace noise: density exp(-|x| / b) / 2b, variance 2 b^2.

    Args:
        scale: b, positive, in the update's own unit.
    """

    scale: Scale

    def describe(self) -> str:
        """Return the law in words."""
        return f"Laplace, b = {self.scale:g}"

    def sample_like(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return a sample by the inverse CDF: -b sign(v) log(1 - |v|), v uniform on (-1, 1)."""
        uniform = torch.rand(
            tensor.shape, dtype=torch.float64, generator=generator, device=generator.device
        )
        v = 2 * uniform.clamp_min(_SMALLEST_UNIFORM) - 1
        return (-self.scale * v.sign() * torch.log1p(-v.abs())).to(tensor)


@checked("noise")
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian noise.

    Args:
        std: standard deviation, positive, in the update's own unit.
    """

    std: Scale

    @property
    def scale(self) -> float:
        """The standard deviation."""
        return self.std

    def describe(self) -> str:
        """Return the law in words."""
        return f"Gaussian, standard deviation {self.std:g}"

    def sample_like(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return a sample."""
        standard = torch.randn(
            tensor.shape, dtype=torch.float64, generator=generator, device=generator.device
        )
        return standard.mul_(self.std).to(tensor)


@checked("noise")
@dataclass(frozen=True, kw_only=True)
class MedPFLLevel:
    """Laplace noise of a published noise level, whose code and text disagree.

    Args:
        level: positive; 100, 200, 300 and 400 in the paper.
        reading: ``inverse`` (the authors' code): b = 1 / level, so more level is less noise;
            ``proportional`` (the paper's text): b = unit * level, so more level is more noise.
        unit: b of level 1 in the proportional reading, positive; the paper gives none, and about
            5e-6 puts its levels among the noise that its own figures show.

    Das et al. 2023 (arXiv 2311.06643), Table III.
    """

    level: Annotated[float, Range(1e-10, 1e10), NO_NOISE]
    reading: Literal["inverse", "proportional"] = "inverse"
    unit: Annotated[float, Range(1e-15, 1e15), NO_NOISE] = 5e-6

    def __post_init__(self) -> None:
        if self.reading not in ("inverse", "proportional"):
            raise ConfigurationError(
                f"noise.reading={self.reading}: choose inverse (b = 1 / level, the authors' code) "
                "or proportional (b = unit * level, the paper's text)"
            )

    @property
    def scale(self) -> float:
        """Laplace b under the chosen reading."""
        return 1 / self.level if self.reading == "inverse" else self.unit * self.level

    def describe(self) -> str:
        """Return the law in words, the reading included."""
        return f"level {self.level:g} read {self.reading}: Laplace, b = {self.scale:g}"

    def sample_like(self, tensor: Tensor, generator: torch.Generator) -> Tensor:
        """Return a sample of Laplace noise."""
        return Laplace(scale=self.scale).sample_like(tensor, generator)

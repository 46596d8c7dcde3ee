"""How the attacker comes to know the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medpfl.attacks.reading import has_size
from medpfl.errors import ConfigurationError
from medpfl.models.structure import last_linear
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import Observation


class LabelStrategy(Protocol):
    """Finds the labels of an update, or leaves them to the optimiser."""

    @property
    def requires(self) -> frozenset[str]:
        """Capabilities of the threat model that the strategy needs."""
        ...

    @property
    def joint(self) -> bool:
        """Whether the labels are unknowns of the optimisation."""
        ...

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Raise a `ConfigurationError` where the strategy cannot work, before any compute."""
        ...

    def labels(self, observation: Observation) -> Tensor | None:
        """Return `(N,)` int64 labels, or None where they are optimised jointly."""
        ...


@runtime_checkable
class ReadOff(LabelStrategy, Protocol):
    """A strategy that reads the labels off the updates of some parameters."""

    def reads(self, model: nn.Module) -> frozenset[str]:
        """Return their names."""
        ...


@dataclass(frozen=True, kw_only=True)
class Known:
    """The threat model grants the labels."""

    requires: ClassVar[frozenset[str]] = frozenset({"labels"})
    joint: ClassVar[bool] = False

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Accept every model."""

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the granted labels."""
        if observation.labels is None:
            raise ValueError("the observation holds no labels: call ThreatModel.require first")
        return observation.labels


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The labels are softmax scores optimised together with the image (Zhu et al. 2019)."""

    requires: ClassVar[frozenset[str]] = frozenset()
    joint: ClassVar[bool] = True

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Accept every model."""

    def labels(self, observation: Observation) -> Tensor | None:
        """Return None: nothing is known beforehand."""
        return None


@dataclass(frozen=True, kw_only=True)
class SmallestRow:
    """The class whose row of the last layer's weight gradient has the smallest sum.

    With one image, row c of that gradient is (p_c - y_c) h; where the features h are not negative,
    the true class alone has a negative row (Zhao et al. 2020, Eq. 6).
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    joint: ClassVar[bool] = False

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Refuse updates of several images, and models without a last linear layer."""
        last_linear(model)
        if batch_size != 1:
            raise ConfigurationError(
                "attack.labels: the smallest-row rule reads one label off an update, and "
                f"{batch_size} images are behind each (federation.batch_size, of every client in a "
                "sum). Use an attack with counted, joint or known labels."
            )

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the inferred label, `(1,)`."""
        weight, _ = last_linear(observation.payload.model)
        return observation.tensors[weight].sum(dim=1).argmin().reshape(1).cpu()

    def reads(self, model: nn.Module) -> frozenset[str]:
        """Return the last layer's weight."""
        return frozenset({last_linear(model)[0]})


@checked("attack.labels")
@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many images of each class are behind an update, read off the last layer's gradient.

    The bias gradient of class c is the mean over the images of p_c - y_c, so that N (p_c - db_c)
    images have the label c (after Wainakh et al. 2022). The mean probability p_c of the private
    images is not known; the network's own on noise stands for it, which is close where the network
    is at its start and says nearly the same of every image. With one image this is not needed: the
    smallest-row rule is exact.

    Of an update whose size is withheld with the learning rate, the largest size is taken at which
    no class has fewer than no images: the right one wherever some class is not among them.

    Args:
        probes: noise images whose mean probability is taken.
    """

    probes: Annotated[int, Range(1, 4096)] = 64

    requires: ClassVar[frozenset[str]] = frozenset({"num_examples"})
    joint: ClassVar[bool] = False

    def check(self, model: nn.Module, batch_size: int) -> None:
        """Refuse models whose last linear layer has no bias, for several images."""
        _, bias = last_linear(model)
        if batch_size > 1 and bias is None:
            raise ConfigurationError(
                "attack.labels: counting labels needs the bias of the last layer, and this model "
                "has none. Use federation.batch_size=1 or an attack with known labels."
            )

    def labels(self, observation: Observation) -> Tensor | None:
        """Return the inferred labels in ascending order, `(N,)`."""
        count = observation.num_examples
        if count is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        if count == 1:
            return SmallestRow().labels(observation)
        _, bias = last_linear(observation.payload.model)
        if bias is None:
            raise ValueError("the last layer has no bias: call check first")
        probability = self._mean_probability(observation)
        gradient = observation.tensors[bias].double().cpu()
        size = 1.0 if has_size(observation) else _largest_size(probability, gradient)
        expected = count * (probability - size * gradient)
        return largest_remainders(expected, count)

    def reads(self, model: nn.Module) -> frozenset[str]:
        """Return the last layer's weight, and its bias where it has one."""
        return frozenset(name for name in last_linear(model) if name is not None)

    def _mean_probability(self, observation: Observation) -> Tensor:
        """Return the network's mean probability of each class on noise, `(K,)` float64."""
        payload, spec = observation.payload, observation.spec
        stream = generator(0, "label probes")
        noise = spec.normalise(torch.rand(self.probes, *spec.shape, generator=stream))
        device = next(iter(payload.parameters.values())).device
        with torch.no_grad():
            logits = payload.forward(training=False)(payload.parameters, noise.to(device))
        return logits.double().softmax(1).mean(0).cpu()


def _largest_size(probability: Tensor, gradient: Tensor) -> float:
    """Return the largest s for which no class's probability - s * gradient is negative; `(K,)`."""
    bounds = (probability / gradient)[gradient > 0]
    return float(bounds.min()) if len(bounds) else 1.0


def largest_remainders(expected: Tensor, count: int) -> Tensor:
    """Round expected counts `(K,)` to whole ones that sum to `count`; return the labels `(N,)`."""
    expected = expected.nan_to_num().clamp_min(0)
    if not float(expected.sum()) > 0:  # an update without information: any labels will do
        expected = torch.ones_like(expected)
    expected = expected * count / expected.sum()
    whole = expected.floor().long()
    order = (expected - whole).argsort(descending=True, stable=True)
    whole[order[: count - int(whole.sum())]] += 1
    return torch.repeat_interleave(torch.arange(len(whole)), whole)

"""Reading images off the rows that a malicious server planted, and choosing among them."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from medpfl.attacks.base import AttackContext
from medpfl.attacks.reading import as_gradient
from medpfl.attacks.readout.rows import Gradients, explain, total_variation
from medpfl.outcomes import Status
from medpfl.planted import Planted, PlantedBins, PlantedTraps
from medpfl.settings.hints import checked
from medpfl.types import Observation, Reconstruction

# Root mean square of a difference below which two read-outs are one image, on pixels in [0, 1].
_SAME = 0.02
_TOGETHER = 16


@dataclass(frozen=True)
class _Sign:
    """What is known of one read-out without the truth; see `medpfl.planted.QUALITY`."""

    row: int
    label: int
    mismatch: float
    out_of_range: float


@dataclass(frozen=True, kw_only=True)
class RowReadout(ABC):
    """Divide the gradient of a row by that of its bias: the image, where one alone is in the row.

    The network that was sent says how loud an image by itself would be under each label. Where no
    label explains the row's loudness, several images are in it: such read-outs are handed in last,
    and as many as there are images behind the update.

    Args:
        name: of the attack.
    """

    name: str
    reads: ClassVar[type[Planted]]

    @property
    def requires(self) -> frozenset[str]:
        """See `Attack.requires`."""
        return frozenset({"num_examples"})

    def fits(self, planted: type[Planted] | None) -> bool:
        """Tell whether it reads what is planted."""
        return planted is not None and issubclass(planted, self.reads)

    def check(self, model: nn.Module, batch_size: int) -> None:  # noqa: B027
        """See `Attack.check`: every network will do, as rows are put ahead of it."""

    def reconstruct(
        self, observations: Iterable[Observation], context: AttackContext
    ) -> Iterator[Reconstruction]:
        """See `Attack.reconstruct`."""
        for observation in observations:
            yield self._read(observation)

    @abstractmethod
    def clean(self, gradients: Gradients, planted: Planted) -> Gradients:
        """Return rows' gradients freed of what other rows tell of, too."""

    def _read(self, observation: Observation) -> Reconstruction:
        began, planted, spec = time.perf_counter(), observation.planted, observation.spec
        if planted is None:
            raise ValueError(f"{observation.capture_id}: nothing was planted")
        observation = as_gradient(observation)
        gradients = self.clean(Gradients.of(observation, planted), planted)
        finite = bool(gradients.biases.isfinite().all())
        signs = self._signs(observation, planted, gradients) if finite else []
        kept, copies = _told_apart(signs, observation, planted, gradients)
        inputs = [_pixels(gradients, s.row, planted, observation).clamp(0, 1) for s in kept]
        return Reconstruction(
            capture_id=observation.capture_id,
            inputs=torch.stack(inputs).float() if inputs else torch.zeros(0, *spec.shape),
            labels=torch.tensor([s.label for s in kept], dtype=torch.int64),
            objective=math.nan,
            status=_status(finite=finite, found=bool(kept)),
            steps=0,
            evaluations=0,
            seconds=time.perf_counter() - began,
            closed_form=True,
            quality={
                "mismatch": _column(s.mismatch for s in kept),
                "out_of_range": _column(s.out_of_range for s in kept),
                "total_variation": _column(map(total_variation, inputs)),
                "rows": _column(map(float, copies)),
            },
        )

    def _signs(
        self, observation: Observation, planted: Planted, gradients: Gradients
    ) -> list[_Sign]:
        """Return the signs of every row that some image switched on, the cleanest first."""
        rows, found = gradients.heard(), list[_Sign]()
        for first in range(0, len(rows), _TOGETHER):
            part = rows[first : first + _TOGETHER]
            images = [_pixels(gradients, row, planted, observation) for row in part]
            explained = explain(
                observation,
                planted,
                observation.spec.normalise(torch.stack(images)),
                part,
                gradients.biases[part],
            )
            outside = [float((image - image.clamp(0, 1)).abs().mean()) for image in images]
            found += map(
                _Sign, part, explained.labels.tolist(), explained.mismatch.tolist(), outside
            )
        return sorted(found, key=lambda sign: sign.mismatch)


@checked("attack")
@dataclass(frozen=True, kw_only=True)
class ImprintReadout(RowReadout):
    """Read an imprint: neighbouring rows differ by the images of one bin.

    d_k = g_k - g_(k+1), with g_K = 0, where rows are on from a threshold on. Fowl et al. 2022,
    Sec. 3.2.
    """

    name: str = "imprint"
    reads: ClassVar[type[Planted]] = PlantedBins

    def clean(self, gradients: Gradients, planted: Planted) -> Gradients:
        """See `RowReadout.clean`."""
        cumulative = isinstance(planted, PlantedBins) and planted.kind == "cumulative"
        return gradients.differences() if cumulative else gradients


@checked("attack")
@dataclass(frozen=True, kw_only=True)
class TrapReadout(RowReadout):
    """Read trap weights: each row is on for few images, and many rows for the same one.

    Boenisch et al. 2021, Sec. 4.
    """

    name: str = "trap_weights"
    reads: ClassVar[type[Planted]] = PlantedTraps

    def clean(self, gradients: Gradients, planted: Planted) -> Gradients:
        """See `RowReadout.clean`: rows are independent."""
        return gradients


def _pixels(gradients: Gradients, row: int, planted: Planted, observation: Observation) -> Tensor:
    """Return the image of a row, `(C, *S)` float64, as it was read: not cut to [0, 1]."""
    read = (gradients.row(row) / gradients.biases[row]).reshape(planted.shape)
    return observation.spec.denormalise(read)


def _told_apart(
    signs: Sequence[_Sign], observation: Observation, planted: Planted, gradients: Gradients
) -> tuple[list[_Sign], list[int]]:
    """Return the cleanest read-out of each image, and from how many rows it was read."""
    kept, images, copies = list[_Sign](), list[Tensor](), list[int]()
    for sign in signs:
        image = _pixels(gradients, sign.row, planted, observation).float()
        apart = [float((image - other).square().mean().sqrt()) for other in images]
        nearest = min(range(len(apart)), key=apart.__getitem__, default=None)
        if nearest is not None and apart[nearest] < _SAME:
            copies[nearest] += 1
        elif len(kept) < (observation.num_examples or len(signs)):
            kept.append(sign)
            images.append(image)
            copies.append(1)
    return kept, copies


def _status(*, finite: bool, found: bool) -> Status:
    if not finite:
        return Status.NON_FINITE
    return Status.CONVERGED if found else Status.NO_GRADIENT


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)

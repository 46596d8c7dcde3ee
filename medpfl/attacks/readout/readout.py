"""Reading images off the rows that a malicious server planted, and choosing among them."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from medpfl.attacks.base import AttackContext
from medpfl.attacks.reading import as_gradient
from medpfl.attacks.readout.apart import as_pixels, leaders_of, sketches_of
from medpfl.attacks.readout.reader import Reader
from medpfl.attacks.readout.rows import Gradients, explain, total_variation
from medpfl.outcomes import Status
from medpfl.planted import Planted, PlantedBins, PlantedTraps
from medpfl.settings.hints import checked
from medpfl.types import Observation, Reconstruction

# Root mean square of a difference on pixels in [0, 1]: below the first, two read-outs are one image
# with other traces of rounding; below the second, one of them has traces of other images.
_EQUAL, _SAME = 1e-4, 0.02
_TOGETHER = 16


@dataclass(frozen=True)
class _Sign:
    """What is known of one read-out without the truth; see `medpfl.planted.QUALITY`."""

    row: int
    label: int
    mismatch: float
    out_of_range: float
    sketch: Tensor
    rows: int


@dataclass(frozen=True, kw_only=True)
class RowReadout(ABC):
    """Divide the gradient of a row by that of its bias: the image, where one alone is in the row.

    The network that was sent says how loud an image by itself would be under each label. Where no
    label explains the row's loudness, several images are in it: such read-outs are handed in last,
    and as many as there are images behind the update.

    Args:
        name: of the attack.

    Attributes:
        reads: what it reads.
        selects: whether each image is handed in once, and no more than there are.
    """

    name: str
    reads: ClassVar[type[Planted]]
    selects: ClassVar[bool] = True

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
        gradients = self.clean(Gradients.of(as_gradient(observation), planted), planted)
        finite = bool(gradients.biases.isfinite().all())
        reader = Reader(gradients, planted, observation)
        signs = self._signs(reader) if finite else []
        kept = _chosen(signs, observation.num_examples) if self.selects else signs
        inputs = [reader.image(s.row).clamp(0, 1) for s in kept]
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
                "rows": _column(float(s.rows) for s in kept),
            },
        )

    def _signs(self, reader: Reader) -> list[_Sign]:
        """Return the signs of every image that rows give, the cleanest first."""
        gradients, planted, observation = reader.gradients, reader.planted, reader.observation
        rows = gradients.heard() if self.selects else gradients.switched_on()
        sketches = sketches_of(map(reader.seen, rows), math.prod(planted.shape))
        if planted.place is not None:
            sketches = as_pixels(sketches)
        groups = leaders_of(sketches, _EQUAL if self.selects else 0, range(len(rows)))
        found, leaders = list[_Sign](), list(groups)
        for first in range(0, len(leaders), _TOGETHER):
            part = leaders[first : first + _TOGETHER]
            own = [rows[one] for one in part]
            read = torch.stack([reader.image(row) for row in own])
            normalised = observation.spec.normalise(read)
            explained = explain(observation, planted, normalised, own, gradients.biases[own])
            mismatch = explained.mismatch.tolist()
            outside = (read - read.clamp(0, 1)).abs().flatten(1).mean(1)
            found += map(
                _Sign,
                own,
                explained.labels.tolist(),
                [max(m, reader.unexplained(r)) for m, r in zip(mismatch, own, strict=True)],
                outside.tolist(),
                sketches[part],
                [len(groups[one]) for one in part],
            )
        return sorted(found, key=lambda sign: sign.mismatch) if self.selects else found


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


@checked("attack")
@dataclass(frozen=True, kw_only=True)
class MicReadout(TrapReadout):
    """Hand in whatever every row gives that any image switched on, mixtures and copies alike.

    As "Client Security Alone Fails" counts: no read-out is left out, and there may be many more of
    them than images.
    """

    name: str = "mic"
    selects: ClassVar[bool] = False


def _chosen(signs: Sequence[_Sign], most: int | None) -> list[_Sign]:
    """Return the cleanest read-out of each image, with the rows that it was read from."""
    if not signs:
        return []
    sketches = torch.stack([sign.sketch for sign in signs])
    groups = leaders_of(sketches, _SAME, range(len(signs)))
    kept = [
        replace(signs[leader], rows=sum(signs[one].rows for one in own))
        for leader, own in groups.items()
    ]
    return kept[:most]


def _status(*, finite: bool, found: bool) -> Status:
    if not finite:
        return Status.NON_FINITE
    return Status.CONVERGED if found else Status.NO_GRADIENT


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)

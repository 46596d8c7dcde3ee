"""An imprint: all rows measure the same, each from another threshold on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.federated.malicious.base import ONE_UPDATE, Awaited, Planting
from medpfl.federated.malicious.bins import Query, joined, measured_edges, normal_edges, query_of
from medpfl.federated.malicious.drift import Loud, moves, still, trains
from medpfl.federated.malicious.place import check_place
from medpfl.models.rows import (
    Ahead,
    Rows,
    blocks_of,
    features_at,
    fill,
    of_client,
    planted,
    shape_at,
)
from medpfl.planted import Planted, PlantedBins
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.types import DataSpec, ServerPayload

# Of biases: their steps are this much larger, against the rounding of weights.
_REACH = 256.0
# How loud rows are where a sum of gradients is rounded to fixed point.
_SUMMED = 100.0


@checked("server")
@dataclass(frozen=True, kw_only=True)
class ImprintServer:
    """Plant rows whose gradients differ by the images of one bin (Fowl et al. 2022, Sec. 3).

    h(x) = <w, x> is cut into bins of equal probability. Of an image that is alone in its bin, the
    difference of two neighbouring rows' gradients over that of their biases' is the image. Of B
    images, a share of (1 - 1/K)^(B - 1) is alone, were the quantiles known exactly.

    Args:
        bins: K.
        kind: ``cumulative``: row k is on from its threshold on; ``sparse``: in its own bin alone,
            so that rows drift less into each other over local steps.
        auxiliary: where thresholds come from: ``dataset``: public images, which the threat model
            must grant; ``normal``: an assumed law.
        assumed: the share of the bins whose thresholds come from the assumed law all the same.
            Public images of few patients say little of what others' give, and all that lies beyond
            them would fall into one bin.
        query: w: ``random`` normal numbers, or the ``mean`` of the entries.
        support: share of the entries that w looks at.
        zero_rows: whether rows are zero, and one row beside them measures for all. What zeros move
            by is exact in a difference of float32 weights, whose other entries are rounded. None:
            where clients train.
        gain: how loud rows are: their responses, 1 / gain of what is measured, have a mean that is
            multiplied by it, and added to every entry of the image. None: 1; where one gradient is
            summed over clients, 100, as sums are rounded to a fixed point; where clients take
            several steps, so little that no row's response drifts by more than a hundredth of a
            bin. Adam's steps are then in proportion to gradients, too.
        place: the module that rows are put ahead of; null: the whole network.
    """

    name: ClassVar[str] = "imprint"
    is_honest: ClassVar[bool] = False
    plants: ClassVar[type[Planted]] = PlantedBins
    size: ClassVar[str] = "server.bins"

    bins: Annotated[int, Range(2, 1_000_000)] = 1000
    kind: Literal["cumulative", "sparse"] = "cumulative"
    auxiliary: Literal["normal", "dataset"] = "dataset"
    assumed: Annotated[float, Range(0, 1, "[)")] = 0.0
    query: Query = "random"
    support: Annotated[float, Range(0, 1, "(]")] = 1.0
    zero_rows: bool | None = None
    gain: Annotated[float, Range(0, 1e6, "(]")] | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        choices = {
            "kind": ("cumulative", "sparse"),
            "auxiliary": ("normal", "dataset"),
            "query": ("random", "mean"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"server.{name}={getattr(self, name)}: choose {' or '.join(known)}"
                )
        if self.assumed and self.place is not None:
            raise ConfigurationError(
                f"server.assumed={self.assumed:g}: nothing is assumed of features, only of pixels: "
                f"set it to 0, or server.place=null, not {self.place}"
            )

    @property
    def wants_public(self) -> bool:
        """See `Server.wants_public`."""
        return self.auxiliary == "dataset"

    def describe(self, awaited: Awaited) -> str | None:
        """See `Server.describe`."""
        images, together = awaited.images, awaited.images / self.columns(awaited)
        share = (1 - 1 / self.bins) ** (together - 1)
        return (
            f"{self.name}: {self.bins:,} {self.kind} bins {self._at}, thresholds by "
            f"{'public images' if self.wants_public else 'an assumed normal law'}; of {images} "
            f"image{'' if images == 1 else 's'} {100 * share:.1f} % are expected to be alone in one"
        )

    @property
    def _at(self) -> str:
        return "ahead of the network" if self.place is None else f"ahead of {self.place}"

    def entries(self, payload: ServerPayload, spec: DataSpec, awaited: Awaited) -> int:
        """See `Server.entries`."""
        entries = shape_at(payload, self.place, spec.shape).numel()
        return self.bins * self.columns(awaited) * (entries + 1)

    def columns(self, awaited: Awaited) -> int:
        """Return how many clients have columns of their own."""
        return 1

    def plant(
        self,
        payload: ServerPayload,
        spec: DataSpec,
        public: Tensor | None,
        generator: torch.Generator,
        awaited: Awaited = ONE_UPDATE,
    ) -> Planting:
        """See `Server.plant`."""
        shape = shape_at(payload, self.place, spec.shape)
        entries = shape.numel()
        query = query_of(self.query, entries, self.support, generator)
        edges, widths = self._bins(payload, spec, public, query)
        loud = self._loud(payload, spec, public, awaited)
        clients, apart = self.columns(awaited), self._has_zero_rows(awaited)
        rows = self._rows(query, edges, 1 / widths, loud, apart=apart, clients=clients)
        sent, weights, biases = planted(payload, rows, self.place)
        secret = PlantedBins(
            weights=weights,
            biases=biases,
            shape=tuple(shape),
            place=self.place,
            reach=rows.reach,
            clients=clients,
            kind=self.kind,
            edges=edges,
        )
        told = [check_place(payload, self.place, spec, entries)]
        if moves(awaited):
            told.append(f"rows are {loud.gain:.3g} times as loud as where clients take one step")
        return Planting(
            sent,
            secret,
            partial(of_client, sent, weights[0]) if clients > 1 else None,
            measured=tuple(filter(None, told)),
        )

    def _has_zero_rows(self, awaited: Awaited) -> bool:
        return trains(awaited) if self.zero_rows is None else self.zero_rows

    def _loud(
        self, payload: ServerPayload, spec: DataSpec, public: Tensor | None, awaited: Awaited
    ) -> Loud:
        if self.gain is not None:
            return Loud(self.gain)
        if not moves(awaited):
            return Loud(_SUMMED if awaited.clients > 1 else 1.0)
        return still(
            payload,
            spec,
            awaited,
            public,
            place=self.place,
            # Responses are in bins, or in standard deviations, of which a bin is 1 / K or wider.
            bin_width=1.0 if self.kind == "sparse" else 1 / self.bins,
            rows=self.bins,
        )

    def _rows(
        self,
        query: Tensor,
        edges: Tensor,
        scales: Tensor,
        loud: Loud,
        *,
        apart: bool,
        clients: int,
    ) -> Rows:
        """Return K rows that respond with (<w, x> - edge) scale, as loudly as said."""
        scales = scales * loud.response
        ahead = Ahead(query, edges.float(), scales.float()) if apart else None
        rows = Rows(
            len(query),
            blocks_of(self.bins, clients * len(query)),
            gain=loud.gain,
            # Biases that are zero lose nothing to rounding, and need no reach.
            reach=1.0 if apart else _REACH,
            sparse=self.kind == "sparse",
            top=loud.response,
            ahead=ahead,
            clients=clients,
        )
        zero = torch.zeros(1)

        def made(first: int, last: int) -> tuple[Tensor, Tensor]:
            if apart:
                return zero, zero
            own = scales[first:last]
            return own[:, None].float() * query, -(edges[first:last] * own).float()

        fill(rows, made)
        return rows

    def _bins(
        self, payload: ServerPayload, spec: DataSpec, public: Tensor | None, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the thresholds, `(K,)` float64, and what responses are measured in.

        That is the standard deviation of h for rows without an upper end, and the bin's width for
        those with one, whose last bin ends where the first begins: far out.
        """
        if self.auxiliary == "normal":
            edges, std = normal_edges(query, self.bins, spec)
        elif public is None:
            raise ValueError("public images are wanted: grant 'auxiliary'")
        else:
            features = features_at(payload, self.place, spec.normalise(public))
            found, by_law = features.flatten(1).double().cpu(), round(self.assumed * self.bins)
            edges, std = measured_edges(found @ query.double(), self.bins - by_law)
            if by_law:
                edges = joined(edges, normal_edges(query, by_law + 1, spec)[0])
        if self.kind == "cumulative":
            return edges, torch.full_like(edges, std)
        above = edges[-1] + 20 * std
        return edges, torch.diff(edges, append=above[None])

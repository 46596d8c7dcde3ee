"""The bounds of every captured update, as the group ``bounds`` asks for them.

This is judgement, with the truth in hand: nothing of it reaches an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn

from medpfl.bounds.columns import UpdateBound
from medpfl.bounds.expectation import PARTS, Expected, expected
from medpfl.bounds.fisher import affordable, information
from medpfl.bounds.information import Bound
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.prior import GaussianPrior
from medpfl.bounds.release import NoBound, Release, release_of
from medpfl.errors import ConfigurationError
from medpfl.seeding import generator
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range, Steps
from medpfl.training import LocalTraining
from medpfl.types import Capture, DataSpec, ServerPayload

LARGEST = 20_000_000
"""Unknowns times numbers of an update, up to which an exact J'J takes some three seconds."""
_MOST_OF_PRIOR = 4_096
_KEPT = 16
_JUMPS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_TRIED = 4
Images = Annotated[int, Range(2, 1_000_000)]


@checked("bounds")
@dataclass(frozen=True, kw_only=True)
class UpdateBounds:
    """Bound what each captured update tells of its images.

    Args:
        largest: unknowns times numbers of an update, up to which bounds are computed; None always
            computes them, and estimates what is too large to be formed.
        public_images: held-out images that the covariance of images is taken from, at most.
        points: public images of each class over which J'J is averaged, at least 4.
        probes: random patterns for an estimate.
        lanczos_steps: products that each of them takes.
    """

    largest: Annotated[int, Range(1, 10**18)] | None = LARGEST
    public_images: Images = 512
    points: Annotated[int, Range(PARTS, 100_000)] = 8
    probes: Annotated[int, Range(2, 100_000)] = 8
    lanczos_steps: Steps = 24

    def over(
        self, *, spec: DataSpec, public: Callable[[int], PublicImages | None], seed: int
    ) -> BoundUpdates | None:
        """See `Bounding.over`."""
        return BoundUpdates(self, spec=spec, public=public, seed=seed)


@dataclass(frozen=True, kw_only=True)
class PublicImages:
    """Images like the attacked ones, none of them attacked.

    Args:
        inputs: `(n, C, *S)` in [0, 1].
        labels: `(n,)`.
    """

    inputs: Tensor
    labels: Tensor


class Bounding(Protocol):
    """What the group ``bounds`` asks for."""

    def over(
        self, *, spec: DataSpec, public: Callable[[int], PublicImages | None], seed: int
    ) -> BoundUpdates | None:
        """Return what bounds the updates of a run; None where nothing is asked for.

        Args:
            spec: the kind of data.
            public: reads so many public images at most; None where there are none.
            seed: the run's.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class NoBounds:
    """No bounds are computed: the group ``bounds=none``."""

    def over(
        self, *, spec: DataSpec, public: Callable[[int], PublicImages | None], seed: int
    ) -> BoundUpdates | None:
        """See `Bounding.over`."""
        return None


class BoundUpdates:
    """Bounds updates one by one, and keeps what they share.

    A bound is one of an update by itself: of several updates of the same images, J'J add up, and
    whoever combines them may be nearer. It takes some ten d x d matrices at most, d the unknowns
    of an update: a gigabyte and a half for the 4,096 up to which van Trees is computed.

    Args:
        settings: what is asked for.
        spec: the kind of data.
        public: see `Bounding.over`; asked once they are needed.
        seed: the run's.
    """

    def __init__(
        self,
        settings: UpdateBounds,
        *,
        spec: DataSpec,
        public: Callable[[int], PublicImages | None],
        seed: int,
    ) -> None:
        self._settings, self._spec, self._seed = settings, spec, seed
        self._tied = spec.greyscale and spec.shape[0] > 1
        self._read = public
        self._public: PublicImages | None = None
        self._prior: GaussianPrior | None = None
        self._kept: list[tuple[ServerPayload, object, Bound | NoBound]] = []

    @property
    def is_asked_for(self) -> bool:
        """Whether bounds are computed however long they take."""
        return self._settings.largest is None

    def try_products(self, capture: Capture) -> int:
        """Make a few products with J'J, to be timed, and return how many."""
        release = self.applies(capture)
        if isinstance(release, NoBound) or capture.truth is None:
            return 1
        pixel_map = self._map(capture, release)
        count = _TRIED if affordable(pixel_map) else 1
        device = pixel_map.probabilities.device
        rows = torch.eye(count, pixel_map.unknowns, dtype=torch.float64, device=device)
        pixel_map.gram_at(capture.truth.inputs.to(device))(rows)
        return count

    def products(self, capture: Capture, *, captures: int, sets: int) -> int:
        """Return how many products all bounds take.

        Args:
            capture: one of them.
            captures: how many there are.
            sets: of how many combinations of classes and networks.
        """
        release = self.applies(capture)
        if isinstance(release, NoBound):
            return 0
        pixel_map = self._map(capture, release)
        averaged = 0 if self._why_no_van_trees(capture) else self._settings.points * sets
        drawn = self._settings.probes * self._settings.lanczos_steps * 2
        own = pixel_map.unknowns if affordable(pixel_map) else drawn
        return captures * own + averaged * pixel_map.unknowns

    def applies(self, capture: Capture) -> Release | NoBound:
        """Return what an update releases, or why nothing bounds it, before anything is computed."""
        if capture.truth is None or capture.training is None:
            return NoBound(reason="nobody knows the images, or how the update came about")
        if capture.observation.aggregate is not None:
            return NoBound(
                reason="a sum of clients is seen, which tells less of each than its own update; "
                "threat.aggregation=individual bounds that"
            )
        if capture.observation.same_images is not None:
            return NoBound(
                reason="the attacker sees several updates of the same images, and a bound is one "
                "of a single update; leave same_images out of threat.knows"
            )
        if self._tied and not bool((capture.truth.inputs == capture.truth.inputs[:, :1]).all()):
            return NoBound(reason="an image has a tint, and those of its dataset have none")
        if capture.observation.buffers is not None:
            return NoBound(reason="BatchNorm's statistics are seen as well, and carry no noise")
        release = release_of(capture.defense)
        if isinstance(release, NoBound):
            return release
        if release.remembers and capture.round > 0:
            return NoBound(reason="the update holds what was kept of the rounds before it, as well")
        if release.alone and (len(capture.truth.ids) > 1 or capture.training.kind != "gradient"):
            return NoBound(
                reason="every image is clipped by itself, and several images or steps are one "
                "update: see epsilon and what follows from it"
            )
        pixel_map, largest = self._map(capture, release), self._settings.largest
        size = pixel_map.unknowns * pixel_map.entries
        if largest is not None and size > largest:
            return NoBound(
                reason=f"{pixel_map.unknowns:,} unknowns times {pixel_map.entries:,} numbers an "
                f"update take long (bounds.largest={largest:,}); bounds=update computes them"
            )
        return release

    def left_out(self, capture: Capture) -> str | None:
        """Return why van Trees' bound is left out, where the others are not; else None."""
        found = self._why_no_van_trees(capture)
        return None if found is None else found.reason

    def bound(self, capture: Capture) -> UpdateBound | None:
        """Return the bounds of an update, in the order of its images; None where none applies."""
        release = self.applies(capture)
        if isinstance(release, NoBound) or capture.truth is None:
            return None
        pixel_map = self._map(capture, release)
        own = information(
            pixel_map,
            capture.truth.inputs.to(pixel_map.probabilities.device),
            probes=self._settings.probes,
            steps=self._settings.lanczos_steps,
            generator=generator(self._seed, "bounds", capture.capture_id),
        )
        unbiased = own.cramer_rao(release.std)
        rank = own.effective_rank()
        shared = {
            "fisher_loss": own.fisher_information_loss(release.std).value,
            "effective_rank": rank.value,
            "effective_rank_error": rank.standard_error,
        }
        count = len(unbiased.per_pixel)
        rows: list[dict[str, float]] = [dict(shared) for _ in range(count)]
        for row, pixels in zip(rows, unbiased.per_pixel, strict=True):
            row["cramer_rao_mse"] = float(pixels.mean())
            row["cramer_rao_mse_error"] = unbiased.standard_error
        left = None
        average = self._van_trees(capture, pixel_map, release)
        if isinstance(average, Bound):
            prior = self._of_images().to(pixel_map.probabilities.device)
            left = own.van_trees(release.std, prior).per_pixel.clamp_min(0).float().cpu()
            for place, row in enumerate(rows):
                row |= _of_average(average, float(left[place].mean()), prior.variance)
        return UpdateBound(columns=tuple(rows), left=left)

    def _map(self, capture: Capture, release: Release) -> PixelMap:
        seen = capture.observation
        labels = torch.empty(0) if capture.truth is None else capture.truth.labels
        return PixelMap.of(
            seen.payload,
            labels,
            training=capture.training or LocalTraining(),
            spec=self._spec,
            tied=self._tied,
            seen=tuple(seen.tensors),
            before=release.clipped,
        )

    def _van_trees(
        self, capture: Capture, pixel_map: PixelMap, release: Release
    ) -> Bound | NoBound:
        """Return the bound on average over images of these classes, kept for the next capture."""
        why = self._why_no_van_trees(capture)
        if why is not None:
            return why
        seen, truth = capture.observation, capture.truth
        labels = () if truth is None else tuple(truth.labels.tolist())
        key = (labels, capture.training, tuple(seen.tensors), release)
        for payload, other, bound in self._kept:
            if other == key and _same_network(payload, seen.payload):
                return bound
        points = self._points(labels)
        found = self._expected(pixel_map, points).van_trees(release.std, self._of_images())
        self._kept = [*self._kept[1 - _KEPT :], (seen.payload, key, found)]
        return found

    def _expected(self, pixel_map: PixelMap, points: list[Tensor]) -> Expected:
        device = pixel_map.probabilities.device
        return expected(pixel_map, [inputs.to(device) for inputs in points])

    def _points(self, labels: tuple[int, ...]) -> list[Tensor]:
        """Draw public images of the classes of an update, all of an update's different."""
        public, count = self._images(), self._settings.points
        if public is None:
            return []
        stream = generator(self._seed, "bounds", "points")
        queues: dict[int, list[int]] = {}
        points = []
        for _ in range(count):
            chosen = []
            for label in labels:
                queue = queues.get(label) or _shuffled(public.labels, label, stream)
                chosen.append(queue[0])
                queues[label] = queue[1:]
            points.append(public.inputs[chosen])
        return points

    def _why_no_van_trees(self, capture: Capture) -> NoBound | None:
        model = capture.observation.payload.model
        jumps = sorted({type(m).__name__ for m in model.modules() if isinstance(m, _JUMPS)})
        if jumps:
            return NoBound(
                reason=f"the network's {' and '.join(jumps)} make updates jump as pixels move"
            )
        unknowns = torch.Size(self._spec.shape[1:] if self._tied else self._spec.shape).numel()
        if unknowns * len(() if capture.truth is None else capture.truth.ids) > _MOST_OF_PRIOR:
            return NoBound(
                reason=f"a covariance of {unknowns:,} unknowns is too large to be formed"
            )
        public = self._images()
        if public is None:
            return NoBound(reason="the dataset has no held-out images to learn a covariance from")
        for label in () if capture.truth is None else torch.unique(capture.truth.labels).tolist():
            there = int((public.labels == label).sum())
            if there < PARTS:
                return NoBound(reason=f"of class {label} there are {there} held-out images")
        return None

    def _images(self) -> PublicImages | None:
        if self._public is None:
            found = self._read(self._settings.public_images)
            if found is not None and self._tied:
                # Of a dataset that is called greyscale, a few images may have a tint.
                grey = found.inputs.mean(1, keepdim=True).expand_as(found.inputs)
                found = PublicImages(inputs=grey, labels=found.labels)
            self._public = found
        return self._public

    def _of_images(self) -> GaussianPrior:
        if self._prior is None:
            public = self._images()
            if public is None:
                raise ConfigurationError("bounds: there are no public images")
            self._prior = GaussianPrior.from_classes(public.inputs, public.labels, tied=self._tied)
        return self._prior


def _of_average(average: Bound, here: float, before: float) -> Mapping[str, float]:
    return {
        "bound_mse": max(0.0, average.value),
        "bound_mse_error": average.standard_error,
        "posterior_mse": here,
        "prior_mse": before,
    }


def _shuffled(labels: Tensor, label: int, stream: torch.Generator) -> list[int]:
    own = torch.nonzero(labels == label).flatten()
    return [int(i) for i in own[torch.randperm(len(own), generator=stream)]]


def _same_network(one: ServerPayload, other: ServerPayload) -> bool:
    if one is other:
        return True
    same = one.batch_norm == other.batch_norm and list(one.parameters) == list(other.parameters)
    pairs = [(t, other.parameters[n]) for n, t in one.parameters.items()] if same else []
    buffers = [(t, other.buffers.get(n)) for n, t in one.buffers.items()] if same else []
    return same and all(b is not None and torch.equal(a, b) for a, b in (*pairs, *buffers))

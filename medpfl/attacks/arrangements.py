"""Which image is behind which step, where the attacker cannot know: what is possible, and tried.

Behind a sum over clients, that is also which images are whose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from medpfl.attacks.reading import clients_of, knows_order
from medpfl.settings.hints import checked
from medpfl.settings.ranges import Range
from medpfl.training import LocalTraining
from medpfl.types import Observation

# Of few arrangements, chance draws some many times before it has drawn all. Of K alike, all but
# one known, this many draws for each of them miss the last one with a chance of e^-20.
_DRAWS_EACH = 20


@dataclass(frozen=True)
class Arrangement:
    """What a search takes for the truth about the clients' images.

    Args:
        labels: `(N,)` int64, of the images as the attacker numbers them; None where they are
            searched for, too.
        order: `(T,)` int64, the images of all steps one after another; None for the update map's.
    """

    labels: Tensor | None
    order: Tensor | None = None


@checked("attack.arrangements")
@dataclass(frozen=True, kw_only=True)
class Arrangements:
    """Arrangements are drawn; the likeliest are searched under for a while, and the better go on.

    A client that trains in local batches sends an update that depends on which images were in a
    batch together, and on their labels. Counting labels says of one step how many there are of
    each, not where; over several steps the network changes too much for counting; an order may be
    withheld. Already on blank images, training under the right arrangement leads to nearly the
    update that was seen. After that a wrong one cannot explain the update to the end, so that the
    objective alone tells: successive halving (Jamieson and Talwalkar 2016), until as many are left
    as there are restarts, which begin there.

    Args:
        considered: arrangements held against the update on blank images; where there are more,
            drawn by chance.
        most: searched under.
        steps: of the first short search; each next one takes longer as fewer take part.
        keep: the share that goes on.
    """

    considered: Annotated[int, Range(2, 1_000_000)] = 512
    most: Annotated[int, Range(1, 10_000)] = 12
    steps: Annotated[int, Range(1, 100_000)] = 60
    keep: Annotated[float, Range(0, 1, "()")] = 1 / 3

    def of(
        self,
        observation: Observation,
        labels: Tensor | None,
        *,
        classes: int | None,
        generator: torch.Generator,
    ) -> list[Arrangement]:
        """Return the arrangements to try, all different to the update map; at least one.

        Args:
            observation: the update.
            labels: `(N,)`, or None where they are searched for.
            classes: where labels were counted, of how many; None where they were granted, and so
                belong to the client's own numbering.
            generator: draws them.
        """
        if observation.num_examples is None:
            raise ValueError("the number of examples is withheld: call ThreatModel.require first")
        ordered = knows_order(observation)
        settled = labels is None or (classes is None and ordered)
        if settled and ordered:
            return [Arrangement(labels)]
        draw = _Draw(clients_of(observation), labels, settled, ordered, classes, generator)
        return list(draw.different(self.considered))

    def survivors(self, count: int, restarts: int) -> int:
        """Return how many of `count` arrangements go on to the next search."""
        return max(restarts, math.ceil(count * self.keep))


_Clients = tuple[tuple[LocalTraining, int], ...]
"""Of each client what it does, its order included, and its number of images."""


@dataclass(frozen=True)
class _Draw:
    clients: _Clients
    labels: Tensor | None
    settled: bool
    ordered: bool
    classes: int | None
    generator: torch.Generator

    def different(self, most: int) -> Iterator[Arrangement]:
        """Yield arrangements that differ in more than the images' numbers, the plainest first."""
        known: set[_Signature] = set()
        plain, in_vain = (self.labels, self.clients), 0
        for number in range(most * _DRAWS_EACH):
            labels, clients = self._drawn() if number else plain
            signature = _signature(labels, clients)
            if signature in known:
                in_vain += 1
                if in_vain > _DRAWS_EACH * (len(known) + 1):
                    return
                continue
            in_vain = 0
            known.add(signature)
            yield Arrangement(labels, None if self.ordered else _flat(clients))
            if len(known) == most:
                return

    def _drawn(self) -> tuple[Tensor | None, _Clients]:
        labels, clients = self.labels, self.clients
        if labels is not None and not self.settled:
            labels = self._labels(labels)
        if not self.ordered:
            # Every arrangement has steps of the sizes that the update map has.
            clients = tuple(
                (replace(t, sampling="epochs").drawn(size, self.generator), size)
                for t, size in clients
            )
        return labels, clients

    def _labels(self, labels: Tensor) -> Tensor:
        images = len(labels)
        if self.classes is None:
            return labels[torch.randperm(images, generator=self.generator)]
        return torch.randint(self.classes, (images,), generator=self.generator)


def _flat(clients: _Clients) -> Tensor:
    """Return the images of all clients' steps, numbered among the images of all."""
    taken, first = list[int](), 0
    for training, size in clients:
        taken += [first + image for batch in training.order or () for image in batch]
        first += size
    return torch.tensor(taken)


_Signature = tuple[tuple[tuple[int, ...], ...], ...]


def _signature(labels: Tensor | None, clients: _Clients) -> _Signature:
    """Return of every image its label and the steps it is in, client by client.

    It does not say which image it is, nor, of clients of as many images, which client.
    """
    found, first = list[tuple[tuple[int, ...], ...]](), 0
    for training, size in clients:
        steps: list[list[int]] = [[] for _ in range(size)]
        for step, batch in enumerate(training.order or ()):
            for image in batch:
                steps[image].append(step)
        own = [0] * size if labels is None else labels[first : first + size].tolist()
        found.append(tuple(sorted((c, *taken) for c, taken in zip(own, steps, strict=True))))
        first += size
    return tuple(sorted(found))

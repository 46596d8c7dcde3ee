"""Which updates can be searched for side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from torch import Tensor

from medpfl.attacks.unknowns import Unknowns
from medpfl.models.structure import architecture
from medpfl.training import UpdateMap
from medpfl.types import DefenseFacts, Observation, ServerPayload

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """What a batch of rows has in common.

    Args:
        payload: the network: of all of them, or of the first, where each brings its own.
        names: the parameters whose updates are seen.
        shared: whether all were sent this very payload.
        update: from images to update.
        unknowns: how a row's vector is read.
        copies: how many times each image is among the unknowns.
        defense: what is known of the client's defense, in its order; none of it where that is
            withheld, or where there is none.
        unit: how much of the update, as it was sent, one unit of a gradient is: learning rate times
            steps of a delta, where they are known.
        auxiliary: `(A, C, *S)` in [0, 1]: public images; None where withheld.
        expected: images of a client's step, in the mean where they are drawn.
        earlier: of the rounds in which the same images were seen before, first to last.
    """

    payload: ServerPayload
    names: tuple[str, ...]
    shared: bool
    update: UpdateMap
    unknowns: Unknowns
    copies: int = 1
    defense: tuple[DefenseFacts, ...] = ()
    unit: float = 1.0
    auxiliary: Tensor | None = None
    expected: float = 1
    earlier: tuple[Problem, ...] = ()

    @property
    def rounds(self) -> tuple[Problem, ...]:
        """All rounds that a row must explain, first to last."""
        return (*self.earlier, self)

    def key(self) -> Hashable:
        """Return what must be equal for rows to be evaluated together, payloads aside."""
        payload = self.payload
        shapes = tuple((name, p.shape, p.device) for name, p in payload.parameters.items())
        statistics = tuple((name, b.shape) for name, b in payload.buffers.items())
        network = (architecture(payload.model), payload.training, shapes, statistics)
        # Tensors are not compared: of one source, the public images are one tensor.
        public = id(self.auxiliary)
        known = (
            self.update,
            self.unknowns,
            self.copies,
            self.defense,
            self.unit,
            self.expected,
            public,
        )
        return (network, self.names, *known, tuple(problem.key() for problem in self.earlier))


ProblemOf = Callable[[Observation], Problem]


def problems(
    observations: Iterable[Observation], problem_of: ProblemOf
) -> Iterator[tuple[Problem, Iterator[Observation]]]:
    """Split a stream of observations where the problem changes, and read it only as it is asked.

    Neighbours that were sent one payload share it; neighbours that were each sent another one are
    searched side by side all the same, every row with its own. Each part must be read to its end
    before the next one.

    Args:
        observations: in any order; only neighbours are put together.
        problem_of: what an observation alone is.
    """
    ahead = _Ahead(observations)
    while (first := ahead.peek()) is not None:
        problem = problem_of(first)
        part = _Part(ahead, problem, problem_of)
        yield part.problem, part.members()


class _Part:
    def __init__(self, ahead: _Ahead[Observation], problem: Problem, problem_of: ProblemOf) -> None:
        self._ahead, self._problem_of, self._key = ahead, problem_of, problem.key()
        self._first = next(ahead)
        second = ahead.peek()
        shared = second is None or not self._fits(second) or _same_networks(second, self._first)
        self.problem = replace(problem, shared=shared)

    def members(self) -> Iterator[Observation]:
        """Yield the observations of this part."""
        last = self._first
        yield last
        while (following := self._ahead.peek()) is not None:
            same = _same_networks(following, last)
            if same != self.problem.shared or not self._fits(following):
                return
            last = next(self._ahead)
            yield last

    def _fits(self, observation: Observation) -> bool:
        return self._problem_of(observation).key() == self._key


def _same_networks(a: Observation, b: Observation) -> bool:
    """Say whether both were sent the very same payloads, round by round."""
    pairs = zip(a.rounds, b.rounds, strict=False)
    return len(a.rounds) == len(b.rounds) and all(x.payload is y.payload for x, y in pairs)


class _Ahead(Iterator[T], Generic[T]):
    """An iterator that can be looked at one item ahead."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._waiting: list[T] = []

    def peek(self) -> T | None:
        """Return the next item and leave it there; None at the end."""
        if not self._waiting:
            item = next(self._items, None)
            if item is None:
                return None
            self._waiting.append(item)
        return self._waiting[0]

    def __next__(self) -> T:
        """Return the next item."""
        return self._waiting.pop() if self._waiting else next(self._items)

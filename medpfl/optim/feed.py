"""Queues that may have more after they were empty."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Feed(Iterator[T]):
    """An iterator into which more can be put at any time, also once it has ended.

    Args:
        source: what it yields where nothing was put in.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._first: deque[T] = deque()

    def put(self, item: T) -> None:
        """Have an item yielded before anything from the source."""
        self._first.append(item)

    def __next__(self) -> T:
        """Return what was put in, oldest first, then the source's next."""
        return self._first.popleft() if self._first else next(self._source)


class Renewed(Iterator[T]):
    """An iterator that is made anew whenever it has ended and is asked again.

    Args:
        make: makes it; what it makes may be empty.
    """

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._current = make()

    def __next__(self) -> T:
        """Return the next item; StopIteration where a new iterator is empty, too."""
        try:
            return next(self._current)
        except StopIteration:
            self._current = self._make()
            return next(self._current)

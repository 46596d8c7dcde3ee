"""Queues that may have more after they were empty."""

from __future__ import annotations

from itertools import islice

import pytest

from medpfl.optim.feed import Feed, Renewed


def test_what_is_put_in_comes_before_the_source() -> None:
    feed = Feed(iter([1, 2]))
    assert next(feed) == 1
    feed.put(10)
    feed.put(11)
    assert list(feed) == [10, 11, 2]


def test_a_feed_goes_on_after_it_has_ended() -> None:
    feed: Feed[int] = Feed(iter([]))
    assert list(islice(feed, 2)) == []
    feed.put(3)
    assert list(islice(feed, 2)) == [3]
    with pytest.raises(StopIteration):
        next(feed)


def test_a_renewed_iterator_reads_on_where_its_source_has_more_again() -> None:
    feed = Feed(iter([1]))
    renewed = Renewed(lambda: (item for item in feed))
    assert list(islice(renewed, 5)) == [1]
    feed.put(4)
    assert list(islice(renewed, 5)) == [4]
    assert list(islice(renewed, 5)) == []

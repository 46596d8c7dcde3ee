"""Which images are attacked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpfl.data.select import PublishedSelection, Selector
from medpfl.errors import ConfigurationError, DataError

BRAIN = PublishedSelection(split="train", size=5712, stride=54)


def names(n: int) -> list[str]:
    return [f"class/{i:05d}" for i in range(n)]


def choose(
    n, *, n_images=None, seed=0, select="stride", stride="auto", published=None, bad=frozenset()
):
    selector = Selector(select=select, stride=stride, published=published)
    return selector.choose(names(n), n_images=n_images, seed=seed, unreadable=bad)


@pytest.mark.parametrize(
    ("size", "stride", "last"),
    [(5712, 54, 54 * 99), (1000, 10, 990), (251, 3, 249)],  # BIBM's brain MRI, melanoma, COVID
)
def test_published_sizes_take_the_published_stride(size, stride, last):
    published = PublishedSelection(split="train", size=size, stride=stride)
    for n_images in (None, 100) if size > 251 else (None, 84):
        selection = choose(size, published=published, n_images=n_images)
        assert selection.indices == tuple(range(0, last + 1, stride))
        assert "the published stride" in selection.note


@pytest.mark.parametrize(
    ("n", "stride", "count"), [(198, 2, 99), (226, 3, 76), (119, 2, 60), (100, 1, 100), (7, 1, 7)]
)
def test_other_sizes_take_a_stride_that_visits_at_most_100(n, stride, count):
    selection = choose(n, published=BRAIN)
    assert selection.indices == tuple(range(0, n, stride))
    assert len(selection.indices) == count
    assert "published stride 54 is for the train split of 5712" in selection.note


def test_fewer_images_than_visited_are_spread_over_all_of_them():
    assert choose(198, n_images=4).indices == (0, 48, 98, 148)
    assert choose(5712, n_images=4, published=BRAIN).indices == (0, 54 * 25, 54 * 50, 54 * 75)


@given(
    n=st.integers(1, 700),
    stride=st.one_of(st.just("auto"), st.integers(1, 60)),
    n_images=st.one_of(st.none(), st.integers(1, 120)),
    bad=st.sets(st.integers(0, 699), max_size=20),
    select=st.sampled_from(["stride", "random"]),
    seed=st.integers(0, 5),
)
def test_a_selection_holds_the_number_of_distinct_readable_images(
    n, stride, n_images, bad, select, seed
):
    readable = [i for i in range(n) if i not in bad]
    try:
        indices = choose(
            n, n_images=n_images, stride=stride, select=select, seed=seed, bad=bad
        ).indices
    except DataError:
        step = -(-n // 100) if stride == "auto" else stride
        available = len(readable[::step]) if select == "stride" else len(readable)
        assert (n_images or 1) > available
        return
    assert list(indices) == sorted(set(indices))
    assert set(indices) <= set(readable)
    assert len(indices) == n_images if n_images else 1 <= len(indices) <= 100


def test_random_depends_on_the_seed_alone():
    first = choose(300, select="random", n_images=20, seed=0)
    assert first == choose(300, select="random", n_images=20, seed=0)
    assert first.indices != choose(300, select="random", n_images=20, seed=1).indices
    more = choose(300, select="random", n_images=40, seed=0)
    assert set(first.indices) < set(more.indices)


def test_too_many_images_say_what_to_change():
    with pytest.raises(DataError, match="stride 54 visits 4 of 198 images") as raised:
        choose(198, stride=54, n_images=100)
    assert "set dataset.stride=1 or n_images=4" in str(raised.value)
    with pytest.raises(DataError, match=r"n_images=198 and dataset\.stride=1"):
        choose(198, n_images=199)
    with pytest.raises(DataError, match="set n_images=198"):
        choose(198, select="random", n_images=199)


def listed(ids, wanted, **settings):
    selector = Selector(select=wanted, stride="auto")
    return selector.choose(ids, n_images=settings.get("n_images"), seed=0).indices


def test_ids_are_found_with_and_without_suffix_in_the_order_given():
    ids = ["a/1", "a/2", "b/x.png", "b/x.jpg", "b/dose_1.5", "b/y.png"]
    assert listed(ids, ["b/dose_1.5", "a/2.png", "a/1", "b/x.jpg", "b/y"]) == (4, 1, 0, 3, 5)
    assert listed(ids, ["a/2", "a/1"], n_images=1) == (1,)
    with pytest.raises(DataError, match=r"b/x\.png, b/x\.jpg"):
        listed(ids, ["b/x"])


def test_unknown_ids_suggest_close_ones():
    ids = ["glioma/Tr-gl_0048", "glioma/Tr-gl_0049", "notumor/Tr-no_0001"]
    with pytest.raises(DataError, match="glioma/Tr-gl_0048"):
        listed(ids, ["glioma/Tr-gl_048"])
    with pytest.raises(DataError, match="twice"):
        listed(ids, [ids[0], ids[0] + ".jpg"])
    with pytest.raises(DataError, match="names 1 readable"):
        listed(ids, [ids[0]], n_images=2)


@pytest.mark.parametrize(
    "settings",
    [{"select": "first"}, {"select": []}, {"stride": 0}, {"stride": "all"}, {"n_images": 0}],
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigurationError):
        choose(10, **settings)

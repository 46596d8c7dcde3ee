"""The streamed mean against the mean computed at once."""

from __future__ import annotations

import weakref

import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medpfl.federated.aggregate import WeightedMean

Update = dict[str, Tensor]


def updates(count: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Update]:
    stream = seeded(seed)

    def draw(*shape: int) -> Tensor:
        scale = 10 ** (8 * torch.rand((), generator=stream) - 4)
        return (scale * torch.randn(shape, generator=stream)).to(dtype)

    return [{"weight": draw(3, 4), "bias": draw(3), "scale": draw()} for _ in range(count)]


def streamed(given: list[Update], sizes: list[int]) -> Update:
    mean = WeightedMean()
    for update, size in zip(given, sizes, strict=True):
        mean.add(update, size)
    return mean.mean()


sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=12)
seeds = st.integers(0, 1000)


@given(sizes=sizes, seed=seeds)
def test_it_is_the_mean_computed_at_once(sizes, seed):
    sent = updates(len(sizes), seed)
    mean = streamed(sent, sizes)
    weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    for name in sent[0]:
        stacked = torch.stack([update[name] for update in sent])
        expected = torch.tensordot(weights, stacked, dims=1)
        torch.testing.assert_close(mean[name], expected, rtol=1e-12, atol=1e-10)


@given(sizes=sizes, seed=seeds, data=st.data())
def test_the_order_of_clients_does_not_matter(sizes, seed, data):
    sent = updates(len(sizes), seed)
    order = data.draw(st.permutations(range(len(sizes))))
    one, other = (
        streamed(sent, sizes),
        streamed([sent[i] for i in order], [sizes[i] for i in order]),
    )
    for name in one:
        largest = max(float(update[name].abs().max()) for update in sent)
        assert float((one[name] - other[name]).abs().max()) <= 1e-12 * largest


@given(size=st.integers(1, 10**9), seed=seeds)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_client_gives_its_own_tensors_to_the_bit(dtype, size, seed):
    sent = updates(1, seed, dtype)
    mean = streamed(sent, [size])
    for name, tensor in sent[0].items():
        assert mean[name].dtype == dtype
        assert torch.equal(mean[name], tensor)


def test_many_small_shares_do_not_vanish_in_a_large_one():
    large = {"w": torch.tensor([2.0**24])}
    small = {"w": torch.tensor([1.0])}
    mean = streamed([large] + [small] * 4096, [1] * 4097)
    assert mean["w"].item() == pytest.approx((2**24 + 4096) / 4097, rel=1e-7)


def test_what_was_added_is_left_as_it_was_and_not_kept():
    sent = updates(3, 0, torch.float32)
    before = [{n: t.clone() for n, t in update.items()} for update in sent]
    mean = WeightedMean()
    for update in sent:
        mean.add(update, 2)
    first = mean.mean()
    kept = {n: t.clone() for n, t in first.items()}
    mean.add(sent[0], 5)
    assert all(torch.equal(kept[n], t) for n, t in first.items())
    assert all(
        torch.equal(b[n], t)
        for b, update in zip(before, sent, strict=True)
        for n, t in update.items()
    )
    assert (mean.clients, mean.num_examples) == (4, 11)
    alive = [weakref.ref(t) for update in sent for t in update.values()]
    del sent, update, before
    assert all(ref() is None for ref in alive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_does_not_grow(dtype):
    mean = WeightedMean()
    for update in updates(20, 0, dtype):
        mean.add(update, 1)
        assert sum(total.nelement() for total in mean._sums.values()) == 12 + 3 + 1


@pytest.mark.parametrize(
    ("update", "size", "words"),
    [
        ({"a": torch.zeros(2)}, 1, r"other tensors than the first one: \['b'\]"),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, 1, r"\['c'\]"),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, 1, r"a has the shape \(3,\).*\(2,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(())}, 1, r"b has the shape \(\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(1, dtype=torch.int64)}, 1, r"no real numbers"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, 0, "0 images"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(update, size, words):
    mean = WeightedMean()
    mean.add({"a": torch.ones(2), "b": torch.ones(1)}, 3)
    with pytest.raises(ValueError, match=words):
        mean.add(update, size)
    assert (mean.clients, mean.num_examples) == (1, 3)
    assert torch.equal(mean.mean()["a"], torch.ones(2))


def test_there_is_no_mean_of_nothing():
    with pytest.raises(ValueError, match="no clients"):
        WeightedMean().mean()

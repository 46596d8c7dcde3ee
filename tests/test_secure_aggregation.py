"""Secure aggregation: the sum is exact, one masked update says nothing, and drop-outs."""

from __future__ import annotations

import functools
from collections.abc import Collection
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from medpfl.defenses.secure_aggregation import Aggregated, SecureAggregation
from medpfl.defenses.secure_aggregation.agreement import KeyPair
from medpfl.defenses.secure_aggregation.cost import PHASES
from medpfl.defenses.secure_aggregation.fixed_point import signed
from medpfl.errors import ConfigurationError, MedpflError
from medpfl.seeding import generator

Update = dict[str, Tensor]
CHEAP = {"bits": 32, "value_bits": 20}
few = settings(max_examples=15)


def updates(count: int, seed: int = 0) -> list[Update]:
    stream = generator(seed, "updates")
    # The more clients, the fewer entries: each entry's sum is held to fractions.
    shapes = {"weight": (7, 5) if count < 100 else (3,), "bias": (7,), "scale": ()}
    return [
        {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def examples(count: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 40, (count,), generator=generator(seed, "examples")).tolist()


def aggregate(
    sent: list[Update],
    weights: list[int],
    seed: int = 0,
    dropped: Collection[int] = (),
    silent: Collection[int] = (),
    **parameters: float,
) -> Aggregated:
    defense = SecureAggregation(**parameters)
    stream = generator(seed, "secure_aggregation", 1)
    return defense.aggregate(sent, weights, generator=stream, dropped=dropped, silent=silent)


def assert_exact(result: Aggregated, sent: list[Update], weights: list[int]) -> None:
    """Hold a sum to fractions: every entry is a sum of multiples of the step, none is lost."""
    view, defense_step = result.view, Fraction(result.view.step)
    assert view.num_examples == sum(weights[n] for n in view.survivors)
    for name, total in view.sum.items():
        for place, value in enumerate(total.reshape(-1).tolist()):
            entries = [(weights[n], sent[n][name].reshape(-1)[place]) for n in view.survivors]
            steps = sum(w * round(Fraction(float(x)) / defense_step) for w, x in entries)
            exact = sum(w * Fraction(float(x)) for w, x in entries)
            assert round(value / view.step) == steps
            assert abs(Fraction(value) - exact) <= view.num_examples * defense_step * Fraction(
                501, 1000
            )


def assert_exact_without(clients: int, gone: int, **parameters: float) -> None:
    sent, weights = updates(clients), examples(clients)
    drawn = torch.randperm(clients, generator=generator(clients, "dropped"))
    dropped = sorted(drawn[:gone].tolist())
    result = aggregate(sent, weights, dropped=dropped, **parameters)
    assert list(result.view.dropped) == dropped
    assert len(result.view.survivors) == clients - gone
    assert_exact(result, sent, weights)


@pytest.mark.parametrize("parameters", [{}, CHEAP], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize(
    ("clients", "gone"), [(2, 0), (6, 0), (6, 1), (6, 2), (12, 0), (12, 1), (12, 4)]
)
def test_the_sum_is_exact_to_the_quantisation_step(clients, gone, parameters):
    assert_exact_without(clients, gone, **parameters)


def test_the_sum_of_a_hundred_clients_is_exact_with_none_one_and_thirty_gone(monkeypatch):
    # The keys are the same every time: each client agrees with each other one once.
    monkeypatch.setattr(KeyPair, "agree", functools.cache(KeyPair.agree))
    for gone, parameters in ((0, {}), (1, CHEAP), (30, {})):
        assert_exact_without(100, gone, **parameters)


@few
@given(clients=st.integers(3, 9), data=st.data())
def test_whoever_leaves_and_whenever_the_sum_is_that_of_those_who_sent(clients, data):
    defense = SecureAggregation(threshold=0.51)
    spare = clients - defense.quorum(clients)
    leaving = data.draw(st.permutations(range(clients)))[: data.draw(st.integers(0, spare))]
    dropped = leaving[: data.draw(st.integers(0, len(leaving)))]
    silent = leaving[len(dropped) :]
    sent, weights = updates(clients), examples(clients)
    result = aggregate(sent, weights, dropped=dropped, silent=silent, threshold=0.51)
    assert set(result.view.survivors) == set(range(clients)) - set(dropped)
    assert_exact(result, sent, weights)


def test_the_mean_is_within_half_a_step_of_the_weighted_mean():
    sent, weights = updates(5), examples(5)
    view = aggregate(sent, weights, value_bits=16).view
    assert view.step == 16 / (2**15 - 1)
    for name, mean in view.mean().items():
        exact = sum(w * one[name].double() for w, one in zip(weights, sent, strict=True))
        assert (mean - exact / sum(weights)).abs().max() <= 0.501 * view.step


@few
@given(seed=st.integers(0, 1000), factor=st.integers(-5, 5))
def test_sums_are_linear_where_entries_are_multiples_of_the_step(seed, factor):
    # Whole numbers, and a step of 1: nothing is rounded, so linearity holds to the bit.
    units = {"clip_range": 2.0**20 - 1, "value_bits": 21}
    one, other = (
        [{name: (100 * t).round() for name, t in u.items()} for u in updates(3, s)]
        for s in (seed, seed + 1)
    )
    both = [{n: a[n] + factor * b[n] for n in a} for a, b in zip(one, other, strict=True)]
    weights = examples(3, seed)
    parts = [aggregate(sent, weights, **units).view.sum for sent in (one, other, both)]
    for name in parts[0]:
        assert torch.equal(parts[2][name], parts[0][name] + factor * parts[1][name])


@few
@given(order=st.permutations(range(5)), seed=st.integers(0, 1000))
def test_the_order_of_clients_does_not_matter(order, seed):
    sent, weights = updates(5, seed), examples(5, seed)
    one = aggregate(sent, weights, dropped=[2]).view
    other = aggregate(
        [sent[i] for i in order], [weights[i] for i in order], dropped=[order.index(2)]
    ).view
    assert one.num_examples == other.num_examples
    assert all(torch.equal(one.sum[name], other.sum[name]) for name in one.sum)


def test_the_order_of_names_does_not_matter():
    sent, weights = updates(3), examples(3)
    turned = [dict(reversed(one.items())) for one in sent]
    one, other = aggregate(sent, weights).view, aggregate(turned, weights).view
    assert all(torch.equal(one.sum[name], other.sum[name]) for name in one.sum)


def test_the_same_seed_gives_the_same_masks_and_another_round_others():
    sent, weights = updates(3), examples(3)
    one, same, other = (aggregate(sent, weights, seed).view for seed in (1, 1, 2))
    for client in range(3):
        assert np.array_equal(one.masked[client], same.masked[client])
        assert not (one.masked[client] == other.masked[client]).any()
    assert all(torch.equal(one.sum[name], other.sum[name]) for name in one.sum)


def test_one_generator_that_goes_on_gives_every_round_other_masks():
    sent, weights, stream = updates(3), examples(3), generator(0, "rounds")
    defense = SecureAggregation()
    first, second = (defense.aggregate(sent, weights, generator=stream).view for _ in range(2))
    for client in range(3):
        assert not (first.masked[client] == second.masked[client]).any()


def test_torchs_own_stream_is_left_alone():
    before = torch.get_rng_state()
    aggregate(updates(3), examples(3))
    assert torch.equal(torch.get_rng_state(), before)


def p_values(entries: np.ndarray) -> dict[str, float]:
    """Return how likely entries are if uniform over the ring: high bits, low bits, the whole."""
    bits = 8 * entries.dtype.itemsize
    high, low = entries >> entries.dtype.type(bits - 8), entries & entries.dtype.type(255)
    return {
        "high": stats.chisquare(np.bincount(high.astype(int), minlength=256)).pvalue,
        "low": stats.chisquare(np.bincount(low.astype(int), minlength=256)).pvalue,
        "whole": stats.kstest(entries.astype(float) / 2.0**bits, "uniform").pvalue,
    }


@pytest.mark.parametrize("parameters", [{}, CHEAP], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize("clients", [2, 6])
def test_a_masked_update_is_uniform_over_the_ring_and_an_unmasked_one_is_not(clients, parameters):
    stream = generator(3, "long updates")
    sent = [{"weight": 0.01 * torch.randn(10_000, generator=stream)} for _ in range(clients)]
    weights = examples(clients)
    defense = SecureAggregation(**parameters)
    masked = aggregate(sent, weights, **parameters).view.masked
    for client in range(clients):
        plain, _ = defense.fixed_point.encode(sent[client]["weight"], weights[client])
        # A false alarm at 1e-4; the seeds are fixed, so the test itself never flickers.
        assert min(p_values(masked[client][:-1]).values()) > 1e-4
        assert p_values(plain)["high"] < 1e-100
        assert p_values(plain)["whole"] < 1e-100
        correlation = stats.pearsonr(signed(plain), signed(masked[client][:-1])).pvalue
        assert correlation > 1e-4
    for one in range(clients):
        for other in range(one):
            between = stats.pearsonr(signed(masked[one]), signed(masked[other])).pvalue
            assert between > 1e-4


def test_of_two_clients_the_masks_do_not_cancel_before_the_self_masks_are_removed():
    sent, weights = updates(2), examples(2)
    view = aggregate(sent, weights).view
    added = view.masked[0] + view.masked[1]
    code = SecureAggregation().fixed_point
    decoded = code.decode(added[:-1])
    exact = torch.cat([view.sum[name].reshape(-1) for name in sorted(view.sum)])
    assert not torch.isclose(decoded, exact).any()


def test_masked_updates_are_kept_only_where_asked_for():
    defense = SecureAggregation()
    sent, weights = updates(3), examples(3)
    view = defense.aggregate(
        sent, weights, generator=generator(0, "lean"), dropped=[1], keep_masked=False
    ).view
    assert view.masked == {}
    kept = aggregate(sent, weights, dropped=[1]).view
    assert set(kept.masked) == {0, 2}
    assert all(torch.equal(view.sum[name], kept.sum[name]) for name in view.sum)


@pytest.mark.parametrize("leaving", [{"dropped": [0, 1, 2]}, {"silent": [3, 4, 5]}])
def test_fewer_clients_than_the_threshold_are_refused(leaving):
    with pytest.raises(MedpflError, match=r"only 3 of 6 clients .* needs 4: .*threshold"):
        aggregate(updates(6), examples(6), **leaving)


def test_of_two_clients_none_may_leave():
    with pytest.raises(MedpflError, match=r"only 1 of 2 clients .* needs 2"):
        aggregate(updates(2), examples(2), dropped=[0])


@pytest.mark.parametrize("silent", [[0], [5]])
def test_who_goes_silent_is_in_the_sum(silent):
    sent, weights = updates(6), examples(6)
    result = aggregate(sent, weights, silent=silent)
    assert result.view.survivors == tuple(range(6))
    assert silent[0] not in result.cost.phases[-1].sent
    assert_exact(result, sent, weights)


@pytest.mark.parametrize(
    ("threshold", "clients", "quorum"),
    [
        (2 / 3, 2, 2),
        (2 / 3, 6, 4),
        (2 / 3, 12, 8),
        (2 / 3, 100, 67),
        (0.7, 10, 7),
        (1.0, 5, 5),
        (0.5 + 1e-12, 4, 3),
        (0.51, 3, 2),
        (0.51, 100, 51),
    ],
)
def test_the_quorum_is_the_threshold_rounded_up_and_more_than_half(threshold, clients, quorum):
    assert SecureAggregation(threshold=threshold).quorum(clients) == quorum


def test_entries_beyond_the_range_are_cut_and_counted():
    sent = [{"a": torch.tensor([3.0, -0.5, -9.0])}, {"a": torch.tensor([0.25, 0.5, 1.0])}]
    result = aggregate(sent, [1, 2], clip_range=1.0)
    assert result.clipped == {0: 2, 1: 0}
    expected = torch.tensor([1.5, 0.5, 1.0], dtype=torch.float64)
    assert (result.view.sum["a"] - expected).abs().max() <= 3 * result.view.step


def test_a_sum_that_could_wrap_round_is_refused_before_training():
    weights = examples(6)
    with pytest.raises(ConfigurationError) as refused:
        SecureAggregation(bits=32, clip_range=4.0).check_clients(weights)
    message = str(refused.value)
    for told in ("secure_aggregation.bits=32", "[-4, 4]", "value_bits=40", "6 clients", "bits=64"):
        assert told in message
    fitting = int(message.split("value_bits=")[2].split()[0])
    SecureAggregation(bits=32, value_bits=fitting).check_clients(weights)


def test_the_largest_sum_that_is_let_through_is_exact():
    weights = [1000, 1000, 48]
    defense = SecureAggregation(bits=32, value_bits=21, clip_range=1.0)
    assert defense.fixed_point.capacity == sum(weights)
    sent = [{"a": torch.tensor([1.0, -1.0])}] * 3
    view = aggregate(sent, weights, bits=32, value_bits=21, clip_range=1.0).view
    assert torch.allclose(view.sum["a"], torch.tensor([2048.0, -2048.0]).double(), rtol=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([5], "set federation.clients to 2 or more"),
        ([], "2 or more"),
        ([3, 0, 2], r"\[1\] have no"),
    ],
)
def test_federations_without_a_sum_to_hide_in_are_refused(weights, message):
    with pytest.raises(ConfigurationError, match=message):
        SecureAggregation().check_clients(weights)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": 48}, "bits=48: must be 32 or 64"),
        ({"value_bits": 1}, "value_bits=1"),
        ({"value_bits": 45}, "value_bits=45"),
        ({"clip_range": 0.0}, "clip_range=0"),
        ({"clip_range": float("nan")}, "clip_range=nan"),
        ({"threshold": 0.5}, "threshold=0.5"),
        ({"threshold": 1.1}, "threshold=1.1"),
        ({"threshold": "most"}, "threshold=most"),
    ],
)
def test_settings_out_of_range_are_named(parameters, message):
    with pytest.raises(ConfigurationError, match=f"defense.secure_aggregation.{message}"):
        SecureAggregation(**parameters)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused_with_its_client_and_tensor(value):
    sent = updates(3)
    sent[1]["bias"][2] = value
    with pytest.raises(MedpflError, match="client 1's update is not finite in bias"):
        aggregate(sent, examples(3))


def test_lists_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"no clients \[3\]"):
        aggregate(updates(3), [1, 2, 3], dropped=[3])


def test_bytes_are_counted_a_client_and_a_round_of_the_protocol():
    # 6 clients, D = 43 entries and the number of examples; client 5 leaves early, 4 late.
    cost = aggregate(updates(6), examples(6), dropped=[5], silent=[4]).cost
    keys, sealed, share = 4 + 32 + 32, 4 + (2 * 4 + 2 * 33 + 16), 4 + 33
    assert tuple(one.phase for one in cost.phases) == PHASES
    expected = {  # sent and received by clients 0, 4 and 5
        "advertise_keys": ([keys] * 3, [6 * keys] * 3),
        "share_keys": ([5 * sealed] * 3, [5 * sealed] * 3),
        "masked_input": ([44 * 8, 44 * 8, 0], [0, 0, 0]),
        "unmasking": ([6 * share, 0, 0], [5 * 4, 0, 0]),
    }
    for one in cost.phases:
        sent, received = expected[one.phase]
        assert [one.sent.get(n, 0) for n in (0, 4, 5)] == sent
        assert [one.received.get(n, 0) for n in (0, 4, 5)] == received
    assert cost.bytes_up[0] == keys + 5 * sealed + 44 * 8 + 6 * share
    assert cost.bytes_down[0] == 6 * keys + 5 * sealed + 5 * 4
    assert cost.plain_bytes == 44 * 4


def test_a_ring_of_32_bits_halves_the_masked_update():
    wide, narrow = (aggregate(updates(3), examples(3), **p).cost for p in ({}, CHEAP))
    assert wide.phases[2].sent[0] == 2 * narrow.phases[2].sent[0] == 44 * 8


def test_seconds_are_those_of_the_rounds():
    cost = aggregate(updates(3), examples(3), dropped=[0]).cost
    parts = [(one.client_seconds, one.server_seconds) for one in cost.phases]
    assert all(client > 0 for client, _ in parts)
    assert parts[2][1] > 0
    assert parts[3][1] > 0
    assert cost.seconds == pytest.approx(sum(map(sum, parts)))

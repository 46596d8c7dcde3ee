"""Images over clients: each image once, the shares as asked for, no client empty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.federated.partition import client_folders, partition


@dataclass(frozen=True)
class Images:
    labels: Tensor
    folders: tuple[str, ...] = ()


def images(*counts: int) -> Images:
    """Return images in class order, `counts[k]` of class k."""
    return Images(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))


def counts(parts, labels: Tensor, classes: int) -> np.ndarray:
    """Return `(clients, K)` how many images of each class a client has."""
    return np.array([np.bincount(labels[list(part)].numpy(), minlength=classes) for part in parts])


def complete(parts, n: int) -> bool:
    """Tell whether each index is there once, ascending within its client."""
    ascending = all(list(part) == sorted(part) for part in parts)
    return ascending and sorted(i for part in parts for i in part) == list(range(n))


@given(n=st.integers(1, 200), clients=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_iid_parts_are_disjoint_complete_and_equal(n, clients, seed):
    if clients > n:
        with pytest.raises(ConfigurationError, match=f"clients={clients}, but there are {n}"):
            partition("iid", images(n), clients=clients, seed=seed)
        return
    parts = partition("iid", images(n), clients=clients, seed=seed)
    assert complete(parts, n)
    assert len(parts) == clients
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == partition("iid", images(n), clients=clients, seed=seed)


@given(
    of_class=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(sum),
    clients=st.integers(1, 8),
    alpha=st.floats(1e-3, 1e6),
    seed=st.integers(0, 1000),
)
def test_dirichlet_parts_are_disjoint_and_complete_or_there_is_a_message(
    of_class, clients, alpha, seed
):
    data = images(*of_class)
    try:
        parts = partition("dirichlet", data, clients=clients, alpha=alpha, seed=seed)
    except ConfigurationError as error:
        text = str(error)
        assert f"federation.clients={clients}" in text
        assert "federation.alpha=" in text
        assert clients > 1
        return
    assert complete(parts, len(data.labels))
    assert len(parts) == clients
    assert all(parts)
    assert parts == partition("dirichlet", data, clients=clients, alpha=alpha, seed=seed)


@given(
    of_class=st.lists(st.integers(20, 80), min_size=1, max_size=4),
    clients=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_a_large_alpha_gives_every_client_the_same_share_of_each_class(of_class, clients, seed):
    data = images(*of_class)
    parts = partition("dirichlet", data, clients=clients, alpha=1e9, seed=seed)
    held = counts(parts, data.labels, len(of_class))
    assert np.abs(held - np.array(of_class) / clients).max() <= 1


def largest_share(alpha: float, seed: int) -> float:
    """Return the mean over classes of the largest share that a client has."""
    data = images(300, 300, 300, 300)
    held = counts(partition("dirichlet", data, clients=4, alpha=alpha, seed=seed), data.labels, 4)
    return float((held.max(0) / 300).mean())


def test_the_smaller_alpha_the_more_a_class_lies_with_one_client():
    means = []
    for alpha in (0.2, 1.0, 10.0, 1000.0):
        shares = []
        for seed in range(40):
            try:
                shares.append(largest_share(alpha, seed))
            except ConfigurationError:
                assert alpha < 1
        means.append(np.mean(shares))
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.7
    assert means[-1] < 0.28


def test_shares_have_the_mean_and_the_spread_of_the_distribution():
    alpha, clients, n = 2.0, 3, 3000
    data = images(n)
    shares = np.array(
        [
            [len(p) / n for p in partition("dirichlet", data, clients=3, alpha=alpha, seed=seed)]
            for seed in range(400)
        ]
    )
    # Dirichlet: mean 1/K, variance (K - 1) / (K^2 (K alpha + 1)); four standard errors
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.abs(shares.mean(0) - 1 / clients).max() < 4 * np.sqrt(variance / 400)
    assert np.abs(shares.var(0) / variance - 1).max() < 0.25


def test_an_empty_client_is_named_with_the_way_out():
    with pytest.raises(ConfigurationError) as refused:
        partition("dirichlet", images(30), clients=10, alpha=0.01, seed=0)
    text = str(refused.value)
    for word in ("federation.clients=10", "federation.alpha=0.01", "30", "fewer", "larger alpha"):
        assert word in text


def test_other_seeds_draw_other_parts_and_classes_draw_for_themselves():
    data = images(40, 40)
    for kind in ("iid", "dirichlet"):
        first, second = (partition(kind, data, clients=3, alpha=5.0, seed=s) for s in (0, 1))
        assert first != second
    one = partition("dirichlet", images(40), clients=3, alpha=5.0, seed=0)
    two = partition("dirichlet", data, clients=3, alpha=5.0, seed=0)
    assert one == tuple(tuple(i for i in part if i < 40) for part in two)
    assert one != tuple(tuple(i - 40 for i in part if i >= 40) for part in two)


def test_folders_are_clients_in_their_order():
    data = Images(torch.tensor([0, 0, 0, 1, 1]), ("west", "east", "west", "east", "north"))
    assert client_folders(data) == ("east", "north", "west")
    parts = ((1, 3), (4,), (0, 2))
    assert partition("folder", data, clients=None, seed=0) == parts
    assert partition("folder", data, clients=3, seed=7) == parts


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=30))
def test_folder_parts_are_disjoint_and_complete(folders):
    parts = partition(
        "folder", Images(torch.zeros(len(folders)), tuple(folders)), clients=None, seed=0
    )
    assert complete(parts, len(folders))
    assert [{folders[i] for i in part} for part in parts] == [{n} for n in sorted(set(folders))]


@pytest.mark.parametrize(
    ("folders", "clients", "words"),
    [
        (("a", "b", "c"), 2, ["federation.clients=2", "3 folders", "(a, b, c)", "null"]),
        (("a", "b", "c"), 4, ["federation.clients=4", "3 folders"]),
        (("a", "", ""), None, ["2 of 3", "directly in their class folder", "tumour/hospital_a/"]),
        ((), None, ["federation.partition=folder", "in no folders", "iid"]),
    ],
)
def test_a_layout_that_names_no_clients_is_refused(folders, clients, words):
    data = Images(torch.zeros(3, dtype=torch.int64), folders)
    with pytest.raises(ConfigurationError) as refused:
        partition("folder", data, clients=clients, seed=0)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "clients", "alpha", "words"),
    [
        ("iid", None, None, "federation.clients=null"),
        ("dirichlet", 0, 1.0, "federation.clients=0"),
        ("dirichlet", 2, None, "federation.alpha=null"),
        ("dirichlet", 2, 0.0, "federation.alpha=0"),
        ("dirichlet", 2, float("nan"), "federation.alpha=nan"),
        ("dirichlet", 2, float("inf"), "federation.alpha=inf"),
        ("shards", 2, None, "federation.partition=shards: choose iid, dirichlet, folder"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, clients, alpha, words):
    with pytest.raises(ConfigurationError, match=words):
        partition(kind, images(10, 10), clients=clients, alpha=alpha, seed=0)

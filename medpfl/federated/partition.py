"""Which client holds which images."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from medpfl.errors import ConfigurationError
from medpfl.seeding import generator
from medpfl.settings.ranges import Range

PartitionKind = Literal["iid", "dirichlet", "folder"]

Parts = tuple[tuple[int, ...], ...]

_ALPHA = Range(1e-3, 1e9)  # below, shares underflow; above, they are equal to the last bit
Alpha = Annotated[float, _ALPHA]
"""The concentration of a Dirichlet distribution over clients."""
Clients = Annotated[int, Range(1, 100_000)]
"""How many clients there are."""

_NAMED = 5
_LAYOUT = (
    "a folder for each client inside every class folder, such as tumour/hospital_a/001.png and "
    "healthy/hospital_a/002.png"
)


class Images(Protocol):
    """What a partition reads of a dataset; an `ImageSet` is one."""

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64."""
        ...

    @property
    def folders(self) -> tuple[str, ...]:
        """Of each image the first folder below its class folder, or nothing."""
        ...


def partition(
    kind: PartitionKind,
    images: Images,
    *,
    clients: int | None,
    alpha: float | None = None,
    seed: int,
) -> Parts:
    """Split images over clients, each image to one of them.

    Args:
        kind: ``iid``: at random, in parts that differ by one image at most. ``dirichlet``: of every
            class each client gets a share drawn from a symmetric Dirichlet distribution, in whole
            images by largest remainders. ``folder``: a client for each folder below the class
            folders, in the order of `client_folders`.
        images: their labels and folders.
        clients: how many; None takes as many as there are folders, and is for ``folder`` alone.
        alpha: concentration, in [1e-3, 1e9], for ``dirichlet`` alone: near 0 a class lies with one
            client, and towards infinity every client has the same share of it.
        seed: the run's seed; ``folder`` draws nothing.

    Returns:
        Of each client the indices of its images, ascending; at least one.

    Raises:
        ConfigurationError: a setting cannot work with these images, or a client would be empty.

    Notes:
        ``dirichlet`` is the label skew of Li et al. 2022 (Federated Learning on Non-IID Data Silos,
        Section 4.1). Hsu et al. 2019 draw the classes of each client instead of the clients of
        each class. Where a client is left empty, the former's program draws again, which favours
        even shares unseen; here it is an error.
    """
    if kind == "folder":
        return _by_folder(images.folders, clients)
    if kind not in get_args(PartitionKind):
        raise ConfigurationError(
            f"federation.partition={kind}: choose {', '.join(get_args(PartitionKind))}"
        )
    if clients is None or clients < 1:
        told = "null" if clients is None else clients
        raise ConfigurationError(
            f"federation.clients={told}: say how many clients there are, at least 1 "
            "(federation.partition=folder alone counts them by itself)"
        )
    if kind == "iid":
        return _iid(len(images.labels), clients, seed)
    if alpha is None or alpha not in _ALPHA:
        told = "null" if alpha is None else f"{alpha:g}"
        raise ConfigurationError(
            f"federation.alpha={told}: for federation.partition=dirichlet it must be {_ALPHA}; "
            "0.5 is usual, and the smaller, the more unlike the clients"
        )
    return _dirichlet(images.labels, clients, alpha, seed)


def client_folders(images: Images) -> tuple[str, ...]:
    """Return the folders of the clients, sorted: client i of ``folder`` has the i-th."""
    return tuple(sorted(set(images.folders)))


def _iid(n: int, clients: int, seed: int) -> Parts:
    if clients > n:
        raise ConfigurationError(
            f"federation.clients={clients}, but there are {n} images to share out: give at most "
            f"federation.clients={n}"
        )
    order = torch.randperm(n, generator=generator(seed, "partition", "iid"))
    return tuple(tuple(sorted(part.tolist())) for part in order.tensor_split(clients))


def _dirichlet(labels: Tensor, clients: int, alpha: float, seed: int) -> Parts:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in sorted(set(labels.tolist())):
        stream = generator(seed, "partition", "dirichlet", label)
        # torch draws from this distribution by its global stream alone
        shares = np.random.default_rng(stream.initial_seed()).dirichlet([alpha] * clients)
        members = (labels == label).nonzero().squeeze(1)
        order = members[torch.randperm(len(members), generator=stream)]
        for part, given in zip(parts, order.split(_whole(shares, len(members))), strict=True):
            part += given.tolist()
    empty = [number for number, part in enumerate(parts) if not part]
    if empty:
        raise ConfigurationError(
            f"federation.clients={clients} with federation.alpha={alpha:g} leaves "
            f"{_clients(empty)} without an image, of the {len(labels)} there are: give fewer "
            "clients or a larger alpha (another seed draws other shares)"
        )
    return tuple(tuple(sorted(part)) for part in parts)


def _whole(shares: np.ndarray[tuple[int], np.dtype[np.float64]], total: int) -> list[int]:
    """Return whole numbers in proportion to the shares that add up to `total`.

    Each share is rounded down, and what is left goes to the largest remainders, the first of equal
    ones before later ones.
    """
    exact = shares * total
    counts = np.floor(exact).astype(int)
    rest = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return [int(count) for count in counts]


def _by_folder(folders: tuple[str, ...], clients: int | None) -> Parts:
    if not folders:
        raise ConfigurationError(
            "federation.partition=folder: the images of this dataset are in no folders; choose iid "
            f"or dirichlet, or dataset=folder with {_LAYOUT}"
        )
    outside = sum(not name for name in folders)
    if outside:
        raise ConfigurationError(
            f"federation.partition=folder: {outside} of {len(folders)} images lie directly in "
            f"their class folder, so that they belong to no client; needed is {_LAYOUT}"
        )
    names = sorted(set(folders))
    if clients is not None and clients != len(names):
        raise ConfigurationError(
            f"federation.clients={clients}, but the images lie in {len(names)} folders "
            f"({_first_few(names)}), each of them a client: set federation.clients={len(names)} or "
            "null, or choose federation.partition=iid or dirichlet"
        )
    return tuple(tuple(index for index, own in enumerate(folders) if own == name) for name in names)


def _clients(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"client {numbers[0]}"
    return f"{len(numbers)} clients ({_first_few([str(number) for number in numbers])})"


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")

"""Models as malicious servers send them: what is planted, where, and how well it is hidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from medpfl.bench.honest_models import Images
from medpfl.federated.malicious import ImprintServer, LokiServer, MicServer, TrapServer
from medpfl.federated.malicious.base import Awaited, Server
from medpfl.models import CPLCNN, IDLGCNN, LeNet, ResNet18
from medpfl.models.base import NetworkFactory
from medpfl.models.init import DefaultInit, UniformInit
from medpfl.models.rows import Rows, fill, planted
from medpfl.types import ServerPayload

_NETWORKS: Mapping[str, NetworkFactory] = {
    "LeNet": LeNet(init=DefaultInit()),
    "CPLCNN": CPLCNN(init=UniformInit()),
    "IDLGCNN": IDLGCNN(init=UniformInit()),
    "ResNet18": ResNet18(init=DefaultInit()),
}
_MIDDLE = (("LeNet", "conv2"), ("LeNet", "fc1"), ("CPLCNN", "fc"), ("ResNet18", "layer3"))


@dataclass(frozen=True)
class Case:
    """One model with something planted.

    Args:
        family: for tables.
        name: its settings.
        payload: what clients get.
    """

    family: str
    name: str
    payload: ServerPayload


def cases(images: Images) -> Iterator[Case]:
    """Yield every kind of planted model.

    Args:
        images: the server's public ones.
    """
    yield from _imprints(images)
    yield from _blank_rows(images)
    yield from _several_queries(images)
    yield from _traps(images)
    yield from _one_client(images)
    yield from _among_honest_rows()


def sent(model: nn.Module) -> ServerPayload:
    """Return a network as a server sends it."""
    return ServerPayload(
        model=model,
        parameters={name: p.detach() for name, p in model.named_parameters()},
        buffers={name: b.detach() for name, b in model.named_buffers()},
        batch_norm="eval_public",
    )


def honest(network: str, images: Images) -> ServerPayload:
    """Return one of the networks, untrained."""
    return sent(_NETWORKS[network].build(images.spec, torch.Generator().manual_seed(0)))


def _planted(server: Server, network: str, images: Images) -> ServerPayload:
    stream = torch.Generator().manual_seed(1)
    return server.plant(honest(network, images), images.spec, images.inputs, stream).payload


def _imprints(images: Images) -> Iterator[Case]:
    settings = product(("cumulative", "sparse"), ("random", "mean"), (50, 200, 1000, 2000))
    for number, (kind, query, bins) in enumerate(settings):
        for auxiliary, support in (("dataset", 1.0), ("normal", 0.1)):
            server = ImprintServer(
                kind="sparse" if kind == "sparse" else "cumulative",
                query="mean" if query == "mean" else "random",
                bins=bins,
                auxiliary="normal" if auxiliary == "normal" else "dataset",
                support=support,
            )
            name = f"{kind}, {query}, {bins} bins, {auxiliary}, support {support:g}"
            network = tuple(_NETWORKS)[number % 3]
            yield Case("imprint, at the input", name, _planted(server, network, images))
            network, place = _MIDDLE[number % len(_MIDDLE)]
            if support == 1.0:
                inner = replace(server, place=place)
                where = f"{name}, ahead of {network}.{place}"
                yield Case("imprint, inside", where, _planted(inner, network, images))


def _blank_rows(images: Images) -> Iterator[Case]:
    """Yield imprints of zero rows, which an imprint has where clients train, and LOKI's."""
    for bins, kind in product((50, 200, 1000), ("cumulative", "sparse")):
        server = ImprintServer(
            bins=bins, kind="sparse" if kind == "sparse" else "cumulative", zero_rows=True
        )
        yield Case("imprint of zero rows", f"{kind}, {bins}", _planted(server, "LeNet", images))
        for network, place in _MIDDLE:
            inner = _planted(replace(server, place=place), network, images)
            where = f"{kind}, {bins} bins, ahead of {network}.{place}"
            yield Case("imprint of zero rows", where, inner)
    for bins, clients in product((50, 200), (2, 12)):
        loki = LokiServer(bins=bins)
        stream = torch.Generator().manual_seed(1)
        base, awaited = honest("CPLCNN", images), Awaited(images=16 * clients, clients=clients)
        sent_out = loki.plant(base, images.spec, images.inputs, stream, awaited)
        name = f"columns of {clients} clients, {bins} bins"
        yield Case("LOKI, columns", name, sent_out.sent(1))


def _several_queries(images: Images) -> Iterator[Case]:
    entries = torch.Size(images.spec.shape).numel()
    for queries, bins, block in product((2, 10, 50), (50, 100), (1000, 4)):
        stream = torch.Generator().manual_seed(queries * bins)
        directions = torch.randn(queries, entries, generator=stream) / entries**0.5
        weight = directions.repeat_interleave(bins, 0)
        edges = torch.linspace(-1, 1, bins).repeat(queries)
        yield Case(
            "imprint, several queries",
            f"{queries} queries of {bins} bins, {block} rows a parameter",
            _rows(images, weight, -edges, block),
        )


def _rows(images: Images, weight: Tensor, bias: Tensor, block: int) -> ServerPayload:
    """Return LeNet with rows ahead of it, in parameters of a few rows each."""
    count, entries = weight.shape
    sizes = [min(block, count - first) for first in range(0, count, block)]
    rows = Rows(entries, sizes, gain=1.0, reach=1.0, sparse=False)
    fill(rows, lambda first, last: (weight[first:last], bias[first:last]))
    return planted(honest("LeNet", images), rows, None)[0]


def _traps(images: Images) -> Iterator[Case]:
    scales: Sequence[float | None] = (None, 0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0)
    for number, (scale, rows) in enumerate(product(scales, (50, 500))):
        server = TrapServer(rows=rows, scale=scale)
        name = f"{'tuned scale' if scale is None else f'scale {scale:g}'}, {rows} rows"
        network = tuple(_NETWORKS)[number % 3]
        yield Case("trap weights", name, _planted(server, network, images))
        network, place = _MIDDLE[number % len(_MIDDLE)]
        inner = replace(server, place=place)
        where = f"{name}, ahead of {network}.{place}"
        yield Case("trap weights, inside", where, _planted(inner, network, images))
        mic = MicServer(rows=rows, scale=0.01 if scale is None else scale)
        name = f"scale {mic.scale:g}, {rows} rows"
        yield Case("MIC's rows", name, _planted(mic, network, images))


def _one_client(images: Images) -> Iterator[Case]:
    """Yield LOKI's layers (Zhao et al. 2023): kernels of one client, and rows that look at them."""
    channels, *sides = images.spec.shape
    entries = torch.Size(images.spec.shape).numel()
    for clients, bins in product((2, 10, 30), (50, 200)):
        stream = torch.Generator().manual_seed(clients)
        kernels = nn.Conv2d(channels, channels * clients, 3, padding=1, bias=False)
        reading = nn.Linear(clients * entries, bins)
        back = nn.Linear(bins, entries)
        with torch.no_grad():
            kernels.weight.zero_()
            kernels.weight[range(channels), range(channels), 1, 1] = 1.0
            query = torch.randn(clients * entries, generator=stream) / entries**0.5
            reading.weight.copy_(query.expand(bins, -1))
            reading.bias.copy_(-torch.linspace(-1, 1, bins))
        network = _NETWORKS["LeNet"].build(images.spec, stream)
        behind = (nn.ReLU(), back, nn.Unflatten(1, (channels, *sides)), network)
        name = f"one of {clients} clients, {bins} bins"
        yield Case(
            "LOKI, kernels", name, sent(nn.Sequential(kernels, nn.Flatten(), reading, *behind))
        )


def _among_honest_rows() -> Iterator[Case]:
    """Yield perceptrons of which some rows are planted."""
    for planted_rows, inputs, kind in product((10, 50), (784, 3072), ("imprint", "traps")):
        stream = torch.Generator().manual_seed(inputs)
        first = nn.Linear(inputs, 500)
        places = torch.randperm(500, generator=stream)[:planted_rows]
        with torch.no_grad():
            bound = inputs**-0.5
            first.weight.copy_((2 * torch.rand(500, inputs, generator=stream) - 1) * bound)
            first.bias.copy_((2 * torch.rand(500, generator=stream) - 1) * bound)
            size = float(first.weight.std())
            if kind == "imprint":
                first.weight[places] = size * torch.randn(inputs, generator=stream)
                first.bias[places] = 0.3 * torch.randn(planted_rows, generator=stream)
            else:
                half = inputs // 2
                for row in places.tolist():
                    where = torch.randperm(inputs, generator=stream)
                    drawn = size * torch.randn(half, generator=stream).abs()
                    first.weight[row, where[:half]] = -drawn
                    first.weight[row, where[half : 2 * half]] = 0.97 * drawn
        model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(500, 4))
        name = f"{planted_rows} rows of {kind} among 500 of {inputs} inputs"
        yield Case("planted among honest rows", name, sent(model))

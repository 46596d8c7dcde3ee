"""Captures from Flower (``pip install 'medpfl[flower]'``): at the server, or at a client.

At the server, a strategy is replaced by one that does the same and captures::

    strategy = capturing(FedAvg(), folder="captures", model=MODEL, spec=SPEC, rounds=[1, 10])

At a client, a mod captures what passes it, together with the images where these are handed in::

    capture = CapturingMod(folder="captures", model=MODEL, spec=SPEC)
    app = ClientApp(mods=capture.outside([LocalDpMod(...)]))
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from medpfl.batch_norm import BatchNormPolicy
from medpfl.captures import CaptureWriter, Defense, Framework
from medpfl.captures.manifest import Kind
from medpfl.errors import DataError
from medpfl.geometry import Geometry
from medpfl.integrations.guard import beside_training
from medpfl.training import LocalTraining
from medpfl.types import DataSpec, Truth

_WEIGHTED_BY = "num-examples"


def capturing(
    strategy: Strategy,
    *,
    folder: str | Path,
    model: Mapping[str, object],
    spec: DataSpec,
    sends: Kind = "weights",
    rounds: Collection[int] | None = None,
    batch_norm: BatchNormPolicy | None = None,
    local_training: LocalTraining | None = None,
    classes: Sequence[str] | None = None,
    defense: Defense | None = None,
) -> Strategy:
    """Return a strategy that does what the given one does, and captures what clients send.

    An update is captured as it reaches the server, before the strategy looks at it. What goes
    wrong with a capture is logged as an error, and training goes on.

    Args:
        strategy: any of Flower's, or your own; left as it is.
        folder: where the captures go, see `CaptureWriter`.
        model: the network, as the ``model`` group of a configuration, see `CaptureWriter`.
        spec: shape, classes and normalisation of the clients' data.
        sends: what clients send back: the ``weights`` after training, their ``delta``, or a
            ``gradient``.
        rounds: that are captured, by Flower's numbers, which begin at 1; None captures all. The
            captures' own numbers begin at 0.
        batch_norm: how clients run BatchNorm while they train, or None, see `CaptureWriter`.
        local_training: how clients train, or None where unknown.
        classes: their names, or None.
        defense: what clients do to their updates, or None.

    Raises:
        MedpflError: the network cannot be built.
    """
    writer = CaptureWriter(
        folder=folder,
        model=model,
        spec=spec,
        batch_norm=batch_norm,
        local_training=local_training,
        classes=classes,
    )
    writer.network  # noqa: B018 - a mistake in it is told before the training begins
    kind = type(strategy)
    capturing_kind: Any = type(f"Capturing{kind.__name__}", (_Capturing, kind), {})
    captured = capturing_kind.__new__(capturing_kind)
    vars(captured).update(vars(strategy))
    captured._captures = _Server(writer, sends, rounds, defense)
    return captured


class _Capturing:
    """Stands before a strategy's class; Flower's ``Strategy.start`` calls its methods."""

    _captures: _Server

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent to whom."""
        messages = list(super().configure_train(server_round, arrays, config, grid))  # type: ignore[misc]
        with beside_training(f"Flower's round {server_round}"):
            self._captures.remember(messages)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Capture what came back, and go on with it."""
        came = list(replies)
        weighted_by = getattr(self, "weighted_by_key", _WEIGHTED_BY)
        for reply in came:
            with beside_training(f"a client's update in Flower's round {server_round}"):
                self._captures.take(server_round, reply, weighted_by)
        self._captures.forget()
        return super().aggregate_train(server_round, came)  # type: ignore[misc]


class _Server:
    """Pairs what was sent with what came back.

    Args:
        writer: of the federation's captures.
        sends: what clients send.
        rounds: that are captured, or None.
        defense: what clients do to their updates, or None.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        sends: Kind,
        rounds: Collection[int] | None,
        defense: Defense | None,
    ) -> None:
        self._writer, self._sends, self._rounds, self._defense = writer, sends, rounds, defense
        self._sent: dict[int, RecordDict] = {}
        self._numbers: dict[int, int] = {}

    def remember(self, messages: Sequence[Message]) -> None:
        self._sent = {message.metadata.dst_node_id: message.content for message in messages}
        for node in sorted(self._sent):
            self._numbers.setdefault(node, len(self._numbers))

    def forget(self) -> None:
        self._sent = {}

    def take(self, server_round: int, reply: Message, weighted_by: str) -> None:
        wanted = self._rounds is None or server_round in self._rounds
        if not wanted or reply.has_error():
            return
        node = reply.metadata.src_node_id
        if node not in self._sent:
            raise DataError(f"node {node} replied, and was sent nothing in this round")
        names = list(self._writer.network.stored)
        self._writer.write(
            round=server_round - 1,
            client=self._numbers[node],
            kind=self._sends,
            update=arrays_of(reply.content, names),
            sent=arrays_of(self._sent[node], names),
            num_examples=_examples(reply.content, weighted_by),
            defense=self._defense,
            framework=_flower(server_round, node),
        )


class CapturingMod:
    """A mod of a ``ClientApp`` that captures what passes it on its way to the server.

    Where it stands among other mods decides what it sees: Flower calls the first of the list
    first, and hands its reply through it last. What goes wrong with a capture is logged as an
    error, and training goes on.

    Args:
        folder: where the captures go; of each client's own where several write at once.
        model: as of `capturing`.
        spec: as of `capturing`.
        sends: as of `capturing`.
        rounds: as of `capturing`.
        batch_norm: as of `capturing`.
        local_training: as of `capturing`.
        classes: as of `capturing`.
        client: gives a client's number; by default its ``partition-id``, or else 0.
        defense: what the mods between training and this one do to the update, or None.

    Raises:
        MedpflError: the network cannot be built.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        model: Mapping[str, object],
        spec: DataSpec,
        sends: Kind = "weights",
        rounds: Collection[int] | None = None,
        batch_norm: BatchNormPolicy | None = None,
        local_training: LocalTraining | None = None,
        classes: Sequence[str] | None = None,
        client: Callable[[Context], int] | None = None,
        defense: Defense | None = None,
    ) -> None:
        self._writer = CaptureWriter(
            folder=folder,
            model=model,
            spec=spec,
            batch_norm=batch_norm,
            local_training=local_training,
            classes=classes,
        )
        self._writer.network  # noqa: B018 - a mistake in it is told before the training begins
        self._sends, self._rounds = sends, rounds
        self._client = client or _partition
        self._defense = defense
        self._seen = threading.local()

    def outside(self, mods: Sequence[Any]) -> list[Any]:
        """Return the mods with this one where it captures what leaves the client."""
        self._defense = self._defense or _passed("after", mods)
        return [self, *mods]

    def inside(self, mods: Sequence[Any]) -> list[Any]:
        """Return the mods with this one where it captures what training has computed."""
        self._defense = self._defense or _passed("before", mods)
        return [*mods, self]

    def saw(
        self,
        inputs: Tensor,
        labels: Tensor,
        *,
        ids: Sequence[str] | None = None,
        order: Sequence[Sequence[int]] | None = None,
        geometry: Sequence[Geometry | None] = (),
    ) -> None:
        """Say what the client trains on; to be called in its train function.

        Args:
            inputs: `(N, C, *S)` pixels in [0, 1], before mean and std are applied.
            labels: `(N,)` whole numbers.
            ids: N names, or None to number them.
            order: of each step the images that it takes, as positions among the N, or None.
            geometry: of volumes, where the voxels of each lie: reconstructions are then written as
                NIfTI with the source's axes.
        """
        with beside_training("what a client trains on"):
            names = tuple(map(str, range(len(labels))) if ids is None else ids)
            pixels = inputs.detach().cpu().to(torch.float32).clone()
            steps = None if order is None else tuple(tuple(map(int, batch)) for batch in order)
            numbers = labels.detach().cpu().long().clone()
            self._seen.truth = (Truth(pixels, numbers, names, tuple(geometry)), steps)

    def __call__(
        self, message: Message, context: Context, call_next: Callable[..., Message]
    ) -> Message:
        """Let the client train, and capture what it replies."""
        self._seen.truth = None
        sent = message.content
        reply = call_next(message, context)
        with beside_training("the client's update"):
            if message.metadata.message_type.partition(".")[0] == "train" and not reply.has_error():
                self._take(sent, message, reply, context)
        return reply

    def _take(self, sent: RecordDict, message: Message, reply: Message, context: Context) -> None:
        server_round = _round_of(message)
        if self._rounds is not None and server_round not in self._rounds:
            return
        names, training = list(self._writer.network.stored), self._writer.local_training
        truth, order = self._seen.truth or (None, None)
        if training is not None and order is not None:
            training = replace(training, order=order)
        examples = _examples(reply.content, _WEIGHTED_BY)
        self._writer.write(
            round=server_round - 1,
            client=self._client(context),
            kind=self._sends,
            update=arrays_of(reply.content, names),
            sent=arrays_of(sent, names),
            num_examples=examples,
            local_training=training,
            truth=truth,
            defense=self._defense,
            framework=_flower(server_round, context.node_id),
        )


def arrays_of(content: RecordDict, names: Sequence[str]) -> dict[str, Any]:
    """Return the one record of arrays in a message, by the names of a state dict.

    Args:
        content: of a message.
        names: of the network's state dict, in order; arrays that were sent as a list have numbers
            for names, and are taken to be in this order.

    Raises:
        DataError: there are none, or several records, or as a list, not as many as names.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise DataError(f"the message holds {len(records)} records of arrays, and one is expected")
    arrays = {name: array.numpy() for name, array in records[0].items()}
    if set(arrays) & set(names) or list(arrays) != [str(n) for n in range(len(arrays))]:
        return arrays
    if len(arrays) != len(names):
        raise DataError(
            f"the message holds {len(arrays)} arrays without names, and the network has "
            f"{len(names)}: send ArrayRecord(model.state_dict())"
        )
    return dict(zip(names, arrays.values(), strict=True))


def _examples(content: RecordDict, key: str) -> int | None:
    for record in content.metric_records.values():
        if isinstance(count := record.get(key), int | float):
            return int(count)
    return None


def _round_of(message: Message) -> int:
    for record in message.content.config_records.values():
        if isinstance(number := record.get("server-round"), int):
            return number
    raise DataError(
        "the server's message holds no server-round, which Flower's strategies put there: send it "
        "in a ConfigRecord"
    )


def _partition(context: Context) -> int:
    return int(context.node_config.get("partition-id", 0))


def _passed(where: str, mods: Sequence[Any]) -> Defense | None:
    names = [getattr(mod, "__name__", type(mod).__name__) for mod in mods]
    return Defense(description=f"captured {where} {', '.join(names)}") if names else None


def _flower(server_round: int, node: int) -> Framework:
    return Framework(
        name="flower", version=version("flwr"), round=str(server_round), client=str(node)
    )

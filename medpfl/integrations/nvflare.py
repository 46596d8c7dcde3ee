"""Captures from NVFlare (``pip install 'medpfl[nvflare]'``), at the server.

Add the filter to a job; it changes nothing of what passes it::

    capture = CaptureFilter(folder="/data/captures", model=MODEL, data=DATA, rounds=[0, 9])
    job.to_server(capture, filter_type=FilterType.TASK_RESULT, tasks=["train"])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants

from medpfl.batch_norm import BatchNormPolicy
from medpfl.captures import CaptureWriter, Defense, Framework
from medpfl.captures.manifest import Kind
from medpfl.captures.parts import data_spec, local_training_of
from medpfl.captures.tensors import plain
from medpfl.errors import DataError
from medpfl.integrations.guard import beside_training

_KINDS: dict[str, Kind] = {DataKind.WEIGHTS: "weights", DataKind.WEIGHT_DIFF: "delta"}


class CaptureFilter(DXOFilter):
    """Captures the results that clients send, as they reach this place in the server's filters.

    NVFlare writes a job's parts down as JSON, so that all settings are plain values. What goes
    wrong with a capture is logged as an error, and training goes on.

    Args:
        folder: where the captures go, an absolute path on the server, see `CaptureWriter`.
        model: the network, as the ``model`` group of a configuration, see `CaptureWriter`.
        data: shape, num_classes, mean, std and greyscale of the clients' data; of mean and std,
            a value a channel.
        rounds: that are captured, from 0; None captures all.
        batch_norm: how clients run BatchNorm while they train, or None, see `CaptureWriter`.
        local_training: settings of `LocalTraining`, or None where unknown.
        num_examples: N of every client, or ``{site: N}``, or None where unknown: NVFlare's clients
            tell their steps, and not their images.
        defense: what clients, and the filters before this one, do to an update, in words, or None.

    Raises:
        MedpflError: the network cannot be built, or a setting is none.
    """

    def __init__(
        self,
        folder: str,
        model: dict[str, Any],
        data: dict[str, Any],
        rounds: list[int] | None = None,
        batch_norm: BatchNormPolicy | None = None,
        local_training: dict[str, Any] | None = None,
        num_examples: int | dict[str, int] | None = None,
        defense: str | None = None,
    ) -> None:
        kinds = list(_KINDS)
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.folder, self.model, self.data, self.rounds = folder, model, data, rounds
        self.batch_norm, self.local_training = batch_norm, local_training
        self.num_examples, self.defense = num_examples, defense
        self._sent: dict[tuple[str, str], _Sent] = {}
        self._numbers: dict[str, int] = {}
        self._writer.network  # noqa: B018 - a mistake in it is told before the training begins

    @cached_property
    def _writer(self) -> CaptureWriter:
        place, training = "CaptureFilter", self.local_training
        return CaptureWriter(
            folder=self.folder,
            model=self.model,
            spec=data_spec(self.data, place),
            batch_norm=self.batch_norm,
            local_training=None if training is None else local_training_of(training, place),
        )

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Remember what is sent to whom, after the server's own filters."""
        if event_type == EventType.AFTER_TASK_DATA_FILTER:
            with beside_training("what NVFlare's server sent"):
                self._remember(fl_ctx.get_prop(FLContextKey.TASK_DATA), fl_ctx)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """Capture a result; None leaves it as it is."""
        with beside_training("a client's result"):
            self._take(dxo, shareable, fl_ctx)
        return None

    def _remember(self, task_data: Shareable, fl_ctx: FLContext) -> None:
        if task_data.get_header(ReservedHeaderKey.CONTENT_TYPE) != "DXO":
            return
        dxo = from_shareable(task_data)
        if dxo.data_kind == DataKind.WEIGHTS:
            number = task_data.get_header(AppConstants.CURRENT_ROUND)
            site = _site(fl_ctx)
            self._sent = {key: sent for key, sent in self._sent.items() if key[0] != site}
            # The dictionary, not its arrays: the server changes the one and makes the others anew.
            self._sent[site, _task(task_data)] = _Sent(number, dict(dxo.data))

    def _take(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        site = _site(fl_ctx)
        task = self._sent.pop((site, _task(shareable)), None)
        if task is None:
            raise DataError(f"{site} sent a result for which it was sent no weights")
        number, sent = task.round, task.weights
        if number is None:
            raise DataError("the task tells no round: NVFlare's workflows put current_round there")
        if self.rounds is not None and number not in self.rounds:
            return
        kind = _KINDS[dxo.data_kind]
        update = plain(dxo.data, "the result")
        if kind == "delta":
            update = self._with_buffers(update, plain(sent, "the task"))
        examples = self.num_examples
        self._writer.write(
            round=int(number),
            client=self._number(site, fl_ctx),
            kind=kind,
            update=update,
            sent=sent,
            num_examples=examples.get(site) if isinstance(examples, dict) else examples,
            defense=None if self.defense is None else Defense(description=self.defense),
            framework=Framework(
                name="nvflare", version=version("nvflare"), round=str(number), client=site
            ),
        )

    def _with_buffers(self, update: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
        """Return a difference with the values of its buffers, which NVFlare subtracts, too."""
        buffers = self._writer.network.buffers
        return {name: t + sent[name] if name in buffers else t for name, t in update.items()}

    def _number(self, site: str, fl_ctx: FLContext) -> int:
        names = sorted(client.name for client in fl_ctx.get_engine().get_clients())
        for name in [*names, site]:
            self._numbers.setdefault(name, len(self._numbers))
        return self._numbers[site]


@dataclass(frozen=True)
class _Sent:
    """What a client was sent: in which round, or None where that was not told, and the weights."""

    round: int | None
    weights: dict[str, Any]


def _site(fl_ctx: FLContext) -> str:
    return str(fl_ctx.get_peer_context().get_identity_name())


def _task(shareable: Shareable) -> str:
    return str(shareable.get_header(ReservedHeaderKey.TASK_ID))

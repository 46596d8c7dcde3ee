"""The dataclasses that flow from the clients to the record, one way.

Letters used in shapes: R restarts, B = rows side by side, N images behind an update,
C channels, ``*S`` spatial sizes (``(H, W)`` or ``(D, H, W)``), K classes, P_i a parameter's shape.
Images are in [0, 1] at every interface; names ending in ``_norm`` are in the client's input space,
``(x - mean) / std``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from medpfl.aggregates import Aggregate
from medpfl.batch_norm import BatchNormPolicy, runs_in_train_mode
from medpfl.geometry import Geometry
from medpfl.hollow import hollow
from medpfl.outcomes import Status
from medpfl.planted import Planted
from medpfl.training import Forward, LocalTraining, forward_of


@dataclass(frozen=True)
class DataSpec:
    """What one example looks like: public knowledge in every threat model.

    Args:
        shape: ``(C, *S)`` of one example.
        num_classes: number of classes K.
        mean: per-channel mean of the client's normalisation, length C.
        std: per-channel standard deviation of the client's normalisation, length C, positive.
        greyscale: whether the channels of every image are copies of one.
    """

    shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    greyscale: bool = False

    def normalise(self, inputs: Tensor) -> Tensor:
        """Map pixels in [0, 1] to the client's input space; `(..., C, *S)` to the same shape."""
        return (inputs - self._channels(self.mean, inputs)) / self._channels(self.std, inputs)

    def denormalise(self, inputs_norm: Tensor) -> Tensor:
        """Map the client's input space back to pixels, unclipped; `(..., C, *S)`."""
        mean, std = (self._channels(v, inputs_norm) for v in (self.mean, self.std))
        return inputs_norm * std + mean

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        shape = (len(values),) + (1,) * (len(self.shape) - 1)
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(shape)


@dataclass(frozen=True)
class Truth:
    """Ground truth: the images behind one update. Never reaches the attacker.

    Args:
        inputs: `(N, C, *S)` in [0, 1].
        labels: `(N,)` int64.
        ids: N image ids, as in the metrics table.
        geometry: of each image, or None of one without; empty where none has one, as pictures.
    """

    inputs: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    geometry: tuple[Geometry | None, ...] = ()


@dataclass(frozen=True)
class ServerPayload:
    """What the server sends to a client at the start of a round.

    Args:
        model: the architecture; its own parameters, statistics and mode are nobody's business.
        parameters: `{name: P_i}`, float32.
        buffers: `{name: shape}`; empty for networks without buffers.
        batch_norm: how the client runs BatchNorm, and whether its statistics leave with the update.
    """

    model: nn.Module
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    batch_norm: BatchNormPolicy

    @property
    def training(self) -> bool:
        """Whether the client runs the network in train mode, and not in eval mode."""
        return runs_in_train_mode(self.batch_norm)

    def network(self, *, training: bool | None = None) -> nn.Module:
        """Return the architecture in a mode, without parameters and buffers of its own.

        For ``torch.func.functional_call``: whoever calls it brings both. BatchNorm does not update
        the statistics that it is given.

        Args:
            training: the mode; the client's where None.
        """
        return self._networks[self.training if training is None else training]

    def forward(self, *, training: bool | None = None) -> Forward:
        """Return the network as a function of parameters and images, with these buffers."""
        return forward_of(self.network(training=training), self.buffers)

    @cached_property
    def _networks(self) -> dict[bool, nn.Module]:
        return {mode: hollow(self.model).train(mode) for mode in (False, True)}


@dataclass(frozen=True)
class ClientUpdate:
    """What leaves the client.

    Args:
        kind: ``gradient`` (FedSGD) or ``delta`` (weights after minus before local training).
        tensors: `{name: P_i}`, float32.
        num_examples: N.
        local_training: how it was computed, the order of the images included, or None where not
            even whoever captured it knows.
        buffers: the client's buffers after training, BatchNorm's moved statistics among them; None
            but under the policy ``train_shared``.
        labels: `(N,)`; only a threat model that grants labels lets them through.
        aggregate: of a mean over clients, what it is made of: then orders are here; else None.
    """

    kind: Literal["gradient", "delta"]
    tensors: Mapping[str, Tensor]
    num_examples: int
    local_training: LocalTraining | None = None
    buffers: Mapping[str, Tensor] | None = None
    labels: Tensor | None = None
    aggregate: Aggregate | None = None


@dataclass(frozen=True, kw_only=True)
class DefenseFacts:
    """What an attacker may know of one part of a defense: its parameters, and nothing it drew.

    Parts with parameters add them as fields: numbers, texts and booleans.

    Args:
        name: the part's.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What a defense guarantees, as a theorem.

    Args:
        epsilon: of differential privacy, of all that clients send in training, or of the attacked
            updates where there is no training; infinite where nothing is guaranteed.
        reason: why, in words, without a full stop.
        unit: what is hidden: one ``image``, or all the images of a ``client``.
        delta: the probability with which every epsilon here may fail; None where it is infinite.
        accountant: where epsilon comes from, ``pld``, ``rdp`` or ``exact``; ``none`` where it is
            infinite.
        epsilon_round: of one round of training by itself; None where there is none.
        epsilon_attacked: of training and all attacked updates together: these are sent on top of
            it, unless they are those that clients really send.
        rero: reconstruction robustness: how probably any attack on all of this picks the right one
            of the candidates for an image, at most; 1 where nothing is guaranteed.
        candidates: how many there are.
    """

    epsilon: float
    reason: str
    unit: Literal["image", "client"] = "image"
    delta: float | None = None
    accountant: str = "none"
    epsilon_round: float | None = None
    epsilon_attacked: float = math.inf
    rero: float = 1.0
    candidates: int = 1000

    def describe(self) -> tuple[str, ...]:
        """Return what is guaranteed, in lines; why it is no more says `reason`."""
        if self.delta is None:
            return (f"epsilon infinite: {self.reason}",)
        whom = f"one {self.unit} ({self.accountant})"
        alone = "" if self.epsilon_round is None else f"; a round alone {self.epsilon_round:.3g}"
        beside = f"epsilon {self.epsilon_attacked:.3g} with the attacked updates, beside training"
        return (
            f"epsilon {self.epsilon:.3g} at delta {self.delta:.3g} for {whom}{alone}",
            *([beside] if self.epsilon_attacked != self.epsilon else []),
            f"any attack picks the right one of {self.candidates:,} candidates for an image with a "
            f"probability of at most {self.rero:.3g}",
        )


@dataclass(frozen=True)
class Observation:
    """Everything the attacker has; made by ``ThreatModel.observe`` alone.

    Args:
        capture_id: a name for the update that says nothing of its images, ``round-005/client-2``;
            seeds the attacker's random streams.
        payload: what the server sent.
        tensors: the update, `{name: P_i}`; only the captured parameters where not all are.
        kind: as in `ClientUpdate`.
        spec: shape, classes and normalisation of the data.
        num_examples: N, or None where withheld.
        labels: `(N,)`, or None where withheld.
        local_training: how the update was computed, or None where withheld; its order is None
            where only that is.
        buffers: the client's buffers after training, or None where withheld or not sent.
        weights_rounding: of tensors that are differences of float32 weights, by how much the
            rounding of these weights moves an entry, relative to its weight; 0 where they are not.
        defense: the parameters of the client's defense, part by part in their order; none of them
            where it has no defense. None where withheld, or where nobody knows.
        auxiliary: `(A, C, *S)` in [0, 1]: public images of the modality, none of them attacked; the
            same tensor for all updates. None where withheld.
        aggregate: of a mean over clients, what is granted of it; None of one client's update.
        same_images: what was seen of the same images in earlier rounds, first to last, each without
            any before it; None where it is withheld which updates these are.
        planted: what a malicious server put into the model that it sent; None of an honest one.
    """

    capture_id: str
    payload: ServerPayload
    tensors: Mapping[str, Tensor]
    kind: Literal["gradient", "delta"]
    spec: DataSpec
    num_examples: int | None
    labels: Tensor | None
    local_training: LocalTraining | None
    buffers: Mapping[str, Tensor] | None = None
    weights_rounding: float = 0.0
    defense: tuple[DefenseFacts, ...] | None = None
    auxiliary: Tensor | None = None
    aggregate: Aggregate | None = None
    same_images: tuple[Observation, ...] | None = None
    planted: Planted | None = None

    @property
    def rounds(self) -> tuple[Observation, ...]:
        """All that is known to be of these images, first to last: this update is the last."""
        return (*(self.same_images or ()), self)


@dataclass(frozen=True)
class UpdateFacts:
    """What the client's side knows about one update; it explains a score and never the attack.

    Args:
        gradient_norm: Euclidean norm of the update before any defense, not negative, in the unit
            of a gradient (a delta over the learning rate and the number of steps). Of an update
            captured elsewhere: of what was captured, after whatever defense came before; and where
            nobody knows how a delta came about, of the delta itself.
        true_probability: `(N,)`: the probability that the network, as it was sent, gives each
            image's true class; NaN where nobody knows the images.
        noise_scale: scale of the noise that a defense added, or None.
        snr_db: update against noise, or None without noise.
        defense: what else a defense did, by `medpfl.image_score.DEFENSE_COLUMNS`; none of them
            without a defense.
            ``sent_norm``: Euclidean norm of what is sent, in its own unit; ``share_sent``: of the
            entries; ``bytes_sent``; ``clip_factor`` and ``residual_norm`` as a part reports them.
            Of a secure aggregation: ``survivors``, the clients in the sum; ``bytes_sent``, mean of
            theirs; ``expansion``, over what they would send without it; ``aggregation_seconds``,
            all clients and the server one after another; ``entries_clipped`` of all clients.
            Of an inspection of the model: ``alarms``, how many things were found; ``refused``, 1
            where nothing was sent, and of a sum the share of its clients who did so.
    """

    gradient_norm: float
    true_probability: Tensor
    noise_scale: float | None = None
    snr_db: float | None = None
    defense: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Capture:
    """One attacked update: what the attacker sees, and beside it what it is judged by.

    Args:
        observation: all that the attack gets; names the capture.
        truth: the images behind it, or None where nobody knows them.
        facts: what the client's side knows, or None.
        round: rounds that the global model was trained for, counted from 0.
        client: number of the client, counted from 0; None where several are in it.
        training: how the update was computed, whatever the attacker is told; None: nobody knows.
        defense: the parameters of the client's defense, in the same way.
    """

    observation: Observation
    truth: Truth | None
    facts: UpdateFacts | None
    round: int
    client: int | None
    training: LocalTraining | None = None
    defense: tuple[DefenseFacts, ...] | None = None

    @property
    def capture_id(self) -> str:
        """The observation's."""
        return self.observation.capture_id


@dataclass(frozen=True)
class Trace:
    """How one reconstruction came about, at T recorded steps.

    Args:
        steps: `(T,)` int64 step numbers.
        objective: `(T,)` float64 objective values.
        inputs: `(T, N, C, *S)` intermediate reconstructions in [0, 1], float32.
    """

    steps: Tensor
    objective: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What the attacker hands in for one update.

    Searches hand in as many images as are behind the update, M = N; read-outs of a malicious
    server's model as many as they tell apart, with `quality` for each.

    Args:
        capture_id: the observation's.
        inputs: `(M, C, *S)` in [0, 1], float32, finite.
        labels: `(M,)` int64: inferred, jointly optimised, or as granted.
        objective: final objective value of the chosen row; NaN where nothing was computed.
        status: why the row ended.
        steps: optimiser steps taken.
        evaluations: evaluations of the objective and its gradient.
        seconds: this update's share of the wall time of the rows it ran beside.
        trace: None where none was asked for.
        closed_form: whether the image was computed from the update before any search.
        unknowns: D, what was searched for: pixels, and label scores where these are unknown.
        determined: the share of the pixels that the update determines at this objective, see
            `medpfl.attacks.determination`; NaN where that was not asked.
        unexplained: what is left of the objective, relative to what a blank image leaves; NaN where
            that was not asked.
        runner_up: `(N, C, *S)` in [0, 1], float32: the images of the independent restart of second
            lowest objective, in its own order; None where there was no other.
        quality: `{name: (M,)}` float64: what the attacker itself can tell of each image, by
            `medpfl.planted.QUALITY`; empty of searches.
    """

    capture_id: str
    inputs: Tensor
    labels: Tensor
    objective: float
    status: Status
    steps: int
    evaluations: int
    seconds: float
    trace: Trace | None = field(default=None, repr=False)
    closed_form: bool = False
    unknowns: int = 0
    determined: float = math.nan
    unexplained: float = math.nan
    runner_up: Tensor | None = field(default=None, repr=False)
    quality: Mapping[str, Tensor] = field(default_factory=dict)

"""What the files of a capture hold, held against its manifest and its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from medpfl.captures.manifest import Manifest
from medpfl.captures.network import Network, as_its_kind, check_names
from medpfl.captures.tensors import as_float32, dtype_name
from medpfl.errors import DataError
from medpfl.types import ClientUpdate, DataSpec, ServerPayload, Truth


@dataclass(frozen=True)
class Places:
    """The files of one capture, for messages.

    Args:
        manifest: `capture.json`.
        update: the file of the update.
    """

    manifest: str
    update: str


def client_update(
    manifest: Manifest,
    update: Mapping[str, Tensor],
    network: Network,
    payload: ServerPayload,
    places: Places,
    truth: Truth | None,
    num_examples: int,
) -> ClientUpdate:
    """Return what came back from the client, in float32, weights as what they moved by.

    Args:
        manifest: of the capture.
        update: the tensors of its file.
        network: what they are of.
        payload: what the client was sent.
        places: for messages.
        truth: the images, where they are known; the labels are theirs, too.
        num_examples: N.

    Raises:
        DataError: the tensors are not those of manifest and network.
    """
    stated = manifest.update_tensors
    found = {name: (tuple(t.shape), dtype_name(t.dtype)) for name, t in update.items()}
    if found != stated:
        odd = sorted(n for n in {*stated, *found} if stated.get(n) != found.get(n))[0]
        raise DataError(
            f"{places.update}: {odd} is {_told(found.get(odd))}, and {places.manifest} says "
            f"{_told(stated.get(odd))}: these files are not of one capture"
        )
    check_names(update, network.stored, places.update)
    parameters, buffers = network.parts(update)
    if not parameters:
        raise DataError(f"{places.update}: holds no parameter of the network")
    _check_buffers(manifest, buffers, network, payload, places)
    labels = None if manifest.labels is None else torch.tensor(manifest.labels)
    return ClientUpdate(
        kind="gradient" if manifest.kind == "gradient" else "delta",
        tensors=_moved(manifest, parameters, payload, places.update),
        num_examples=num_examples,
        local_training=manifest.local_training,
        buffers=_buffers(buffers, payload, places.update)
        if manifest.batch_norm == "train_shared"
        else None,
        labels=labels if truth is None else truth.labels,
        aggregate=manifest.aggregate,
    )


def truth_in(manifest: Manifest, tensors: Mapping[str, Tensor], place: str) -> Truth:
    """Return the images behind an update.

    Args:
        manifest: of the capture.
        tensors: of the file of the images.
        place: that file, for messages.

    Raises:
        DataError: they are no images in [0, 1] of the shape stated, or do not go with the labels.
    """
    spec, ids = manifest.spec, cast(tuple[str, ...], manifest.truth_ids)
    if tensors.keys() != {"inputs", "labels"}:
        raise DataError(f"{place}: must hold two tensors, inputs and labels, and holds others")
    inputs, labels = tensors["inputs"], tensors["labels"]
    wanted = (len(ids), *spec.shape)
    if inputs.dtype is not torch.float32 or tuple(inputs.shape) != wanted:
        raise DataError(
            f"{place}: inputs is {dtype_name(inputs.dtype)} {tuple(inputs.shape)}, and must be "
            f"float32 {wanted}: (N, C, *S) as num_examples and data.shape say"
        )
    if float(inputs.min()) < 0 or float(inputs.max()) > 1:
        raise DataError(
            f"{place}: inputs lie from {float(inputs.min()):g} to {float(inputs.max()):g}, and "
            "must be pixels in [0, 1]: as they were before mean and std were applied"
        )
    if labels.dtype is not torch.int64 or tuple(labels.shape) != wanted[:1]:
        raise DataError(
            f"{place}: labels is {dtype_name(labels.dtype)} {tuple(labels.shape)}, and must be "
            f"int64 {wanted[:1]}"
        )
    check_labels(labels, spec, place)
    if manifest.labels is not None and tuple(labels.tolist()) != manifest.labels:
        raise DataError(f"{place}: labels are not those that the manifest states")
    return Truth(inputs=inputs, labels=labels, ids=ids, geometry=manifest.geometry)


def check_labels(labels: Tensor, spec: DataSpec, place: str) -> None:
    """Refuse labels that are no class.

    Raises:
        DataError: names one.
    """
    odd = labels[(labels < 0) | (labels >= spec.num_classes)]
    if len(odd):
        raise DataError(
            f"{place}: label {int(odd[0])}: there are {spec.num_classes} classes, numbered from 0"
        )


def _moved(
    manifest: Manifest, parameters: Mapping[str, Tensor], payload: ServerPayload, place: str
) -> dict[str, Tensor]:
    """Return gradient or delta; weights minus what was sent, as the server would."""
    result = {}
    for name, tensor in parameters.items():
        if not tensor.is_floating_point():
            raise DataError(f"{place}: {name} holds whole numbers, and is a parameter")
        if manifest.kind == "weights":
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            tensor = tensor - payload.parameters[name]
        result[name] = as_float32(tensor, name, place)
    return result


def _check_buffers(
    manifest: Manifest,
    buffers: Mapping[str, Tensor],
    network: Network,
    payload: ServerPayload,
    places: Places,
) -> None:
    """Refuse an update whose buffers say that BatchNorm ran otherwise than the manifest says."""
    stated = f"{places.manifest}: batch_norm={manifest.batch_norm}"
    if manifest.batch_norm == "eval_public":
        moved = [n for n, b in buffers.items() if not _is_as_sent(b, payload.buffers[n])]
        if moved and manifest.defense is None:
            raise DataError(
                f"{stated}, and {places.update} holds another {moved[0]} than was sent: the client "
                "ran BatchNorm in train mode (train_shared), or name what changed it in defense"
            )
        return
    whole = buffers.keys() == network.buffers.keys()
    if (manifest.batch_norm == "train_shared" and not whole) or (
        manifest.batch_norm == "train_private" and buffers
    ):
        raise DataError(
            f"{stated}, and {places.update} holds {len(buffers)} of the network's "
            f"{len(network.buffers)} buffers: under train_shared all of them leave the client, and "
            "under train_private none"
        )


def _is_as_sent(came: Tensor, sent: Tensor) -> bool:
    """Tell whether a buffer came back as it was sent, in the precision in which it came."""
    return torch.equal(came, sent.to(came.dtype))


def _buffers(
    buffers: Mapping[str, Tensor], payload: ServerPayload, place: str
) -> dict[str, Tensor]:
    own = payload.buffers
    came = {name: as_its_kind(t, own[name], name, place) for name, t in buffers.items()}
    return {name: came.get(name, tensor) for name, tensor in own.items()}


def _told(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if entry is None else f"{entry[1]} {entry[0]}"

"""A throw-away network on blank images: shows before a run whether it can be attacked at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from medpfl.attacks.distances import SquaredError
from medpfl.attacks.matching import MatchingObjective, Targets
from medpfl.attacks.unknowns import Unknowns
from medpfl.batch_norm import BatchNormPolicy, runs_in_train_mode
from medpfl.errors import FAULTS, ConfigurationError
from medpfl.training import UpdateMap
from medpfl.types import DataSpec, ServerPayload

_SHOWN = 3


def try_network(
    model: nn.Module,
    spec: DataSpec,
    *,
    batch_size: int,
    batch_norm: BatchNormPolicy,
    thoroughly: bool,
) -> None:
    """Run a network as clients and attackers will.

    Args:
        model: on the CPU; not to be used afterwards.
        spec: the data.
        batch_size: images in one update.
        batch_norm: how clients run it.
        thoroughly: whether its gradient, and that of an attack, are tried as well.

    Raises:
        ConfigurationError: the network cannot be trained, or attacked, on such data.
    """
    _check_parameters(model)
    inputs = torch.zeros(batch_size, *spec.shape)
    training = runs_in_train_mode(batch_norm)
    try:
        with torch.no_grad():
            logits = model.train(training)(inputs)
    except FAULTS as fault:
        raise ConfigurationError(
            f"the network cannot take an update of shape {' x '.join(map(str, inputs.shape))} in "
            f"{'train' if training else 'eval'} mode ({_first_line(fault)}): choose another "
            "preprocess.size, federation.batch_size, federation.batch_norm or model"
        ) from fault
    _check_logits(model, logits, batch_size, spec.num_classes)
    if thoroughly:
        payload = ServerPayload(
            model=model,
            parameters={n: p.detach() for n, p in model.named_parameters()},
            buffers={n: b.detach() for n, b in model.named_buffers()},
            batch_norm=batch_norm,
        )
        _try_update(payload, inputs)
        _try_attack(payload, spec, batch_size, logits.shape[1])


def _check_parameters(model: nn.Module) -> None:
    name = type(model).__name__
    parameters = dict(model.named_parameters())
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigurationError(f"model: {name} has no parameter to train (requires_grad)")
    lazy = [n for n, p in parameters.items() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise ConfigurationError(f"model: {name}: {_few(lazy)} has no size yet: give layers theirs")
    other = [f"{n} ({p.dtype})" for n, p in parameters.items() if p.dtype != torch.float32]
    if other:
        raise ConfigurationError(
            f"model: {name}: clients compute in float32, but not float32 are {_few(other)}"
        )


def _check_logits(model: nn.Module, logits: object, batch_size: int, classes: int) -> None:
    given = type(logits).__name__
    if isinstance(logits, Tensor):
        rows, *outputs = logits.shape or (0,)
        one_each = rows == batch_size and len(outputs) == 1 and outputs[0] >= classes
        if one_each and logits.dtype == torch.float32:
            return
        given = f"{str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)}"
    raise ConfigurationError(
        f"model: {type(model).__name__} must return one float32 logit a class, of shape "
        f"({batch_size}, {classes}) for this update, but returns {given}"
    )


def _try_update(payload: ServerPayload, inputs: Tensor) -> None:
    """Take the gradient that a client sends."""
    name = type(payload.model).__name__
    parameters = {n: p.clone().requires_grad_() for n, p in payload.parameters.items()}
    buffers = {n: b.clone() for n, b in payload.buffers.items()}
    try:
        logits = functional_call(payload.model, (parameters, buffers), (inputs,))
        loss = functional.cross_entropy(logits, torch.zeros(len(inputs), dtype=torch.int64))
        gradient = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except FAULTS as fault:
        raise ConfigurationError(
            f"model: {name} has no gradient for a client to send ({_first_line(fault)})"
        ) from fault
    unused = [n for n, g in zip(parameters, gradient, strict=True) if g is None]
    if unused:
        raise ConfigurationError(
            f"model: {name}: the logits do not depend on {_few(unused)}: use it or remove it"
        )


def _try_attack(payload: ServerPayload, spec: DataSpec, batch_size: int, outputs: int) -> None:
    """Evaluate one row as gradient matching does."""
    unknowns = Unknowns(spec=spec, images=batch_size, classes=outputs, joint_labels=False)
    size = sum(p.numel() for p in payload.parameters.values())
    target = Targets(
        gradient=torch.zeros(1, size),
        labels=torch.full((1, batch_size, outputs), 1 / outputs),
        parameters=torch.empty(1, 0),
        buffers=torch.empty(1, 0),
        order=torch.empty(1, 0, dtype=torch.int64),
    )
    try:
        objective = MatchingObjective(
            payload=payload,
            update=UpdateMap(),
            unknowns=unknowns,
            distance=SquaredError(),
            dtype=torch.float32,
            chunk=1,
        )
        objective(torch.full((1, unknowns.count), 0.5), target)
    except FAULTS as fault:
        raise ConfigurationError(
            f"model: {type(payload.model).__name__} cannot be attacked: its gradient cannot be "
            f"differentiated by torch.func ({_first_line(fault)}). Write its forward without "
            "in-place changes, .item() and branches on values"
        ) from fault


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__

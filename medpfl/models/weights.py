"""Weights from files: read without ever running what is in them, checked before they are used."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from medpfl.errors import ConfigurationError, DataError

# What torch's restricted unpickler raises on files that are damaged, foreign or hostile.
_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)
_CONNECT_SECONDS = 10.0
_NAMED = 3


def read_state(source: str) -> Mapping[str, Tensor]:
    """Read a state dict.

    Args:
        source: path of a ``.pt`` or ``.pth`` file (``torch.save(model.state_dict(), path)``) or of
            a ``.safetensors`` file.

    Returns:
        `{name: tensor}` on the CPU.

    Raises:
        ConfigurationError: the file is of another kind, or holds no state dict.
        DataError: the file is missing or unreadable, or would run code.
    """
    path = Path(source).expanduser()
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ConfigurationError(
            f"model.weights={source}: give a file ending in .pt, .pth or .safetensors "
            "(imagenet is for model=resnet18 alone)"
        )
    if not path.is_file():
        raise DataError(f"model.weights={source}: no such file")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise DataError(
            f"model.weights={source}: not a readable file of plain tensors "
            f"({_first_line(error)}); nothing in it was run. Save one with "
            "torch.save(model.state_dict(), path)"
        ) from error
    return _require_state_dict(state, source)


def imagenet_resnet18() -> Mapping[str, Tensor]:
    """Return torchvision's ImageNet weights, from torch.hub's cache or else downloaded to it.

    Returns:
        `{name: tensor}` on the CPU.

    Raises:
        DataError: they are not in the cache and cannot be downloaded, or the cached file is broken.
    """
    weights = ResNet18_Weights.IMAGENET1K_V1
    try:
        with _socket_timeout(_CONNECT_SECONDS):
            state: object = weights.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
            )
    except (HTTPException, *_UNREADABLE) as error:
        raise DataError(
            f"model.weights=imagenet: cannot get {weights.url} ({_first_line(error)}). Download it "
            "elsewhere and give the file as model.weights=PATH, or put it under "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error
    return _require_state_dict(state, "imagenet")


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into the network, in place, once every name and shape is known to fit.

    Args:
        model: left as it was where the state does not fit.
        state: `{name: tensor}`.
        source: where the state is from, for the message.

    Raises:
        ConfigurationError: names are missing or unexpected, or shapes differ.
    """
    own = model.state_dict()
    # Old files lack BatchNorm's counters, which a fixed momentum never reads.
    missing = [n for n in own if n not in state and not n.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    faults = [f"{kind}: {_first_few(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ConfigurationError(
            f"model.weights={source} does not fit the network; {'; '.join(faults)}. "
            "Choose the model, the dataset's classes and channels that the file was made with"
        )
    model.load_state_dict(dict(state), strict=False)


def _require_state_dict(state: object, source: str) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ConfigurationError(
            f"model.weights={source}: holds a {type(state).__name__}, not a state dict. "
            "Save model.state_dict() alone"
        )
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ConfigurationError(
            f"model.weights={source}: holds more than tensors ({_first_few(foreign)}). "
            "Save model.state_dict() alone"
        )
    return {str(name): tensor for name, tensor in state.items()}


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound each wait for the network: torch.hub itself would wait without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _first_few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

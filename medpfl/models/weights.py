"""Weights from files: read without ever running what is in them, checked before they are used."""

from __future__ import annotations

import pickle
import re
import socket
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from medpfl._paths import expanded, is_file, looking, printable
from medpfl.errors import ConfigurationError, DataError

# What torch's restricted unpickler raises on files that are damaged, foreign or hostile: any of
# its steps can meet a value that it was not made for.
_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    OSError,
    ImportError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    SyntaxError,
    struct.error,
)
_SETTING = "model.weights"
_CONNECT_SECONDS = 10.0
_NAMED = 3


def read_state(source: str, *, setting: str = _SETTING) -> Mapping[str, Tensor]:
    """Read a state dict.

    Args:
        source: path of a ``.pt`` or ``.pth`` file (``torch.save(model.state_dict(), path)``) or of
            a ``.safetensors`` file.
        setting: what the path was given with, for messages.

    Returns:
        `{name: tensor}` on the CPU.

    Raises:
        ConfigurationError: the file is of another kind, or holds no state dict.
        DataError: the file is missing or unreadable, or would run code.
    """
    told = f"{setting}={printable(source)}"
    path = expanded(source, setting=setting)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        hint = " (imagenet is for model=resnet18 alone)" if setting == _SETTING else ""
        raise ConfigurationError(f"{told}: give a file ending in .pt, .pth or .safetensors{hint}")
    with looking(told):
        if not is_file(path):
            raise DataError(f"{told}: no such file")
        path.open("rb").close()  # what the libraries say of a closed file differs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, at formats of tensors that are refused below
            state: object = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
            return _require_state_dict(state, told)
    except ConfigurationError:
        raise
    except _UNREADABLE as error:
        raise DataError(
            f"{told}: not a readable file of plain tensors "
            f"({_first_line(error)}); nothing in it was run. Save one with "
            "torch.save(model.state_dict(), path)"
        ) from error


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
    return _require_state_dict(state, f"{_SETTING}=imagenet")


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into the network, in place, once all of it is known to fit.

    Numbers of another precision become float32.

    Args:
        model: left as it was where the state does not fit.
        state: `{name: tensor}`.
        source: where the state is from, for the message.

    Raises:
        ConfigurationError: names are missing or unexpected, shapes or kinds of numbers differ, or
            a number is not finite.
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
    model.load_state_dict(
        {n: _converted(t, own[n], n, source) for n, t in state.items()}, strict=False
    )


def _converted(given: Tensor, own: Tensor, name: str, source: str) -> Tensor:
    """Return a tensor of the right shape with the precision of the network's own."""
    if given.is_floating_point() != own.is_floating_point() or given.dtype is torch.bool:
        raise ConfigurationError(
            f"model.weights={source}: {name} holds {_dtype(given)}, where the network has "
            f"{_dtype(own)}: save the state dict of the network as it was trained, not quantised"
        )
    tensor = given.to(own.dtype)
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise ConfigurationError(
            f"model.weights={source}: {name} holds {count} numbers that are NaN or infinite as "
            f"{_dtype(own)}: the training that made the file went wrong; give another one"
        )
    return tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _require_state_dict(state: object, told: str) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise ConfigurationError(
            f"{told}: holds a {type(state).__name__}, not a state dict. "
            "Save model.state_dict() alone"
        )
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ConfigurationError(
            f"{told}: holds more than tensors ({_first_few(foreign)}). "
            "Save model.state_dict() alone"
        )
    odd = [f"{n} ({kind})" for n, tensor in state.items() if (kind := _odd_kind(tensor))]
    if odd:
        raise ConfigurationError(
            f"{told}: holds tensors that are no plain numbers: {_first_few(odd)}. "
            "Save the state dict of the plain network, its tensors dense and on the CPU"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _odd_kind(tensor: Tensor) -> str | None:
    """Return what keeps a tensor from being dense real numbers in memory; reads no value."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device}"
    return "complex" if tensor.is_complex() else None


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
    if isinstance(error, pickle.UnpicklingError):
        # torch begins by advising to trust the file and run what is in it.
        fault = re.search(r"WeightsUnpickler error: (.+)", str(error))
        return fault[1] if fault else "it holds more than tensors, or is damaged"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _first_few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

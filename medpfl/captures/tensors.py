"""Files of tensors: read whole, compared with their checksum, never unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from medpfl._paths import is_file, looking, printable
from medpfl.captures.fields import first_line, is_text
from medpfl.captures.manifest import FileReference
from medpfl.errors import DataError

SUFFIX = ".safetensors"
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".npy", ".npz")
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_AGAIN = "restore it from a copy, or take the capture again"

# What the library raises on contents that are damaged, foreign or hostile.
_UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
)


def located(folder: Path, reference: FileReference, root: Path, place: str) -> Path:
    """Return where a capture's file is.

    Args:
        folder: the capture's.
        reference: what the manifest says.
        root: the folder that the user gave, which no file may be outside of.
        place: the manifest, for messages.

    Raises:
        DataError: it is no file of tensors, or elsewhere.
    """
    path = PurePosixPath(reference.path)
    if path.suffix.lower() in PICKLES:
        raise DataError(
            f"{place}: {reference.path}: files of this kind can run code as they are read, and are "
            f"refused: save the tensors with safetensors.torch.save_file, as a {SUFFIX} file"
        )
    if path.suffix != SUFFIX or path.is_absolute() or "\\" in reference.path:
        raise DataError(
            f"{place}: {reference.path}: must be a {SUFFIX} file, relative to the capture's folder"
        )
    found = folder / path
    with looking(f"{place}: {reference.path}"):
        whereto = found.resolve(strict=False)
        if not whereto.is_relative_to(root.resolve()):
            raise DataError(
                f"{place}: {reference.path} lies outside of {printable(root)}, the folder that was "
                "given. Where captures share a model, give the folder that holds it, too; "
                "otherwise do not trust this capture"
            )
        if not is_file(found):
            raise DataError(f"{place}: {reference.path}: no such file: {_AGAIN}")
    return found


def read_file(path: Path, reference: FileReference) -> bytes:
    """Return the content of a file once it is what its manifest says, to the byte.

    Raises:
        DataError: it is unreadable, truncated, or was changed.
    """
    place = printable(path)
    with looking(place):
        size = path.stat().st_size
        if size < reference.bytes:
            raise DataError(f"{place}: truncated: {size:,} of {reference.bytes:,} bytes: {_AGAIN}")
        content = path.read_bytes() if size == reference.bytes else b""
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise DataError(
            f"{place}: not the file that was captured: its sha256 is not the one in the manifest. "
            f"It was damaged or changed since: {_AGAIN}"
        )
    return content


def tensors_in(content: bytes, place: str) -> dict[str, Tensor]:
    """Return a file's tensors, none of which holds NaN or infinity.

    Args:
        content: of a ``.safetensors`` file.
        place: the file, for messages.

    Returns:
        ``{name: tensor}`` on the CPU: floating point of one kind, or int64.

    Raises:
        DataError: it is no such file, or the numbers are of other kinds, or not finite.
    """
    try:
        tensors = safetensors.torch.load(content)
    except _UNREADABLE as error:
        raise DataError(
            f"{place}: not a readable {SUFFIX} file ({first_line(error)}): {_AGAIN}"
        ) from error
    check_numbers(tensors, place)
    return tensors


def check_numbers(tensors: Mapping[str, Tensor], place: str) -> None:
    """Refuse tensors that are no plain, finite numbers of one floating kind.

    Raises:
        DataError: names the tensor.
    """
    floats = {t.dtype for t in tensors.values() if t.dtype is not torch.int64}
    kinds = ", ".join(sorted(map(dtype_name, floats)))
    if floats - set(_FLOATS):
        allowed = ", ".join(map(dtype_name, _FLOATS))
        raise DataError(f"{place}: holds {kinds}: tensors must be {allowed}, or int64 for counters")
    if len(floats) > 1:
        raise DataError(f"{place}: mixes {kinds}: save all of its tensors in one precision")
    for name, tensor in tensors.items():
        if not is_text(name):
            raise DataError(
                f"{place}: holds a tensor whose name cannot be printed: {ascii(name)[:80]}"
            )
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise DataError(
                f"{place}: {name} holds {bad} numbers that are NaN or infinite: the training that "
                "made it had diverged. Capture another round"
            )


def as_float32(tensor: Tensor, name: str, place: str) -> Tensor:
    """Return a tensor in the precision of the attack's network.

    Raises:
        DataError: a number is too large for it.
    """
    result = tensor.to(torch.float32)
    if not bool(result.isfinite().all()):
        raise DataError(f"{place}: {name} holds numbers that are infinite as float32")
    return result


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a ``.safetensors`` file; memory that is shared is written twice."""
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content: bytes = safetensors.torch.save(apart)
    return content


def plain(values: Mapping[str, Tensor | NDArray[np.generic]], place: str) -> dict[str, Tensor]:
    """Return tensors, whether torch's or numpy's were given, that can be written.

    Raises:
        DataError: something is no array of numbers.
    """
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        try:
            result[str(name)] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{place}: {name} is no array of numbers ({first_line(error)})"
            ) from error
    check_numbers(result, place)
    return result


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")

"""The raw arrays of one victim: written once, read back without unpickling."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medpfl._atomic import replacing
from medpfl.bounds.columns import BOUND_COLUMNS
from medpfl.errors import MedpflError
from medpfl.geometry import Geometry
from medpfl.image_score import DEFENSE_COLUMNS, READOUT_COLUMNS, ImageScore
from medpfl.types import Trace

_CLEAN_PIECE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+-]|_(?!_))*")
_LONGEST_NAME = 120
_HASH_DIGITS = 8
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# What zipfile, numpy's header and JSON raise on files that are damaged, foreign or hostile.
_UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    AttributeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
_NOWHERE = np.zeros((4, 4))
_TEXT_FIELDS = frozenset({"capture_id", "image_id", "status", "grade", "grade_mean_image"})


@dataclass(frozen=True)
class VictimRecord:
    """What a run keeps of one victim; reconstructions are in the order of the originals.

    Args:
        original: `(N, C, *S)` in [0, 1]; `(0, C, *S)` where nobody knows the images.
        reconstruction: `(N, C, *S)` in [0, 1]; row n goes with original n, and is black where no
            reconstruction was left for it, as its score says.
        scores: N rows of ``metrics.csv``.
        trace: how the reconstruction came about, its images in the same order, or None.
        ssim_trace: `(T,)` mean SSIM at the trace's steps, or None.
        left: `(N, C, *S)`: what the update leaves open of each pixel, or None.
        geometry: where the voxels of each original lie; empty of pictures.
    """

    original: Tensor
    reconstruction: Tensor
    scores: tuple[ImageScore, ...]
    trace: Trace | None
    ssim_trace: Tensor | None
    left: Tensor | None = None
    geometry: tuple[Geometry | None, ...] = ()

    @property
    def originals(self) -> tuple[Tensor | None, ...]:
        """An original for each reconstruction, None where nobody knows it."""
        return tuple(self.original) if len(self.original) else (None,) * len(self.scores)


def safe_name(name: str) -> str:
    """Return a file name, without suffix, that is readable, portable and this id's alone.

    ``glioma/Tr-gl_0048`` becomes ``glioma__Tr-gl_0048``. An id with anything unusual in it (a
    space, two underscores, a leading dot) gets a few digits of its hash, as simplifying it could
    make it equal to another.
    """
    pieces = name.split("/")
    readable = "__".join(pieces)
    clean = all(_CLEAN_PIECE.fullmatch(piece) and piece[-1] not in "._" for piece in pieces)
    if clean and len(readable) <= _LONGEST_NAME:
        return readable
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    simplified = re.sub(r"[^A-Za-z0-9.+-]+", "_", readable).strip("._")[:_LONGEST_NAME]
    return f"{simplified}-{digest}" if simplified else digest


def save_victim(path: Path, record: VictimRecord) -> None:
    """Write a victim's arrays as an ``.npz`` that is there whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {
        "original": _array(record.original),
        "reconstruction": _array(record.reconstruction),
        "scores": np.array(_scores_to_json(record.scores)),
    }
    if record.trace is not None:
        arrays["trace_steps"] = _array(record.trace.steps)
        arrays["trace_objective"] = _array(record.trace.objective)
        arrays["trace_inputs"] = _array(record.trace.inputs)
    if record.ssim_trace is not None:
        arrays["ssim_trace"] = _array(record.ssim_trace)
    if record.left is not None:
        arrays["left"] = _array(record.left)
    if any(record.geometry):
        arrays["affine"] = np.stack([_NOWHERE if g is None else g.affine for g in record.geometry])
        arrays["stored"] = np.array(["" if g is None else g.stored for g in record.geometry])
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_victim(path: Path) -> VictimRecord:
    """Read what `save_victim` wrote.

    Raises:
        MedpflError: the file is missing, damaged or not a victim's record.
    """
    try:
        # Opened here because numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _from_arrays({name: arrays[name] for name in arrays.files})
    except _UNREADABLE as error:
        raise MedpflError(
            f"{path} is not a readable record of a victim ({type(error).__name__}: {error}): "
            "give an .npz from the reconstructions folder of a run, or run the experiment again"
        ) from error


def _from_arrays(arrays: dict[str, NDArray[np.generic]]) -> VictimRecord:
    trace = None
    if "trace_steps" in arrays:
        steps, objective, inputs = (
            torch.from_numpy(arrays[f"trace_{name}"]) for name in ("steps", "objective", "inputs")
        )
        trace = Trace(steps=steps, objective=objective, inputs=inputs)
    ssim_trace = torch.from_numpy(arrays["ssim_trace"]) if "ssim_trace" in arrays else None
    record = VictimRecord(
        original=torch.from_numpy(arrays["original"]),
        reconstruction=torch.from_numpy(arrays["reconstruction"]),
        scores=_scores_from_json(str(arrays["scores"])),
        trace=trace,
        ssim_trace=ssim_trace,
        left=torch.from_numpy(arrays["left"]) if "left" in arrays else None,
        geometry=_geometry(arrays),
    )
    images = (record.original, record.reconstruction)
    known = any(score.judged for score in record.scores)
    wanted = (len(record.reconstruction) if known else 0, *record.reconstruction.shape[1:])
    if record.original.shape != wanted or record.reconstruction.ndim < 3:
        raise ValueError("originals and reconstructions differ in shape, or are no images")
    if not len(record.reconstruction) == len(record.scores) > 0:
        raise ValueError("originals, reconstructions and scores do not go together")
    if record.left is not None and len(record.left) != len(record.scores):
        raise ValueError("what updates leave open and scores do not go together")
    if any(image.dtype is not torch.float32 or not image.isfinite().all() for image in images):
        raise ValueError("originals or reconstructions are not finite float32 numbers")
    return record


def _geometry(arrays: dict[str, NDArray[np.generic]]) -> tuple[Geometry | None, ...]:
    if "affine" not in arrays:
        return ()
    affines = torch.from_numpy(arrays["affine"]).double()
    stored = [str(letters) for letters in arrays["stored"]]
    if affines.shape != (len(stored), 4, 4) or len(stored) != len(arrays["original"]):
        raise ValueError("places and images do not go together")
    pairs = zip(affines, stored, strict=True)
    return tuple(Geometry(affine, letters) if letters else None for affine, letters in pairs)


def _scores_to_json(scores: Sequence[ImageScore]) -> str:
    # An exact hit has an infinite PSNR: as text it survives, where strict JSON knows no infinity.
    rows = [
        {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in score.row().items()
        }
        for score in scores
    ]
    return json.dumps(rows, allow_nan=False)


def _scores_from_json(text: str) -> tuple[ImageScore, ...]:
    return tuple(_score(row) for row in json.loads(text))


def _score(row: dict[str, Any]) -> ImageScore:
    numbers = {
        name: _NOT_FINITE[value]
        for name, value in row.items()
        if name not in _TEXT_FIELDS and isinstance(value, str)
    }
    found = {**row, **numbers}
    if found.get("success") is None:  # nobody knows
        found["success"] = False
    for name, value in found.items():
        wanted = str if name in _TEXT_FIELDS else int | float | None
        if not isinstance(value, wanted):
            raise ValueError(f"{name} is {value!r}")
    fixed = {name: found.pop(name) for name in ImageScore.fixed_columns() if name in found}
    groups = {"defense": DEFENSE_COLUMNS, "bounds": BOUND_COLUMNS, "readout": READOUT_COLUMNS}
    told: dict[str, Any] = {
        group: {name: _told(name, found.pop(name)) for name in columns if name in found}
        for group, columns in groups.items()
    }
    measures = {name: _measured(name, found[name]) for name in found}
    return ImageScore(**fixed, **told, measures=measures)


def _measured(name: str, value: float | None) -> float:
    if not name.isidentifier() or value is None:
        raise ValueError(f"{name} is {value!r}, and no measure")
    return float(value)


def _told(name: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"{name} is {value!r}")
    return value  # whole numbers stay whole: a resumed run's table is the same to the letter


def _array(values: Tensor) -> NDArray[np.generic]:
    array: NDArray[np.generic] = values.detach().cpu().numpy()
    return array

"""Tells the seconds of compiling from those of computing, within one attack."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor

from medpfl.profiling import Unprofiled

_TIMES_THE_MEDIAN = 4.0
_LEAST_SECONDS = 0.5


class CompileWatch(Unprofiled):
    """Times every evaluation; those that take far longer than their like have compiled.

    Code is compiled within the evaluation that first needs it. Such an evaluation takes seconds,
    where the others of as many rows take milliseconds.

    Args:
        device: where the attacker computes; CUDA is waited for after each evaluation.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[int, list[float]] = defaultdict(list)

    @contextmanager
    def evaluation(self, z: Tensor) -> Iterator[None]:
        """See `Profiler.evaluation`."""
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds[len(z)].append(time.perf_counter() - began)

    @property
    def compiling(self) -> float:
        """Seconds of compiling so far: of each evaluation that compiled, what exceeds its like."""
        everything = [s for seconds in self._seconds.values() for s in seconds]
        if not everything:
            return 0.0
        usual = median(everything)
        spent = 0.0
        for seconds in self._seconds.values():
            # Where only one evaluation had so many rows, the median of all of them must do.
            like = median(seconds) if len(seconds) > 2 else usual
            spent += sum(s - like for s in seconds if _compiled(s, like))
        return spent


def _compiled(seconds: float, usual: float) -> bool:
    return seconds > _LEAST_SECONDS and seconds > _TIMES_THE_MEDIAN * usual

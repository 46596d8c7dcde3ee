"""Where a run's time goes, and how much of the machine it uses: ``profile=true``."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ItemT = TypeVar("ItemT")

_REPEATS = 3


class Profiler(Protocol):
    """What the parts of a run tell about their work."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count the time within as a phase's; a phase within a phase takes its time from it."""
        ...

    def evaluation(self, z: Tensor) -> AbstractContextManager[None]:
        """Count the time within as the evaluation of `(B, D)` points."""
        ...

    def drawn(self, name: str, items: Iterable[ItemT]) -> Iterable[ItemT]:
        """Count the time that making each item takes as a phase's."""
        ...

    def profile(self) -> Profile | None:
        """Close the account and return it; None where nothing was counted."""
        ...


class Unprofiled:
    """Counts nothing."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """See `Profiler.phase`."""
        return nullcontext()

    def evaluation(self, z: Tensor) -> AbstractContextManager[None]:
        """See `Profiler.evaluation`."""
        return nullcontext()

    def drawn(self, name: str, items: Iterable[ItemT]) -> Iterable[ItemT]:
        """See `Profiler.drawn`."""
        return items

    def profile(self) -> None:
        """See `Profiler.profile`."""


UNPROFILED = Unprofiled()


@dataclass(frozen=True)
class Profile:
    """What a profiled run has counted; every phase's seconds are its own alone.

    Args:
        seconds: wall time by phase; ``other`` is what no phase claims.
        evaluations: evaluations of one row.
        evaluations_per_second: within the evaluation phase.
        rows: mean number of rows side by side.
        precision: the floating-point type that was measured.
        flops: arithmetic of one row's evaluation (matrix products and convolutions), or None where
            it was not counted: compiled code hides its operations.
        bytes: what the operations of one row's evaluation read and write, caches aside.
        peak_flops: per second, of a large matrix product on this machine.
        peak_bytes: per second, of a large copy on this machine.
    """

    seconds: dict[str, float]
    evaluations: int
    evaluations_per_second: float
    rows: float
    precision: str
    flops: float | None
    bytes: float | None
    peak_flops: float
    peak_bytes: float

    @property
    def fraction_of_peak_flops(self) -> float | None:
        """Arithmetic done while evaluating, as a fraction of what the machine can do."""
        return _fraction(self.flops, self.evaluations_per_second, self.peak_flops)

    @property
    def fraction_of_peak_bytes(self) -> float | None:
        """Traffic while evaluating, as a fraction of the machine's; above 1 thanks to caches."""
        return _fraction(self.bytes, self.evaluations_per_second, self.peak_bytes)

    def as_json(self) -> dict[str, object]:
        """Return everything under its name."""
        return asdict(self) | {
            "fraction_of_peak_flops": self.fraction_of_peak_flops,
            "fraction_of_peak_bytes": self.fraction_of_peak_bytes,
        }

    def as_markdown(self) -> str:
        """Return two tables: time by phase, and work against the machine's peak."""
        total = sum(self.seconds.values())
        by_share = sorted(self.seconds.items(), key=lambda item: -item[1])
        lines = ["| phase | seconds | share |", "| --- | ---: | ---: |"]
        lines += [f"| {n} | {s:.3f} | {s / max(total, 1e-9):.1%} |" for n, s in by_share]
        lines += [
            f"| total | {total:.3f} | |",
            "",
            f"{self.evaluations} evaluations in {self.precision}, {self.rows:.1f} rows side by "
            f"side on average, {self.evaluations_per_second:.1f} a second.",
            "",
            "| | an evaluation | a second | measured peak | fraction |",
            "| --- | ---: | ---: | ---: | ---: |",
            self._line("GFLOP", self.flops, self.peak_flops, self.fraction_of_peak_flops),
            self._line("GB", self.bytes, self.peak_bytes, self.fraction_of_peak_bytes),
            "",
            "FLOP: matrix products and convolutions. Bytes: what every operation reads and writes, "
            "as if nothing stayed in a cache. Peaks: a large matrix product and a large copy.",
            "",
        ]
        return "\n".join(lines)

    def _line(self, unit: str, one: float | None, peak: float, fraction: float | None) -> str:
        if one is None or fraction is None:
            return f"| {unit} | not counted | | {peak / 1e9:.1f} | |"
        a_second = one * self.evaluations_per_second / 1e9
        return f"| {unit} | {one / 1e9:.4g} | {a_second:.1f} | {peak / 1e9:.1f} | {fraction:.1%} |"


class RunProfiler:
    """Counts a run's time and work.

    Args:
        device: where the attacker computes; CUDA is waited for at the edges of phases.
        counts_work: whether the first evaluation's operations are counted; not for compiled code.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        counts_work: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device = device
        self._counts_work = counts_work
        self._clock = clock
        self._seconds: dict[str, float] = defaultdict(float)
        self._open = ["other"]
        self._since = clock()
        self._evaluations = 0
        self._ticks = 0
        self._counted_rows = 0
        self._dtype = torch.float32
        self._flops: float | None = None
        self._bytes: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `Profiler.phase`."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    @contextmanager
    def evaluation(self, z: Tensor) -> Iterator[None]:
        """See `Profiler.evaluation`."""
        with (
            self._counting(z)
            if self._ticks == 0 and self._counts_work
            else self.phase("evaluation")
        ):
            yield
        self._dtype = z.dtype
        self._evaluations += len(z)
        self._ticks += 1

    def drawn(self, name: str, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """See `Profiler.drawn`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def profile(self) -> Profile:
        """Close the account, measure the machine's peak, and return both."""
        self._switch()
        timed = self._evaluations - self._counted_rows
        spent = self._seconds.get("evaluation", 0.0)
        return Profile(
            seconds=dict(self._seconds),
            evaluations=self._evaluations,
            evaluations_per_second=timed / spent if spent > 0 else 0.0,
            rows=self._evaluations / max(1, self._ticks),
            precision=str(self._dtype).removeprefix("torch."),
            flops=self._flops,
            bytes=self._bytes,
            peak_flops=_peak_flops(self._device, self._dtype),
            peak_bytes=_peak_bytes(self._device),
        )

    def _switch(self) -> None:
        _wait(self._device)
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def _counting(self, z: Tensor) -> Iterator[None]:
        """Count the operations of one evaluation, whose time is kept apart: counting slows it."""
        work = _Work()
        with self.phase("counting"), work:
            yield
        self._flops, self._bytes = work.flops / len(z), work.bytes / len(z)
        self._counted_rows = len(z)


class _Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the arithmetic of operations, and the tensors that they read and write.

    Views move nothing. Of the arithmetic, what ``torch.utils.flop_counter`` knows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in _tensors((args, named, result)))
        count = flop_registry.get(_out_of_place(func.overloadpacket))
        if count is not None:
            self.flops += int(count(*args, **named, out_val=result))
        return result


def _out_of_place(operation: Any) -> Any:
    """Return the operation that one in place stands for: torch lists the arithmetic of that."""
    name = operation.__name__
    return getattr(torch.ops.aten, name[:-1], operation) if name.endswith("_") else operation


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)


def _fraction(one: float | None, per_second: float, peak: float) -> float | None:
    return None if one is None or not peak > 0 else one * per_second / peak


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, a, out=out), device)


def _peak_bytes(device: torch.device) -> float:
    source = torch.zeros(64_000_000 if device.type == "cuda" else 16_000_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few runs, after one to warm up."""
    seconds = []
    for _ in range(_REPEATS + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""`gpu`: the three targets for one large GPU, and the share of its peak; at small size on a CPU."""

from __future__ import annotations

import argparse
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch

from medpfl.bench.compiling import CompileWatch
from medpfl.bench.machine import show_note, show_table
from medpfl.bench.updates import attack_updates, compute_updates, dataset_overrides
from medpfl.data.select import DEFAULT_IMAGES
from medpfl.device import pick_device
from medpfl.profiling import RunProfiler
from medpfl.report.console import make_console
from medpfl.report.tables import format_percent, format_seconds

_COLUMNS = (
    "what",
    "precision",
    "images",
    "solved",
    "seconds",
    "compiling, s",
    "s / image",
    "target",
    "met",
    "fraction of peak",
    "peak memory",
)

NO_GPU = "not measured (no GPU)"

_GRADINV_STEPS = 24_000
_NOTE = (
    "Seconds are the attack's wall time, compiling left out. Fraction of peak: counted operations "
    "of matrix products and convolutions a second, against a matrix product of 8192 (on a CPU: "
    "1024) rows in the same precision on the same device; the factorisations of closed forms are "
    "not counted."
)


@dataclass(frozen=True)
class Target:
    """One measurement, and what it is to reach.

    Args:
        what: in words.
        images: attacked in all.
        overrides: its settings, but for the images.
        small_images: attacked where it is to run in seconds on a CPU.
        small: the settings that are changed for that.
        most_seconds: the target for the full size.
        per_image: whether the target is for one image rather than for all of them.
        scale: what seconds are multiplied by: above 1 where steps were left out.
        tf32: whether matrix products may round their inputs to 10 bits of mantissa; None where
            the attack computes in float64 and it makes no difference.
    """

    what: str
    images: int
    overrides: tuple[str, ...]
    small_images: int
    small: tuple[str, ...]
    most_seconds: float
    per_image: bool = False
    scale: float = 1.0
    tf32: bool | None = False

    @property
    def precision(self) -> str:
        """The attacker's precision in words."""
        return "float64" if self.tf32 is None else "TF32" if self.tf32 else "float32"

    @property
    def goal(self) -> str:
        """The target in words."""
        return f"{self.most_seconds:g} s{' an image' if self.per_image else ''}"

    def at_small_size(self) -> Target:
        """Return the same with fewer images and steps."""
        return replace(
            self,
            what=f"small size of: {self.what}",
            images=self.small_images,
            overrides=(*self.overrides, *self.small),
            scale=1.0,
        )


@dataclass(frozen=True)
class Measured:
    """What one measurement took; two of them add up.

    Args:
        images: attacked.
        solved: of these.
        seconds: wall time without compiling.
        compiling: seconds of compiling.
        flops: operations of all evaluations; NaN where they could not be counted.
        peak_flops: of the device, a second.
        peak_bytes: the largest memory at any time, of the GPU or of this process.
    """

    images: int
    solved: int
    seconds: float
    compiling: float
    flops: float
    peak_flops: float
    peak_bytes: int

    @property
    def fraction(self) -> float:
        """The share of the device's peak."""
        return self.flops / self.seconds / self.peak_flops

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.images + other.images,
            self.solved + other.solved,
            self.seconds + other.seconds,
            self.compiling + other.compiling,
            self.flops + other.flops,
            max(self.peak_flops, other.peak_flops),
            max(self.peak_bytes, other.peak_bytes),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the measurement can be told."""
    parser.add_argument("--small", action="store_true", help="a few images and steps, for a CPU")
    parser.add_argument("--only", nargs="+", choices=("table1", "scale_free", "gradinv"))
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME[@FOLDER]",
        default=["phantom"],
        help="options of conf/dataset, which share each target's number of images; phantom",
    )
    parser.add_argument(
        "--gradinv-images", type=int, default=4, help="images of GradInv side by side; %(default)s"
    )
    parser.add_argument(
        "--gradinv-steps",
        type=int,
        default=_GRADINV_STEPS,
        help="steps of GradInv; with fewer than %(default)s, its seconds are scaled up and marked",
    )
    parser.add_argument(
        "--compile",
        choices=("false", "true", "cudagraphs"),
        default="cudagraphs",
        help="attack.compile where there is a GPU; %(default)s",
    )
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE", help="settings of medpfl"
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print a row a target; those that need a GPU say so where there is none.

    Raises:
        MedpflError: a mistake in the settings or the data.
    """
    device = pick_device("auto")
    rows = []
    for name, target in _targets(arguments):
        if arguments.only is None or name in arguments.only:
            for cells in _rows(target, device, arguments):
                make_console(stderr=True).print(" | ".join(cells), soft_wrap=True)
                rows.append(cells)
    show_table("One GPU", _COLUMNS, rows, command=command)
    show_note(_NOTE)


def _targets(arguments: argparse.Namespace) -> Iterator[tuple[str, Target]]:
    steps, count = arguments.gradinv_steps, arguments.gradinv_images
    table1 = Target(
        what="CPL, its own settings, cpl_cnn, 300 images",
        images=300,
        overrides=("attack=cpl",),
        small_images=3,
        small=("attack.optimizer.max_steps=3",),
        most_seconds=30,
    )
    scale_free = Target(
        what="scale_free, dlg_cnn, 100 images",
        images=100,
        overrides=("attack=scale_free",),
        small_images=2,
        small=("preprocess.size=16", "attack.optimizer.max_steps=3"),
        most_seconds=10,
        tf32=None,
    )
    gradinv = Target(
        what="GradInv, ResNet-18, 224 px, 8 restarts of 24,000 steps",
        images=count,
        overrides=(
            "attack=gradinv",
            f"attack.rows={8 * count}",
            f"attack.optimizer.max_steps={steps}",
        ),
        small_images=1,
        small=(
            "preprocess.size=32",
            "attack.restarts=2",
            "attack.rows=2",
            "attack.optimizer.max_steps=8",
        ),
        most_seconds=60,
        per_image=True,
        scale=_GRADINV_STEPS / steps,
        tf32=True,
    )
    yield "table1", table1
    yield "scale_free", scale_free
    yield "gradinv", gradinv
    yield "gradinv", replace(gradinv, tf32=False)


def _rows(
    target: Target, device: torch.device, arguments: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    if arguments.small:
        small = target.at_small_size()
        yield _shown(small, _measure(small, device, arguments), judged=False)
    if device.type == "cuda" and not arguments.small:
        yield _shown(target, _measure(target, device, arguments), judged=True)
    else:
        reason = "not measured (small size)" if device.type == "cuda" else NO_GPU
        yield (target.what, target.precision, *("",) * 5, target.goal, reason, "", "")


def _measure(target: Target, device: torch.device, arguments: argparse.Namespace) -> Measured:
    """Run a target on each dataset in turn, its images shared out among them."""
    each = max(1, target.images // len(arguments.datasets))
    with _tf32(bool(target.tf32)):
        parts = [
            _measure_on(
                device,
                [
                    *target.overrides,
                    *_images(dataset, each),
                    f"device={device}",
                    *arguments.override,
                ],
                compiling=arguments.compile if device.type == "cuda" else "false",
            )
            for dataset in arguments.datasets
        ]
    return reduce(add, parts)


def _images(dataset: str, count: int) -> list[str]:
    """Return the settings for a number of images, as many as there are if that is 100 or more.

    Drawn images are always enough.
    """
    if dataset == "phantom":
        per_class = max(8, math.ceil(count / 6))
        drawn = [f"dataset.per_class={per_class}", "dataset.select=random"]
        return ["dataset=phantom", *drawn, f"n_images={count}"]
    limit = [f"n_images={count}"] if count < DEFAULT_IMAGES else []
    return [*dataset_overrides(dataset), *limit]


def _measure_on(device: torch.device, overrides: Sequence[str], *, compiling: str) -> Measured:
    """Attack once for the time, after a single step on one image that counts the work."""
    flops, peak = _count_work(overrides, device)
    updates = compute_updates([*overrides, f"attack.compile={compiling}"]).with_gradient()
    _forget_peak(device)
    watch = CompileWatch(device)
    attempt = attack_updates(updates, profiler=watch)
    return Measured(
        images=len(attempt.scores),
        solved=attempt.solved,
        seconds=attempt.seconds - watch.compiling,
        compiling=watch.compiling,
        flops=flops * attempt.evaluations,
        peak_flops=peak,
        peak_bytes=_peak(device),
    )


def _count_work(overrides: Sequence[str], device: torch.device) -> tuple[float, float]:
    """Return the operations of one evaluation, and the device's peak in that precision."""
    short = ("attack.optimizer.max_steps=1", "attack.rows=1", "attack.restarts=1")
    updates = compute_updates([*overrides, *short]).with_gradient()
    profiler = RunProfiler(device=device)
    attack_updates(replace(updates, each=updates.each[:1]), profiler=profiler)
    profile = profiler.profile()
    return math.nan if profile.flops is None else profile.flops, profile.peak_flops


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions, which torch treats differently."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _shown(target: Target, measured: Measured, *, judged: bool) -> tuple[str, ...]:
    """Return a row; at another size than the target's, nothing is judged by its seconds."""
    seconds = measured.seconds * target.scale
    per_image = seconds / max(1, measured.images)
    reached = per_image if target.per_image else seconds
    met = ("yes" if reached <= target.most_seconds else "no") if judged else ""
    scaled = "" if target.scale == 1 else f" (measured, times {target.scale:g})"
    return (
        target.what,
        target.precision,
        str(measured.images),
        f"{measured.solved} of {measured.images}",
        format_seconds(seconds) + scaled,
        f"{measured.compiling:.0f}",
        format_seconds(per_image),
        target.goal,
        met,
        format_percent(measured.fraction),
        f"{measured.peak_bytes / 1e9:.1f} GB",
    )

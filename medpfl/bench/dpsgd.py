"""`dpsgd`: a step of DP-SGD, ours and Opacus's in turn: gradients image by image, clip, noise."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional

from medpfl.bench.machine import show_note, show_table
from medpfl.bench.opacus_side import OpacusStep
from medpfl.cli import conf_dir
from medpfl.defenses import Defenses, DpSgd
from medpfl.models.own import factory_of
from medpfl.settings.build import group_at
from medpfl.types import DataSpec, ServerPayload

NETWORKS = ("dlg_cnn", "idlg_cnn", "cpl_cnn", "lenet", "resnet18")
_SETTINGS = {"resnet18": ["model.norm=group"]}
_SPEC = DataSpec(shape=(3, 32, 32), num_classes=4, mean=(0.5,) * 3, std=(0.5,) * 3)
_COLUMNS = (
    *("network", "parameters", "images", "Opacus, CPU ms", "medpfl, CPU ms", "ratio"),
    *("Opacus, wall ms", "medpfl, wall ms", "ratio", "gradients agree to"),
)
_NOTE = (
    "The fastest of many steps, Opacus's and ours in turn, so that a machine that is slow for a "
    "while is slow for both. A step: every image's gradient, clipped to norm 1, their sum, noise. "
    "CPU: what the process computed on all its threads. Agreement: of the clipped sums without "
    "noise, of their largest entry."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the comparison can be told."""
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=32, help="in a step; %(default)s")
    parser.add_argument("--turns", type=int, default=10, help="steps of each; %(default)s")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Print a table with a row a network.

    Raises:
        MedpflError: a mistake in the settings, or Opacus is not there.
    """
    rows = [_compare(name, arguments.images, arguments.turns) for name in arguments.networks]
    show_table("A step of DP-SGD beside Opacus, 32 x 32 pixels", _COLUMNS, rows, command=command)
    show_note(_NOTE)


def _compare(name: str, images: int, turns: int) -> tuple[str, ...]:
    inputs = torch.randn(images, *_SPEC.shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(images) % _SPEC.num_classes
    apart = _apart(*(side(inputs, labels) for side in _sides(name, images, noise=0.0)))
    sides = _sides(name, images, noise=1.0)
    fastest = [(float("inf"), float("inf"))] * len(sides)
    for _ in range(turns):
        for place, side in enumerate(sides):
            wall, own = _seconds(lambda side=side: side(inputs, labels))  # type: ignore[misc]
            fastest[place] = (min(fastest[place][0], wall), min(fastest[place][1], own))
    (their_wall, their_own), (our_wall, our_own) = fastest
    return (
        name,
        f"{sum(p.numel() for p in _model(name).parameters()):,}",
        str(images),
        *_times(their_own, our_own),
        *_times(their_wall, our_wall),
        f"{apart:.0e}",
    )


_Side = Callable[[Tensor, Tensor], dict[str, Tensor]]


def _sides(name: str, images: int, *, noise: float) -> tuple[_Side, _Side]:
    """Return the step of Opacus, and ours."""
    theirs = OpacusStep(_model(name), max_grad_norm=1.0, noise_multiplier=noise, expected=images)
    model = _model(name)
    payload = ServerPayload(
        model=model,
        parameters={n: p.detach() for n, p in model.named_parameters()},
        buffers={},
        batch_norm="train_private",
    )
    defense = Defenses({"dp_sgd": DpSgd(max_grad_norm=1.0, noise_multiplier=noise)})
    gradient = defense.gradient(payload, torch.Generator().manual_seed(2), images)
    forward = payload.forward()

    def ours(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        probabilities = functional.one_hot(labels, _SPEC.num_classes).to(inputs)
        return gradient(forward, payload.parameters, inputs, probabilities)

    return theirs, ours


def _model(name: str) -> torch.nn.Module:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=[f"model={name}", *_SETTINGS.get(name, [])])
    factory = factory_of(group_at(config, "model"))
    model: torch.nn.Module = factory.build(_SPEC, torch.Generator().manual_seed(0))
    return model


def _apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    largest = max(float(t.abs().max()) for t in one.values())
    return max(float((t - other[n]).abs().max()) for n, t in one.items()) / largest


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def _times(theirs: float, ours: float) -> tuple[str, str, str]:
    return f"{1e3 * theirs:.1f}", f"{1e3 * ours:.1f}", f"{theirs / ours:.2f}x"

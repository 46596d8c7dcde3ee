"""What an experiment needs of memory, said before any of it is allocated.

Each estimate is of something that must be held at once, so that what is refused could never run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medpfl.errors import FAULTS, ConfigurationError
from medpfl.models.base import NetworkFactory
from medpfl.optim.capacity import machine_memory
from medpfl.types import DataSpec

# Measured: the peak of scoring one image, in float64, an entry of it.
_SCORING_BYTES = 48
# Below this many pixels behind an update no network of ours comes near a machine's memory.
_SMALL = 1_000_000


def check_image(shape: tuple[int, ...]) -> None:
    """Refuse images of which not even one can be scored in this machine's memory.

    Raises:
        ConfigurationError: names the size and both amounts.
    """
    needed, there = _SCORING_BYTES * math.prod(shape), machine_memory()
    if needed > there:
        fits = int((there // (_SCORING_BYTES * shape[0])) ** (1 / len(shape[1:])))
        raise ConfigurationError(
            f"preprocess.size={list(shape[1:])}: one image takes {_gb(needed)} to score, this "
            f"machine has {_gb(there)}; choose a preprocess.size of at most {fits}"
        )


def check_network(factory: object, shape: tuple[int, ...], batch_size: int) -> None:
    """Refuse networks whose update of one batch cannot be computed in this machine's memory.

    Only networks of medpfl are looked at: others may do anything while they are constructed.

    Raises:
        ConfigurationError: names the sizes and both amounts.
    """
    ours = type(factory).__module__.partition(".")[0] == __name__.partition(".")[0]
    if not ours or not isinstance(factory, NetworkFactory):
        return
    if batch_size * math.prod(shape) <= _SMALL and not factory.may_be_large:
        return
    statistics = (0.0,) * shape[0], (1.0,) * shape[0]
    # Before the data are looked at: there are at least two classes.
    spec = DataSpec(shape, 2, *statistics)
    try:
        with torch.device("meta"):
            model = factory.construct(spec)
            entries = 2 * sum(p.numel() for p in model.parameters())  # and their gradient
            entries += _activations(model, torch.empty(batch_size, *shape))
    except ConfigurationError:
        raise
    except FAULTS:  # the trial with real numbers says what is wrong
        return
    needed, there = 4 * entries, machine_memory()
    if needed > there:
        raise ConfigurationError(
            f"federation.batch_size={batch_size}, preprocess.size={list(shape[1:])}: the "
            f"update of {type(factory).__name__} takes {_gb(needed)}, this machine has "
            f"{_gb(there)}; choose a smaller batch, smaller images or another model"
        )


def check_planted(entries: int, setting: str, *, delta: bool, summed: bool = False) -> None:
    """Refuse rows of a malicious server that do not fit beside their gradient.

    Measured on 64^3 and 96^3 voxels: 2.0 to 2.3 copies of the rows where clients send gradients,
    4.2 where they send the difference of weights after one step, and 4.7 after several.

    Args:
        entries: of the rows.
        setting: that says how many rows there are.
        delta: whether clients train: then their weights after training, the steps' mean and the
            difference of weights are there, too.
        summed: whether updates are added up under masks: as float64, as integers of 64 bits, the
            same with a count of images, and their sum.

    Raises:
        ConfigurationError: names both amounts.
    """
    needed, there = 4 * entries * ((4 if delta else 2) + (8 if summed else 0)), machine_memory()
    if needed > there:
        raise ConfigurationError(
            f"{setting}: {entries:,} parameters are planted, which take {_gb(needed)} with their "
            f"update, and this machine has {_gb(there)}. Lower {setting} or preprocess.size"
        )


def _activations(model: nn.Module, inputs: Tensor) -> int:
    """Return the number of entries that the layers put out."""
    entries = 0

    def count(module: nn.Module, given: object, output: Tensor) -> None:
        nonlocal entries
        entries += output.numel()

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(inputs)
    return entries


def _gb(count: int) -> str:
    return f"{count / 1e9:,.0f} GB"

"""Opacus, the reference for DP-SGD, on medpfl's networks: a part of benchmarks and tests."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from medpfl.errors import ConfigurationError

HOW_TO_GET = "Opacus is not installed: pip install 'opacus>=1.6,<1.7'"


def is_installed() -> bool:
    """Tell whether Opacus can be imported."""
    return importlib.util.find_spec("opacus") is not None


class OpacusStep:
    """One step of Opacus's DP-SGD, from images to the gradient that the step follows.

    Args:
        model: the network; it is wrapped, and its ReLUs no longer act in place.
        max_grad_norm: C.
        noise_multiplier: the noise's standard deviation over C.
        expected: what the noised sum is divided by.

    Raises:
        ConfigurationError: Opacus is not installed.
    """

    def __init__(
        self, model: nn.Module, *, max_grad_norm: float, noise_multiplier: float, expected: int
    ) -> None:
        if not is_installed():
            raise ConfigurationError(HOW_TO_GET)
        _out_of_place(model)
        wrapping: Any = importlib.import_module("opacus.grad_sample")
        stepping: Any = importlib.import_module("opacus.optimizers")
        self._model = wrapping.GradSampleModule(model.train())
        self._optimizer = stepping.DPOptimizer(
            torch.optim.SGD(self._model.parameters(), lr=0.1),
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected,
        )

    def per_example(self, inputs_norm: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return every image's gradient, `{name: (n, *P_i)}`.

        Args:
            inputs_norm: `(n, C, *S)`.
            labels: `(n,)`.
        """
        self._optimizer.zero_grad(set_to_none=True)
        with _additions_out_of_place(), warnings.catch_warnings():
            # The images ask for no gradient, which is none of the hooks' business.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            loss = functional.cross_entropy(self._model(inputs_norm), labels)
            torch.autograd.backward(loss)
        named = self._model.named_parameters()
        return {name.removeprefix("_module."): p.grad_sample for name, p in named}

    def __call__(self, inputs_norm: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the gradient that the step follows, `{name: P_i}`; no step is taken."""
        self.per_example(inputs_norm, labels)
        self._optimizer.pre_step()
        return {n.removeprefix("_module."): p.grad for n, p in self._model.named_parameters()}


def _out_of_place(model: nn.Module) -> None:
    """Opacus's hooks bear no change in place of what a layer has returned."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False


@contextmanager
def _additions_out_of_place() -> Iterator[None]:
    with mock.patch.object(BasicBlock, "forward", _block):
        yield


def _block(block: Any, x: Tensor) -> Tensor:
    """Compute a block of a ResNet as torchvision does, less its addition in place."""
    shortcut = x if block.downsample is None else block.downsample(x)
    out = block.relu(block.bn1(block.conv1(x)))
    added: Tensor = block.relu(block.bn2(block.conv2(out)) + shortcut)
    return added

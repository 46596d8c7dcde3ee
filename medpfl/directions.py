"""Where a step of local training goes, given its gradient; differentiable in it.

Each is made anew for a client's round and called once a step, in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ADAM_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8


class MomentumDirection:
    """The direction of ``torch.optim.SGD``."""

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._velocity: dict[str, Tensor] = {}

    def __call__(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `{name: P_i}`, what the learning rate multiplies in this step."""
        if self._momentum == 0:
            return gradient
        before = self._velocity or {n: torch.zeros_like(g) for n, g in gradient.items()}
        self._velocity = {n: before[n] * self._momentum + g for n, g in gradient.items()}
        return self._velocity


class AdamDirection:
    """The direction of ``torch.optim.Adam`` (Kingma and Ba 2015, Alg. 1)."""

    def __init__(self) -> None:
        self._step = 0
        self._means: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def __call__(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `{name: P_i}`, what the learning rate multiplies in this step."""
        self._step += 1
        first, second = _ADAM_BETAS
        if not self._means:
            self._means = self._squares = {n: torch.zeros_like(g) for n, g in gradient.items()}
        self._means = {n: m.lerp(gradient[n], 1 - first) for n, m in self._means.items()}
        self._squares = {
            n: torch.addcmul(s * second, gradient[n], gradient[n], value=1 - second)
            for n, s in self._squares.items()
        }
        return {n: self._direction(n) for n in gradient}

    def _direction(self, name: str) -> Tensor:
        first, second = (1 - beta**self._step for beta in _ADAM_BETAS)
        squares = self._squares[name]
        # The root of zero has no derivative; far below eps, it may be any small number.
        root = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        direction: Tensor = self._means[name] / first / (root / second**0.5 + _ADAM_EPS)
        return direction

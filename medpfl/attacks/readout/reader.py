"""From rows to images: what was read, or the image whose features it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor
from torch.func import functional_call

from medpfl.attacks.closed_form.trunk import image_unknowns, solve_image
from medpfl.attacks.readout.rows import Gradients
from medpfl.planted import Planted
from medpfl.types import Observation


class _EnoughError(Exception):
    """Ends a pass through the network where the rows begin."""


@dataclass(frozen=True)
class Reader:
    """Give the image of each row.

    Args:
        gradients: of the rows.
        planted: where they are.
        observation: the update.
    """

    gradients: Gradients
    planted: Planted
    observation: Observation
    _found: dict[int, tuple[Tensor, float]] = field(default_factory=dict)

    def seen(self, row: int) -> Tensor:
        """Return what a row looked at: pixels, or features."""
        read = self._read(row)
        return read if self.planted.place is not None else self.observation.spec.denormalise(read)

    def image(self, row: int) -> Tensor:
        """Return a row's image, `(C, *S)` float64, as it was read: not cut to [0, 1]."""
        if self.planted.place is None:
            return self.seen(row)
        return self.observation.spec.denormalise(self._inverted(row)[0])

    def unexplained(self, row: int) -> float:
        """Return what the image leaves of the features that were read, relative to their spread."""
        return 0.0 if self.planted.place is None else self._inverted(row)[1]

    def _read(self, row: int) -> Tensor:
        read = self.gradients.row(row) / self.gradients.biases[row]
        return read.reshape(self.planted.shape)

    def _inverted(self, row: int) -> tuple[Tensor, float]:
        if row not in self._found:
            self._found[row] = inverted(self._read(row), self.planted, self.observation)
        return self._found[row]


def inverted(features: Tensor, planted: Planted, observation: Observation) -> tuple[Tensor, float]:
    """Find the image that has these features where the rows are, by least squares.

    Args:
        features: what a row looked at, float64.
        planted: where the rows are.
        observation: the network that was sent, and the kind of data.

    Returns:
        The image `(C, *S)` in the client's input space, and its relative residual. Where features
        are fewer than pixels, or several images share them, it is the one that is found from grey.
    """
    payload, unknowns = observation.payload, image_unknowns(observation.spec)
    network, place = payload.network(), planted.place or ""
    state = {
        name: tensor.double().cpu() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in {**payload.parameters, **payload.buffers}.items()
        if not name.startswith(f"{place}.")
    }
    spread = (features - features.mean()).norm().clamp_min(1e-300)

    def residual(z: Tensor) -> Tensor:
        caught = list[Tensor]()

        def stop(module: object, given: tuple[Tensor, ...]) -> None:
            caught.append(given[0])
            raise _EnoughError

        handle = network.get_submodule(place).register_forward_pre_hook(stop)
        try:
            functional_call(network, state, (unknowns.unpack(z)[0],))
        except _EnoughError:
            pass
        finally:
            handle.remove()
        left: Tensor = (caught[0].reshape(features.shape) - features) / spread
        return left.flatten()

    z, value = solve_image(residual, unknowns)
    found = unknowns.unpack(z)[0][0]
    return found, math.sqrt(value)

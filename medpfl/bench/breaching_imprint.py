"""breaching's imprint (Robbing the Fed) on medpfl's batches: its server, its rows, its read-out."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from medpfl.attacks.readout.rows import total_variation
from medpfl.bench import breaching_side
from medpfl.seeding import generator
from medpfl.types import DataSpec, Observation, Reconstruction, ServerPayload

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "breaching, as it ships": {},
    "breaching, normal bins": {"linfunc": "randn", "connection": "addition"},
}
"""Changes to its ``malicious-model-rtf``: none, and those that make its rows most like ours.

As it ships, rows measure a cosine, bins are of a Laplace law, and a second layer as wide as the
image follows them.
"""

_SERVER, _ATTACK = "case/server/malicious-model-rtf.yaml", "attack/imprint.yaml"


@dataclass(frozen=True)
class PlantedByBreaching:
    """A model that breaching's server sends.

    Args:
        payload: the model.
        secrets: what its attack needs to know of it.
        entries: parameters that were added.
    """

    payload: ServerPayload
    secrets: Mapping[str, Any]
    entries: int


def plant(
    network: nn.Module,
    payload: ServerPayload,
    spec: DataSpec,
    changes: Mapping[str, Any],
    *,
    bins: int,
    seed: int,
) -> PlantedByBreaching:
    """Let breaching's server put its imprint ahead of a network.

    Args:
        network: the honest one, with its own numbers; not changed.
        payload: how it is sent, and run by clients.
        spec: the kind of data.
        changes: of its ``model_modification``, see `VARIANTS`.
        bins: K.
        seed: the run's.

    Raises:
        ConfigurationError: breaching is not installed.
    """
    library = breaching_side.library_of()
    server = _shipped(_SERVER)
    server.model_modification.update({"num_bins": bins, **changes})
    data = {"shape": list(spec.shape), "modality": "vision", "batch_size": 1}
    case = OmegaConf.create({"server": server, "data": data})
    model, setup = copy.deepcopy(network), {"device": torch.device("cpu"), "dtype": torch.float}
    before = sum(p.numel() for p in model.parameters())
    # It draws from the one stream that everybody shares, which is put back afterwards.
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(generator(seed, "breaching", "plant").initial_seed())
        made = library.cases.construct_server(model, nn.CrossEntropyLoss(), case, setup)
        model = made.vet_model(model)
    sent = replace(
        payload,
        model=model,
        parameters={n: p.detach() for n, p in model.named_parameters()},
        buffers={n: b.detach() for n, b in model.named_buffers()},
    )
    entries = sum(p.numel() for p in model.parameters()) - before
    return PlantedByBreaching(sent, made.secrets, entries)


def read(
    observation: Observation, labels: Tensor, planted: PlantedByBreaching, *, seed: int
) -> Reconstruction:
    """Let breaching read an update out, as it ships: as many images as are behind it.

    Args:
        observation: an update of the model that its server sent.
        labels: `(N,)` the true ones, which it does not look at.
        planted: that model.
        seed: the run's.
    """
    chosen = breaching_side.Settings("imprint", _shipped(_ATTACK))
    found = breaching_side.reconstruct(
        observation, labels, chosen, seed=seed, secrets=planted.secrets
    )
    spread = [total_variation(image) for image in found.inputs]
    return replace(found, closed_form=True, quality={"total_variation": torch.tensor(spread)})


def _shipped(file: str) -> DictConfig:
    folder = Path(breaching_side.library_of().__file__).parent / "config"
    config = OmegaConf.load(folder / file)
    if not isinstance(config, DictConfig):
        raise TypeError(f"breaching's {file} is no mapping")
    return config

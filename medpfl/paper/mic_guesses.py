"""What guesses score by MIC's count, which took no attack: the images of a finished job, judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from medpfl.data import LoadedData
from medpfl.metrics.mic import arbitrary_guesses, mic_rebuilt
from medpfl.report.jobs import read_record
from medpfl.report.record import ARRAYS
from medpfl.report.victim_file import load_victim
from medpfl.seeding import generator
from medpfl.settings.build import instantiate

GUESSES = ("zeros", "mean_image", "random_pixels", "public_images")
"""Every one as often as there were read-outs; see `medpfl.metrics.mic.arbitrary_guesses`."""


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """How many of a job's true images guesses rebuild, as MIC counts.

    Args:
        entries: of one image.
        images: in all.
        rebuilt: of these, by guess; without ``public_images`` where the dataset has none.
        public: images that no client holds.
    """

    entries: int
    images: int
    rebuilt: Mapping[str, int]
    public: int


def guessed(folder: Path, readouts: int) -> Guessed:
    """Judge guesses on the true images of a finished job.

    Args:
        folder: the job's.
        readouts: M, that its attack handed in.

    Raises:
        MedpflError: its data, or what it left, cannot be read.
    """
    files = sorted((folder / ARRAYS).glob("*.npz"))
    originals = torch.cat([load_victim(path).original for path in files])
    config: dict[str, Any] = read_record(folder)["config"]
    data = _data_of(config)
    public = _public(data, readouts)
    known = public if len(public) else torch.zeros(1, *originals.shape[1:])
    stream = generator(config["seed"], "guesses")
    guesses = arbitrary_guesses(max(1, readouts), data.mean_image(), known, stream)
    if not len(public):
        del guesses["public_images"]
    return Guessed(
        entries=originals[0].numel(),
        images=len(originals),
        rebuilt={name: int(mic_rebuilt(originals, g).sum()) for name, g in guesses.items()},
        public=len(public),
    )


def _data_of(config: Mapping[str, Any]) -> LoadedData:
    dataset, preprocess = (OmegaConf.create(config[name]) for name in ("dataset", "preprocess"))
    found: LoadedData = instantiate(dataset).load(
        preprocess=instantiate(preprocess), n_images=1, seed=config["seed"]
    )
    return found


def _public(data: LoadedData, count: int) -> Tensor:
    found = [] if data.held_out is None else list(data.held_out.sample(max(1, count)))
    return torch.stack(found) if found else torch.zeros(0, *data.spec.shape)

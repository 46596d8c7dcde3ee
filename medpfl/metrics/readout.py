"""What is recorded of read-outs of a malicious server's model, beside how good they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from medpfl.metrics.image_quality import mse, ssim
from medpfl.metrics.matching import UNMATCHED
from medpfl.metrics.mic import mic_rebuilt
from medpfl.planted import QUALITY, Planted, PlantedBins, PlantedTraps
from medpfl.types import Capture, Observation, Reconstruction, Truth


def is_readout(reconstruction: Reconstruction, images: int) -> bool:
    """Tell whether images were read out of an update, rather than searched for.

    Args:
        reconstruction: what was handed in.
        images: behind the update. A search hands in as many.
    """
    return bool(reconstruction.quality) or len(reconstruction.inputs) != images


def readout_columns(
    capture: Capture, truth: Truth, reconstruction: Reconstruction, order: Tensor
) -> tuple[dict[str, float], ...]:
    """Return the columns of each image by `READOUT_COLUMNS`; none of them of a search.

    ``readouts``: images that were read out of the update in all. ``readout_...``: what the attacker
    itself can tell of the image's read-out, see `medpfl.planted.QUALITY`; NaN without one.
    ``expected_share``: of the images that such a server expects to isolate, see `expected`; NaN
    where that is not known. ``mse_batch_mean``, ``ssim_batch_mean``: of a guess that shows the mean
    of the update's own images, which of one image is that image. ``mic_protocol``: 1 where MIC
    calls the image reconstructed, see `medpfl.metrics.mic`, 0 where it does not.

    Args:
        capture: the update.
        truth: the N images behind it.
        reconstruction: M images.
        order: `(N,)`: see `medpfl.metrics.match`.
    """
    if not is_readout(reconstruction, len(truth.ids)):
        return ({},) * len(truth.ids)
    originals = truth.inputs.detach().cpu()
    blurred = originals.double().mean(0).float()
    rebuilt = mic_rebuilt(originals, reconstruction.inputs.detach().cpu()).tolist()
    share = expected(capture.observation, len(truth.ids))
    return tuple(
        {
            **quality_columns(reconstruction, m),
            "expected_share": share,
            "mse_batch_mean": mse(original, blurred),
            "ssim_batch_mean": ssim(original, blurred),
            "mic_protocol": int(rebuilt[n]),
        }
        for n, (original, m) in enumerate(zip(originals, order.tolist(), strict=True))
    )


def quality_columns(reconstruction: Reconstruction, m: int) -> dict[str, float]:
    """Return what the attacker itself can tell of read-out `m`; NaN where there is none."""
    found = {} if m == UNMATCHED else reconstruction.quality
    return {
        "readouts": len(reconstruction.inputs),
        **{
            f"readout_{name}": float(found[name][m]) if name in found else math.nan
            for name in QUALITY
        },
    }


def expected(observation: Observation, images: int) -> float:
    """Return the share of an update's images that the server that planted rows expects to isolate.

    Args:
        observation: with the server's secrets.
        images: behind the update.

    Returns:
        NaN of an honest server, and of traps whose firing rate the server could not measure.
    """
    planted = observation.planted
    if isinstance(planted, PlantedBins):
        # Clients with columns of their own share no bins.
        return expected_share(len(planted.edges), max(1, images // planted.clients))
    if isinstance(planted, PlantedTraps):
        # Bright images switch fewer rows on: independent rows would promise far more.
        if math.isfinite(planted.share):
            return planted.share
        return expected_share_of_traps(_rows(observation, planted), planted.firing_rate, images)
    return math.nan


def expected_share(bins: int, images: int) -> float:
    """Return the chance that an image has its bin for itself, (1 - 1/K)^(B - 1).

    Args:
        bins: K equally likely ones, at least 1.
        images: B behind the update, at least 1.

    Source: Fowl et al. 2022, where an image falls into bins independently of the others.
    """
    return expected_share_of([1 / bins] * bins, images)


def expected_share_of(probabilities: Sequence[float], images: int) -> float:
    """Return the same for bins of any probabilities, sum of p (1 - p)^(B - 1).

    Where they add up to less than 1, an image may be in no bin, and is lost.

    Args:
        probabilities: of an image to fall into each bin.
        images: B behind the update, at least 1.
    """
    return math.fsum(p * (1 - p) ** (images - 1) for p in probabilities)


def expected_share_of_traps(rows: int, firing_rate: float, images: int) -> float:
    """Return the chance that an image is alone in at least one row, 1 - (1 - p(1-p)^(B-1))^K.

    For rows that are on independently of each other; those that all look at the brightness of an
    image are not, and isolate fewer.

    Args:
        rows: K.
        firing_rate: p, how often a row is on for an image.
        images: B behind the update, at least 1.

    Source: Boenisch et al. 2021, whose rows are on for images at random.
    """
    alone = firing_rate * (1 - firing_rate) ** (images - 1)
    return 1 - (1 - alone) ** rows


def _rows(observation: Observation, planted: Planted) -> int:
    return sum(len(observation.payload.parameters[name]) for name in planted.weights)

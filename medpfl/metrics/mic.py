"""How MIC counted: many read-outs to one image, and an error that a black image stays below.

Under its own name, so that what was reported can be compared like with like; nothing is decided by
it. "Client Security Alone Fails in Federated Learning: 2D and 3D Attack Insights", its authors'
notebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.metrics.matching import squared_errors

REBUILT_BELOW = 0.1
"""The mean squared error of pixels in [0, 1] below which they call an image reconstructed: 10 dB.
A black image has 0.06 to 0.13 on medical pictures with a dark background."""


def mic_rebuilt(originals: Tensor, guesses: Tensor) -> Tensor:
    """Return which originals MIC calls reconstructed, `(N,)` booleans.

    Each guess goes to the *true* image that it is nearest to, however many go to the same one, and
    rebuilds it where the mean squared error is below 0.1.

    Args:
        originals: `(N, C, *S)` in [0, 1].
        guesses: `(M, C, *S)`, cut to [0, 1] here; M may be 0.
    """
    rebuilt = torch.zeros(len(originals), dtype=torch.bool)
    if len(guesses):
        errors, nearest = squared_errors(originals, guesses.clamp(0, 1)).min(dim=0)
        rebuilt[nearest[errors < REBUILT_BELOW]] = True
    return rebuilt


def mic_share(guesses: Tensor, originals: Tensor) -> float:
    """Return the share of the originals that MIC calls reconstructed by any guesses.

    Args:
        guesses: `(M, C, *S)` in [0, 1]: read-outs, or what took no attack.
        originals: `(N, C, *S)` in [0, 1].
    """
    return float(mic_rebuilt(originals, guesses).double().mean())


def arbitrary_guesses(
    count: int, mean_image: Tensor, public: Tensor, stream: torch.Generator
) -> dict[str, Tensor]:
    """Return guesses that no attack was needed for, by name, `(count, C, *S)` each.

    Args:
        count: M, as many as a read-out handed in.
        mean_image: `(C, *S)` in [0, 1]: of the training split.
        public: `(A, C, *S)` in [0, 1]: images of the kind, none of them attacked; of fewer than
            `count` some are handed in again.
        stream: draws the random pixels.
    """
    shape = (count, *mean_image.shape)
    return {
        "zeros": torch.zeros(shape),
        "mean_image": mean_image.expand(shape),
        "random_pixels": torch.rand(shape, generator=stream),
        "public_images": public[torch.arange(count) % len(public)],
    }


def mic_weights(clients: int) -> Tensor:
    """Return the weights of the clients in MIC's aggregate, `(clients,)` float64.

    Client k's update u moves a running sum a to a + (u - a) / n, so that it ends with a weight of
    (1 / n) (1 - 1 / n)^(n - 1 - k). A mean has 1 / n for each; these add up to 1 - (1 - 1 / n)^n,
    0.68 of four clients, and the first counts least.

    Args:
        clients: n, at least 1.
    """
    if clients < 1:
        raise ValueError(f"clients={clients}: an aggregate has at least one")
    later = torch.arange(clients - 1, -1, -1, dtype=torch.float64)
    return (1 - 1 / clients) ** later / clients

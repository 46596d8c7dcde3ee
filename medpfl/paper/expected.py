"""What the class shares alone predict for an attack on a saturated network.

With a wide last layer drawn from U(-0.5, 0.5), one class wins the softmax for every image by tens
of logits. An image of that class has a probability of exactly 1 and so, in float32, a gradient of
exactly 0: nothing can be rebuilt from it. All the others are fully exposed. The success rate is
then one minus the class's share of the attacked images, whatever the images show.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

_NEARLY_ZERO = 1e-6


def saturated_class(labels: Sequence[int], true_probability: Sequence[float]) -> int | None:
    """Return the class that the network gives every image to.

    Args:
        labels: the attacked images' true classes.
        true_probability: the network's probability of each image's true class; a forward pass
            tells it, no attack is needed.

    Returns:
        The class; -1 where it wins everywhere but no attacked image belongs to it; None where the
        network does not saturate.

    Raises:
        ValueError: there are no images, or the lengths differ.
    """
    if not labels or len(labels) != len(true_probability):
        raise ValueError(f"{len(labels)} labels, {len(true_probability)} probabilities: need pairs")
    middle = {
        label: median(p for own, p in zip(labels, true_probability, strict=True) if own == label)
        for label in set(labels)
    }
    winners = [label for label, p in middle.items() if p == 1]
    losers = [label for label, p in middle.items() if p <= _NEARLY_ZERO]
    if len(winners) > 1 or len(winners) + len(losers) < len(middle):
        return None
    return winners[0] if winners else -1


def predicted_success(labels: Sequence[int], true_probability: Sequence[float]) -> float | None:
    """Return the success rate that the class shares predict, which is the mean SSIM as well.

    An exposed image is rebuilt with an SSIM of 1; of the others the attack hands in its start,
    which has an SSIM of about 0 with any picture.

    Args:
        labels: as for `saturated_class`.
        true_probability: as for `saturated_class`.

    Returns:
        A share in [0, 1]; None where the network does not saturate, and shares predict nothing.
    """
    winner = saturated_class(labels, true_probability)
    if winner is None:
        return None
    return 1 - sum(label == winner for label in labels) / len(labels)

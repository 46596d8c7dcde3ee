"""The last layer of a network, whose size is the number of classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

logger = logging.getLogger(__name__)


def with_own_head(
    state: Mapping[str, Tensor], model: nn.Module, *, head: str, source: str
) -> Mapping[str, Tensor]:
    """Return a state with the network's own head where the given one has other classes.

    Args:
        state: `{name: tensor}` to be loaded.
        model: the network that it is for.
        head: what the names of the head's tensors begin with, such as ``fc.``.
        source: where the state is from, for the log.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(head)}
    given = {name: state[name] for name in own if name in state}
    if len(given) < len(own) or all(given[n].shape == own[n].shape for n in own):
        return state
    logger.info(
        "model.weights=%s: its head of shape %s is left out; the network's, of shape %s, keeps its "
        "initial parameters",
        source,
        tuple(given[f"{head}weight"].shape),
        tuple(own[f"{head}weight"].shape),
    )
    return {**state, **own}

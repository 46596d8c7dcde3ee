"""BatchNorm in a federation: one policy, which client, server, attack and capture file share."""

from __future__ import annotations

from typing import Literal, get_args

BatchNormPolicy = Literal["eval_public", "train_private", "train_shared"]
"""How clients run BatchNorm, and what of its statistics leaves them.

``eval_public``: the network runs in eval mode, with the statistics that the server sent; whoever
knows what was sent knows them. ``train_private``: it runs in train mode, with the statistics of
each batch; the running statistics that move along stay at the client. ``train_shared``: as that,
and the moved running statistics leave with the update.
"""

POLICIES: tuple[BatchNormPolicy, ...] = get_args(BatchNormPolicy)

IN_WORDS: dict[BatchNormPolicy, str] = {
    "eval_public": "the statistics that the server sent",
    "train_private": "the statistics of each batch, running ones stay at the client",
    "train_shared": "the statistics of each batch, running ones leave with the update",
}


def runs_in_train_mode(policy: BatchNormPolicy) -> bool:
    """Tell whether clients run the network in train mode, and not in eval mode."""
    return policy != "eval_public"


def of_the_pair(mode: object, buffers: object) -> BatchNormPolicy | None:
    """Return what the two settings meant that this one has replaced; None where they were none.

    Statistics that were shared in eval mode were the server's own.

    Args:
        mode: ``eval`` or ``train``.
        buffers: ``private`` or ``shared``.
    """
    if mode not in ("eval", "train") or buffers not in ("private", "shared"):
        return None
    if mode == "eval":
        return "eval_public"
    return "train_private" if buffers == "private" else "train_shared"

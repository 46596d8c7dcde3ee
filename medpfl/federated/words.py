"""A federation in words, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medpfl.batch_norm import IN_WORDS
from medpfl.federated.server import Federation
from medpfl.source import Planned


def in_words(
    federation: Federation,
    shards: Sequence[Sequence[int]],
    plan: Sequence[Planned],
    *,
    summed: bool,
) -> Iterator[str]:
    """Yield who trains with whom, and what is captured, in lines.

    Args:
        federation: its settings.
        shards: of each client its images; not looked at where nobody trains together.
        plan: what is captured.
        summed: whether that is sums over clients.
    """
    local = federation.local
    if federation.is_shared:
        yield _split(federation, sorted(map(len, shards)))
        rounds = ", ".join(str(r) for r in sorted({p.round for p in plan}))
        what = "sums over clients" if summed else "updates"
        yield f"captured: {len(plan)} {what}, after rounds {rounds}"
        if federation.batch_norm != "eval_public":
            yield f"BatchNorm: {IN_WORDS[federation.batch_norm]}"
    if local.kind == "delta":
        yield local.describe()
    if federation.is_shared and local.batch_size is not None:
        few = sum(len(shard) < local.batch_size for shard in shards)
        if few:
            yield (
                f"{few} of {len(shards)} clients have fewer images than a local batch of "
                f"{local.batch_size}: all of them are one step"
            )


def _split(federation: Federation, sizes: Sequence[int]) -> str:
    images = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    splits = {"folder": "by folder", "dirichlet": f"dirichlet (alpha {federation.alpha:g})"}
    split = splits.get(federation.partition, federation.partition)
    return f"{len(sizes)} clients of {images} images, {split}; {federation.rounds} rounds"


def planted_in_words(told: str, entries: int, measured: Sequence[str]) -> Iterator[str]:
    """Yield what a malicious server plants, and what that costs, in lines.

    Args:
        told: what it is.
        entries: parameters that are added.
        measured: what was measured of it.
    """
    yield f"server {told}. Adds {entries:,} parameters, {4 * entries / 1e6:,.1f} MB each way"
    yield from measured

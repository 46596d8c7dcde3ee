"""Named random streams: the same name gives the same numbers, whatever ran before or beside."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator whose stream depends on the seed and the names alone.

    Args:
        seed: the run's seed; 0 is a seed like any other.
        *names: what the stream is for, such as ``("start", image_id, restart)``.
        device: where the numbers are drawn. The CPU by default, so that a run's draws are the
            same on every machine.

    Returns:
        A seeded ``torch.Generator``.
    """
    key = "\x1f".join([str(int(seed)), *(str(name) for name in names)]).encode()
    digest = hashlib.sha256(key).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

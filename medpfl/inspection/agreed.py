"""Whether a model is the one that was agreed on, by its architecture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from medpfl.errors import ConfigurationError
from medpfl.inspection.received import Received
from medpfl.inspection.verdict import Finding

NAME = "not_agreed"
_HASH = re.compile(r"[0-9a-f]{64}")


def architecture_hash(received: Received) -> str:
    """Return the SHA-256 of the names and shapes of all parameters and buffers, as hex digits.

    Sorted by name, as files keep no order; counters of batches are left out, as old files lack
    them. It says nothing of what the layers do with their weights, which no file of weights tells.
    """
    tensors = {**received.parameters, **received.buffers}
    lines = [
        f"{name} {','.join(map(str, tensor.shape))}\n"
        for name, tensor in sorted(tensors.items())
        if not name.endswith("num_batches_tracked")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_hash(agreed: str, setting: str) -> None:
    """Refuse what is no hash.

    Raises:
        ConfigurationError: names the setting.
    """
    if not _HASH.fullmatch(agreed):
        raise ConfigurationError(
            f"{setting}={agreed}: not a hash of 64 hexadecimal digits: "
            "`medpfl-inspect MODEL.safetensors --hash` prints that of the model agreed on"
        )


def check(received: Received, agreed: str) -> Iterator[Finding]:
    """Yield a finding where the architecture is another."""
    if architecture_hash(received) != agreed:
        yield Finding(
            check=NAME,
            weight="alarm",
            where="the architecture",
            measured={"same": 0.0},
            threshold={"same": 1.0},
            why=(
                "its layers are not those of the model agreed on, by names and shapes: a server "
                "that adds layers can read inputs off them"
            ),
        )

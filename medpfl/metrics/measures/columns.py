"""Names of measures, and of the columns that they have in ``metrics.csv``.

A measure ``mine`` has three columns, as SSIM has: ``mine`` of the reconstruction, ``mine_zeros`` of
a black image and ``mine_mean_image`` of the mean image.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from medpfl.errors import ConfigurationError

ZEROS, MEAN_IMAGE = "zeros", "mean_image"
"""The guesses that need no attack."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


def column(name: str, guess: str = "") -> str:
    """Return the column that a measure has for the reconstruction, or for a guess."""
    return f"{name}_{guess}" if guess else name


def columns_of(name: str) -> tuple[str, ...]:
    """Return all columns of a measure."""
    return tuple(column(name, guess) for guess in ("", ZEROS, MEAN_IMAGE))


def names_in(columns: Iterable[str]) -> list[str]:
    """Return the measures whose columns these are, in their order."""
    found = list(columns)
    of_guesses = {name for other in found for name in columns_of(other)[1:]}
    return [name for name in found if name not in of_guesses]


def check_names(names: Iterable[str], *, taken: Collection[str]) -> None:
    """Refuse measures that could not have columns of their own.

    Args:
        names: of the measures.
        taken: the columns that ``metrics.csv`` has without them.

    Raises:
        ConfigurationError: names the first one, and what is wrong with its name.
    """
    owners = {column.lower(): "" for column in taken}
    for name in map(str, names):
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"metrics.measures.{name}: the name becomes a column of metrics.csv; choose one of "
                "at most 40 letters, digits and underscores that begins with a letter"
            )
        for own in columns_of(name):
            if own.lower() in owners:
                other = owners[own.lower()]
                owner = f" (metrics.measures.{other}'s)" if other else ""
                raise ConfigurationError(
                    f"metrics.measures.{name}: metrics.csv has a column {own} already{owner}; "
                    "choose another name"
                )
        owners |= {own.lower(): name for own in columns_of(name)}

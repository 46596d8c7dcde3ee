"""Captures are taken beside someone's training, which goes on whatever becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from medpfl.errors import MedpflError

LOG = logging.getLogger("medpfl.captures")


@contextmanager
def beside_training(what: str) -> Iterator[None]:
    """Log whatever goes wrong inside, and go on.

    Args:
        what: was to be captured.
    """
    try:
        yield
    except MedpflError as error:
        LOG.error("%s was not captured, and training goes on: %s", what, error)
    except Exception as error:
        LOG.error(
            "%s was not captured, and training goes on. This is a fault of medpfl or a change of "
            "the framework (%s: %s): please report it",
            what,
            type(error).__name__,
            error,
            exc_info=True,
        )

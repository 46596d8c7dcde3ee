"""Decoders of medical formats at work: their faults become one message, and nothing they say."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from medpfl._paths import why
from medpfl.errors import DataError

# What decoders log and warn of holds what they read: names of patients, among other things.
_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "nrrd", "pylibjpeg")


@contextmanager
def decoding(called: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside into a DataError without a word of the file's.

    Args:
        called: what messages call the file: a hashed id.
        kind: what it should be, such as ``a DICOM file``.

    Raises:
        DataError: what is raised inside, its message after the file's name.
    """
    try:
        with _silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        raise DataError(f"cannot read the image {called}: {error}") from None
    except MemoryError:
        raise DataError(f"cannot read the image {called}: memory has run out") from None
    except OSError as error:
        told = why(error) if error.errno is not None else _damaged(error, kind)
        raise DataError(f"cannot read the image {called}: {told}") from None
    # pydicom, nibabel, pynrrd and the decoders below them have no class of errors for damaged
    # content: besides ValueError and EOFError, AttributeError, KeyError, TypeError, struct.error,
    # NotImplementedError, zlib.error and others, many of which quote what the header says.
    except Exception as error:
        told = _damaged(error, kind)
        raise DataError(f"cannot read the image {called}: {told}") from None


def _damaged(error: Exception, kind: str) -> str:
    return f"not {kind}, cut short or damaged ({type(error).__name__})"


@contextmanager
def _silent() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def called(name: str) -> Iterator[None]:
    """Put the file's name in front of what is wrong with an image that was decoded.

    Raises:
        DataError: the one that is raised inside.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"cannot read the image {name}: {error}") from None

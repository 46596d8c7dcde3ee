"""Fetching a dataset from Kaggle, and finding what was fetched before."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from medpfl._paths import entries, expanded, is_folder
from medpfl.errors import DataError

CACHE_VARIABLE = "KAGGLEHUB_CACHE"
_KAGGLE = "https://www.kaggle.com"
_PATIENCE_SECONDS = 6.0


def cached_versions(handle: str) -> list[Path]:
    """Return the complete copies of a dataset in kagglehub's cache, newest version first.

    kagglehub itself asks the network for the newest version before it looks into its cache.
    The layout is that of ``kagglehub/cache.py`` 0.3 to 1.0: ``versions/<n>`` beside the marker
    ``<n>.complete``.

    Raises:
        DataError: the cache's place cannot be a path.
        OSError: it cannot be looked into.
    """
    dataset = cache_folder() / "datasets" / handle
    if not is_folder(dataset):
        return []
    markers = [Path(entry.name) for entry in entries(dataset)]
    numbers = sorted(int(m.stem) for m in markers if m.suffix == ".complete" and m.stem.isdecimal())
    folders = [dataset / "versions" / str(number) for number in reversed(numbers)]
    return [folder for folder in folders if is_folder(folder)]


def cache_folder() -> Path:
    """Return the folder in which kagglehub keeps what it downloads.

    Raises:
        DataError: it cannot be a path.
    """
    named = os.environ.get(CACHE_VARIABLE)
    # kagglehub takes what is named as it stands; a ~ in it is an ordinary letter there.
    return Path(named) if named else expanded("~/.cache/kagglehub", setting=CACHE_VARIABLE)


def download(handle: str) -> Path:
    """Download a dataset into kagglehub's cache.

    Args:
        handle: ``owner/dataset``.

    Raises:
        DataError: within seconds if Kaggle cannot be reached; if the download fails.
    """
    # kagglehub sets no connection timeout: behind a firewall that drops packets it waits minutes.
    fault = unreachable(_KAGGLE)
    if fault is not None:
        raise DataError(f"Kaggle cannot be reached: {fault}")
    import kagglehub  # here, because most runs need no download, and it sets up its own logging
    from kagglehub import exceptions

    try:
        return Path(kagglehub.dataset_download(handle))
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    ) as error:
        raise DataError(f"the download failed: {error}") from error


def unreachable(url: str, seconds: float = _PATIENCE_SECONDS) -> str | None:
    """Return why an address gives no answer in time, or None if it answers anything at all."""
    faults: list[str] = []
    asking = threading.Thread(target=_ask, args=(url, seconds, faults), daemon=True)
    asking.start()
    asking.join(seconds)  # the look-up of the name obeys no timeout of the socket
    if asking.is_alive():
        return f"no answer in {seconds:g} s"
    return faults[0] if faults else None


def _ask(url: str, seconds: float, faults: list[str]) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError as answer:
        answer.close()  # a refusal is an answer
    except urllib.error.URLError as error:
        faults.append(str(error.reason))
    except OSError as error:
        faults.append(str(error))

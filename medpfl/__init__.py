"""Measure what federated-learning updates give away about medical images."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medpfl")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+unknown"

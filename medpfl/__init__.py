"""Measure what federated-learning updates give away about medical images."""

import os
from importlib.metadata import PackageNotFoundError, version

# Before torch starts its threads: by default they spin while they wait, and on a machine that does
# anything else a run then takes many times longer (measured: 41 against 2.8 s an image).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    __version__ = version("medpfl")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+unknown"

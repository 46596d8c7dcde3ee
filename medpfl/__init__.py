"""Measure what federated-learning updates give away about medical images."""

import os
from importlib.metadata import PackageNotFoundError, version

# Before torch starts its threads: those that wait spin, and beside other work a run then takes many
# times longer (measured: 41 against 2.8 s an image). Not to spin at all costs half of the speed on
# a machine that does nothing else.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

try:
    __version__ = version("medpfl")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+unknown"

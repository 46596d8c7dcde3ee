"""Measure what federated-learning updates give away about medical images."""

import os

# Before torch starts its threads: those that wait spin, and beside other work a run then takes many
# times longer (measured: 41 against 2.8 s an image). Not to spin at all costs half of the speed on
# a machine that does nothing else.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> str:
    # Looked up when asked for: a command must be ready for Ctrl-C before it imports anything.
    if name != "__version__":
        raise AttributeError(f"module 'medpfl' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medpfl")
    except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
        return "0+unknown"

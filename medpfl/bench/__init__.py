"""Measures the engine beside others on the same images; ``python -m medpfl.bench --help``."""

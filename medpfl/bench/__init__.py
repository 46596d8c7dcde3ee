"""Measures the engine beside what it replaces, in one process; `python -m medpfl.bench`."""

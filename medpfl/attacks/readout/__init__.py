"""Closed-form attacks of a malicious server on the model that it sent itself."""

from medpfl.attacks.readout.readout import (
    ImprintReadout,
    MicReadout,
    RowReadout,
    TrapReadout,
)

__all__ = ["ImprintReadout", "MicReadout", "RowReadout", "TrapReadout"]

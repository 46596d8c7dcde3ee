"""Read-outs in words: how many images they recover, and what guesses recover."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medpfl.report.tables import format_percent, format_rate

if TYPE_CHECKING:
    from medpfl.metrics.recovery import ReadoutSummary, Recovered

_NAMES = {"psnr_30": "PSNR > 30 dB", "psnr_40": "PSNR > 40 dB", "ssim_90": "SSIM > 0.9"}


def recovered_in_words(readout: ReadoutSummary) -> str:
    """Return the shares recovered in lines, the expected one and the guesses' below."""
    lines = [
        f"{_NAMES[name]}: {format_rate(r.share, readout.n, low=r.low, high=r.high)}"
        for name, r in readout.recovered.items()
    ]
    if readout.expected_share is not None:
        share = format_percent(readout.expected_share)
        lines.append(f"expected of as many rows and images: {share}")
    return "\n".join([*lines, _guesses(readout.recovered["psnr_30"])])


def readouts_in_words(readout: ReadoutSummary) -> str:
    """Return how many were handed in, and how many of them are of use."""
    handed_in = f"{readout.readouts} handed in for {readout.n} images"
    if readout.precision is None:
        return handed_in
    rate = format_rate(
        readout.precision,
        readout.readouts,
        low=readout.precision_low,
        high=readout.precision_high,
    )
    return f"{handed_in}; over 30 dB: {rate}"


def mic_in_words(readout: ReadoutSummary) -> str:
    """Return the share as MIC counts."""
    rate = format_rate(
        readout.mic_protocol,
        readout.n,
        low=readout.mic_protocol_low,
        high=readout.mic_protocol_high,
    )
    return f"{rate}; nearest true image, MSE < 0.1"


def _guesses(recovered: Recovered) -> str:
    shares = {
        "zeros": recovered.zeros,
        "batch mean": recovered.batch_mean,
        "dataset mean": recovered.dataset_mean,
    }
    told = ", ".join(f"{name} {format_percent(share)}" for name, share in shares.items())
    return f"of guesses > 30 dB: {told}"

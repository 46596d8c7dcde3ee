"""Read-outs in words: how many images they recover, and what guesses recover."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medpfl.report.tables import format_percent, format_rate

if TYPE_CHECKING:
    from medpfl.metrics.recovery import ReadoutSummary

_NAMES = {"psnr_30": "PSNR > 30 dB", "psnr_40": "PSNR > 40 dB", "ssim_90": "SSIM > 0.9"}


def in_rows(readout: ReadoutSummary) -> dict[str, str]:
    """Return what is to be said of a run's read-outs, a row each."""
    return {
        "recovered": _recovered(readout),
        "guesses > 30 dB": _guesses(readout),
        "read-outs": _handed_in(readout),
        "MIC protocol": _as_mic_counts(readout),
    }


def _recovered(readout: ReadoutSummary) -> str:
    lines = [
        f"{_NAMES[name]}: {format_rate(r.share, readout.n, low=r.low, high=r.high)}"
        for name, r in readout.recovered.items()
    ]
    if readout.expected_share is not None:
        share = format_percent(readout.expected_share)
        lines.append(f"expected to be alone in a row: {share}")
    return "\n".join(lines)


def _guesses(readout: ReadoutSummary) -> str:
    recovered = readout.recovered["psnr_30"]
    shares = {
        "zeros": recovered.zeros,
        "batch mean": recovered.batch_mean,
        "dataset mean": recovered.dataset_mean,
    }
    return ", ".join(f"{name} {format_percent(share)}" for name, share in shares.items())


def _handed_in(readout: ReadoutSummary) -> str:
    handed_in = f"{readout.readouts} for {readout.n} images"
    if readout.precision is None:
        return handed_in
    ends = {"low": readout.precision_low, "high": readout.precision_high}
    rate = format_rate(readout.precision, readout.readouts, **ends)
    return f"{handed_in}; of these over 30 dB\n{rate}"


def _as_mic_counts(readout: ReadoutSummary) -> str:
    r = readout
    rate = format_rate(r.mic_protocol, r.n, low=r.mic_protocol_low, high=r.mic_protocol_high)
    return f"{rate} (nearest, MSE < 0.1)"

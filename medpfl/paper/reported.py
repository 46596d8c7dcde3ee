"""The numbers that the papers report, to stand beside those measured here.

Source: arXiv 2311.06643 (BIBM 2023), Tables I to III. The journal paper (arXiv 2409.18907) adds
iDLG, and DLG, iDLG and GradInv on all datasets; its tables are not available here, so these cells
have no reported value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DATASETS = ("melanoma", "covid", "brain_mri")
REPORTED_IMAGES = 100
LEVELS = (100, 200, 300, 400)


@dataclass(frozen=True)
class Reported:
    """One row of Table I or II.

    Args:
        asr: share of the images with an SSIM of at least 0.9.
        ssim: mean SSIM, by the row's own protocol.
        mse: mean squared error; GradInv's is of normalised images.
        seconds: seconds an image.
        n: attacked images.
    """

    asr: float
    ssim: float
    mse: float
    seconds: float
    n: int = REPORTED_IMAGES


@dataclass(frozen=True)
class PaperRow:
    """One experiment of a table; its settings are in ``conf/paper/row``.

    Args:
        name: as in ``conf/paper/row``.
        label: what tables call it.
        protocol: the published SSIM that goes with it: cpl, dlg or gradinv.
        seconds: measured seconds an image on 2 CPU cores, for estimates; None where it needs a GPU.
        reported: by dataset.
    """

    name: str
    label: str
    protocol: str
    seconds: float | None
    reported: Mapping[str, Reported]


@dataclass(frozen=True)
class ReportedNoise:
    """One cell of Table III: a single image."""

    mse: float
    ssim: float


_CPL = {
    "melanoma": Reported(0.49, 0.50, 0.0762, 50.847),
    "covid": Reported(0.55, 0.55, 0.0641, 92.245),
    "brain_mri": Reported(0.76, 0.75, 0.0586, 103.12),
}
_DLG = {"melanoma": Reported(0.47, 0.48, 0.0957, 60.128)}
_UNTRAINED = {"melanoma": Reported(0.62, 0.9029, 0.9434, 6019.84)}
_TRAINED = {"melanoma": Reported(0.82, 0.9271, 0.8027, 4880.58)}

_ROWS = (
    PaperRow("cpl", "CPL", "cpl", 2.0, _CPL),
    PaperRow("dlg", "DLG", "dlg", 4.0, _DLG),
    PaperRow("idlg", "iDLG", "cpl", 3.0, {}),
    PaperRow("scale_free_cpl", "scale_free (CPL net)", "cpl", 0.2, {}),
    PaperRow("scale_free_dlg", "scale_free (DLG net)", "dlg", 1.0, {}),
    PaperRow("gradinv_untrained", "GradInv, untrained", "gradinv", None, _UNTRAINED),
    PaperRow("gradinv_trained", "GradInv, ImageNet", "gradinv", None, _TRAINED),
    PaperRow("gradinv_untrained_small", "GradInv, untrained, reduced", "gradinv", 60.0, {}),
    PaperRow("gradinv_trained_small", "GradInv, fine-tuned, reduced", "gradinv", 60.0, {}),
    PaperRow("noise_cpl", "CPL", "cpl", 2.0, {}),
    PaperRow("noise_scale_free", "scale_free", "cpl", 1.0, {}),
    PaperRow("frontier", "scale_free", "cpl", 1.0, {}),
    PaperRow("noise_adaptive", "scale_free, knows noise and images", "cpl", 1.0, {}),
    PaperRow("mic_2d_6", "MIC, 2D, 4 of 6 clients, running update", "cpl", 1.0, {}),
    PaperRow("mic_2d_6_mean", "MIC, 2D, 6 clients, mean", "cpl", 2.0, {}),
    PaperRow("mic_2d_12", "MIC, 2D, 4 of 12 clients, running update", "cpl", 2.0, {}),
    PaperRow("mic_2d_12_mean", "MIC, 2D, 12 clients, mean", "cpl", 3.0, {}),
    PaperRow("mic_3d_12", "MIC, slabs, 4 of 12 clients, running update", "cpl", 2.0, {}),
    PaperRow("mic_3d_12_mean", "MIC, slabs, 12 clients, mean", "cpl", 3.0, {}),
    PaperRow("imprint_2d", "imprint, 2D, 12 clients, mean", "cpl", 3.0, {}),
    PaperRow("imprint_3d", "imprint, 3D, 12 clients, mean", "cpl", 4.0, {}),
)

ROWS: Mapping[str, PaperRow] = MappingProxyType({row.name: row for row in _ROWS})


MIC_REPORTED: Mapping[str, float] = MappingProxyType(
    {
        **dict.fromkeys(("mic_2d_6", "mic_2d_6_mean"), 0.3519),
        **dict.fromkeys(("mic_2d_12", "mic_2d_12_mean"), 0.3721),
        **dict.fromkeys(("mic_3d_12", "mic_3d_12_mean"), 0.6292),
    }
)
"""Shares of images reconstructed, by row: "Client Security Alone Fails", abstract.

None of them is a whole number of 64, 96 or 192 images; how many were counted is not said."""


def _noise(*pairs: tuple[float, float]) -> tuple[ReportedNoise, ...]:
    return tuple(ReportedNoise(mse, ssim) for mse, ssim in pairs)


TABLE_III: Mapping[str, tuple[ReportedNoise, ...]] = MappingProxyType(
    {
        "melanoma": _noise(
            (0.0762, 0.50), (0.1306, 0.0154), (0.1468, 0.0131), (0.1497, 0.0121), (0.1503, 0.0101)
        ),
        "covid": _noise(
            (0.0641, 0.55), (0.0013, 0.9815), (0.0157, 0.7410), (0.0206, 0.7000), (0.0578, 0.4605)
        ),
        "brain_mri": _noise(
            (0.0586, 0.75), (0.0207, 0.6657), (0.0686, 0.2383), (0.0300, 0.3661), (0.1705, 0.0699)
        ),
    }
)
"""By dataset: without noise (Table I's means), then at each of `LEVELS` a single image."""

SINGLE_IMAGE: Mapping[str, float] = MappingProxyType(
    {"melanoma": 55 / 1000, "covid": 30 / 251, "brain_mri": 855 / 5712}
)
"""Place of Table III's one image in the class-ordered split, as a share of the split's length."""

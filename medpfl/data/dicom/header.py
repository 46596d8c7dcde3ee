"""What is read of a DICOM header: numbers and known words; of the patient a secret's hash."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medpfl.data.volumes.grid import check_memory
from medpfl.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_MAGIC = b"DICM"
_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# The object identifier of an enveloped message, with which an encrypted DICOM file begins (PS3.15).
_ENVELOPED = bytes.fromhex("2a864886f70d010703")
_SHORTEST_WORD = 3
_CALLED = ("PatientName", "PatientID")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the reader goes by.

    Args:
        rows: pixels from top to bottom.
        columns: pixels from left to right.
        frames: pictures in the file.
        photometric: what the numbers stand for, one of DICOM's words.
        patient: a salted hash of who it is, empty where the header does not say.
        series: a salted hash of the series it belongs to, empty where the header does not say.
        number: of the picture in its series, or None where the header does not say.
        of: how many pictures its acquisition has, or None likewise.
        names: salted hashes of what the patient is called as a whole, name and number.
        words: salted hashes of the words of the patient's name.
    """

    rows: int
    columns: int
    frames: int
    photometric: str
    patient: str = field(repr=False)
    series: str = field(repr=False)
    number: int | None
    of: int | None
    names: frozenset[str] = field(repr=False)
    words: frozenset[str] = field(repr=False)

    @property
    def grey(self) -> bool:
        """Whether a pixel is one number."""
        return self.photometric in _GREY


def may_be_dicom(path: Path) -> bool:
    """Tell by a file's first bytes, or by its name, whether it is meant to be DICOM.

    What cannot be opened is: reading it will say why.
    """
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == _MAGIC
    except OSError:
        return True


def read_header(path: Path, salt: bytes) -> Header | None:
    """Read what is needed of a header.

    Args:
        path: the file.
        salt: the secret of hashes.

    Returns:
        None of files without pixels, such as reports and DICOMDIR.

    Raises:
        DataError: what is wrong, without the file's name. What pydicom raises on damaged files
            comes through as it is.
    """
    data = opened(path, pixels=False)
    if "Rows" not in data or "Columns" not in data:
        _check_without_pixels(data)
        return None
    rows, columns, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    check_memory((rows, columns, frames, int(data.get("SamplesPerPixel") or 1)), "its header")
    photometric = str(data.get("PhotometricInterpretation", ""))
    if photometric not in (*_GREY, *_COLOUR):
        raise DataError(
            "its photometric interpretation is none that is read here: "
            f"{', '.join((*_GREY, *_COLOUR))}"
        )
    check_syntax(data)
    return Header(
        rows=rows,
        columns=columns,
        frames=frames,
        photometric=photometric,
        patient=_patient(data, salt),
        series=hashed(salt, "series", str(data.get("SeriesInstanceUID", ""))),
        number=_whole(data, "InstanceNumber"),
        of=_whole(data, "ImagesInAcquisition"),
        names=frozenset(whole_name(salt, f"{data.get(key) or ''}") for key in _CALLED) - {""},
        words=hashed_words(salt, f"{data.get('PatientName') or ''}"),
    )


def opened(path: Path, *, pixels: bool) -> Dataset:
    """Open a DICOM file.

    Raises:
        DataError: it is encrypted.
    """
    import pydicom

    with path.open("rb") as file:
        start = file.read(132)
        if start[:1] == b"\x30" and _ENVELOPED in start:
            raise DataError(
                "it is encrypted (an enveloped message, as in Secure DICOM): decrypt it first"
            )
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=not pixels)


def check_syntax(data: Dataset) -> None:
    """Refuse a transfer syntax for which nothing is installed, by its name in DICOM.

    Raises:
        DataError: names it, and what reads it.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError("its header does not say how pixels are encoded (Transfer Syntax UID)")
    # Only what DICOM lists is named: anything may stand in a header.
    name = syntax.name if syntax in AllTransferSyntaxes else "a private one"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"its transfer syntax, {name}, is none that is read here: convert the file, for "
            "instance with gdcmconv --raw"
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"its transfer syntax is {name}, which needs a decoder: pip install 'medpfl[dicom]'"
        )


def _check_without_pixels(data: Dataset) -> None:
    """Refuse a header that ends too early, unless its kind of file has no pixels anyway."""
    kind = data.file_meta.get("MediaStorageSOPClassUID") or data.get("SOPClassUID")
    name = "" if kind is None else kind.name
    if not name or name == str(kind) or "Image" in name:
        raise DataError("its header ends before it says how many pixels there are: cut short")


def hashed(salt: bytes, purpose: str, text: str) -> str:
    """Return a text's salted hash, and nothing for nothing."""
    text = text.strip()
    if not text:
        return ""
    return hmac.new(
        salt, f"{purpose}:{text}".encode("utf-8", "replace"), hashlib.sha256
    ).hexdigest()


def hashed_words(salt: bytes, text: str) -> frozenset[str]:
    """Return the salted hashes of a text's words, whatever their case."""
    words = (word for word in re.split(r"[\W_]+", text.casefold()) if len(word) >= _SHORTEST_WORD)
    return frozenset(hashed(salt, "word", word) for word in words)


def whole_name(salt: bytes, text: str) -> str:
    """Return the salted hash of a text's words, whatever their order and case."""
    return hashed(salt, "name", "".join(sorted(re.split(r"[\W_]+", text.casefold()))))


def _whole(data: Dataset, name: str) -> int | None:
    """Return a whole number, or None where there is none: nothing but a hint depends on it."""
    try:
        return int(data.get(name))
    except (ValueError, TypeError):
        return None


def _patient(data: Dataset, salt: bytes) -> str:
    number = f"{data.get('PatientID') or ''}".strip()
    if number:
        return hashed(salt, "patient", f"{data.get('IssuerOfPatientID') or ''}|{number}")
    name = f"{data.get('PatientName') or ''}".strip()
    return hashed(salt, "patient", f"{name}|{data.get('PatientBirthDate') or ''}") if name else ""

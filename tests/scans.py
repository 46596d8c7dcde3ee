"""Tiny DICOM files and volumes of patients who do not exist, their names in every field."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

ROOT_UID = "1.2.826.0.1.3680043.8.498.4711"


def dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    patient: str = "Quuxington^Zebediah",
    number: str = "P-0815-4711",
    series: int = 1,
    syntax: str = ExplicitVRLittleEndian,
    **fields: Any,
) -> Path:
    """Write one file; pixels are `(rows, columns)`, `(frames, rows, columns)`, or end in 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = pixels.shape[-1] == 3 and pixels.ndim > 2
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.9.{series}"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = f"{ROOT_UID}.9.{series}"
    data.SeriesInstanceUID = f"{ROOT_UID}.{series}"
    data.StudyInstanceUID = f"{ROOT_UID}.77"
    data.PatientName, data.PatientID = patient, number
    data.PatientBirthDate, data.StudyDate = "19500131", "20240229"
    data.InstitutionName = "Spital Krummbein"
    data.ReferringPhysicianName = "Vogelsang^Wilhelmina"
    data.ImageComments = "as told by Balthasar Kaputtke"
    data.SoftwareVersions = "Oddlington 1"
    data.add_new(0x00091001, "LO", "Drosselbart")
    data.Modality = "OT"
    data.Rows, data.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    if pixels.ndim - colours == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colours else 1
    data.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    if syntax != ExplicitVRLittleEndian:  # what cannot be encoded here is only called so
        meta.TransferSyntaxUID = syntax
        raw = path.read_bytes()
        old, new = ExplicitVRLittleEndian.encode(), syntax.encode()
        padded = new + b"\0" * (len(new) % 2)
        place = raw.index(old + b"\0" * (len(old) % 2)) - 2
        length = len(old) + len(old) % 2
        raw = raw[:place] + len(padded).to_bytes(2, "little") + padded + raw[place + 2 + length :]
        path.write_bytes(raw)
    return path


def series(
    folder: Path,
    values: np.ndarray,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 2.0),
    along: Sequence[float] = (1, 0, 0, 0, 1, 0),
    leave_out: Sequence[int] = (),
    **fields: Any,
) -> Path:
    """Write `(slices, rows, columns)` as a series; files are not in the order of slices."""
    normal = np.cross(along[:3], along[3:])
    for number, pixels in enumerate(values):
        if number in leave_out:
            continue
        corner = np.array([-10.0, -20.0, 30.0]) + number * spacing[2] * normal
        dicom(
            folder / f"IM{(7 * number) % 101:03d}",
            pixels,
            ImagePositionPatient=[f"{v:g}" for v in corner],
            ImageOrientationPatient=list(along),
            PixelSpacing=[spacing[1], spacing[0]],
            **fields,
        )
    return folder


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.eye(4))
    # Not by the quaternion, which holds no shear, and no singular matrix.
    image.set_sform(np.diag([2.0, 2, 3, 1]) if affine is None else affine, code=1)
    image.set_qform(None, code=0)
    for name, value in header.items():
        image.header[name] = value
    path.write_bytes(image.to_bytes() if path.suffix != ".gz" else gzip.compress(image.to_bytes()))
    return path


def blob(*shape: int, seed: int = 0) -> np.ndarray:
    """Return uint8 noise on a slope: no two places are alike, and no axis is another."""
    slope = sum(
        (axis + 1) * index / side
        for axis, (index, side) in enumerate(zip(np.indices(shape), shape, strict=True))
    )
    noise = np.random.default_rng(seed).random(shape)
    return np.round(30 * slope + 20 * noise).astype(np.uint8)

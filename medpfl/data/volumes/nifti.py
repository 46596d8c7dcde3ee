"""NIfTI files: volumes read, and reconstructions of volumes written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from torch import Tensor

from medpfl._atomic import replacing
from medpfl.data.volumes.grid import Array, Grid, canonical, check_affine, check_memory
from medpfl.errors import DataError
from medpfl.geometry import Geometry

SUFFIXES = (".nii", ".nii.gz")


def check_nifti(path: Path) -> None:
    """Look at a NIfTI file's header alone, and refuse what `read_nifti` could not read.

    Raises:
        DataError: what is wrong, without the file's name.
    """
    _checked(path)


def read_nifti(path: Path) -> Grid:
    """Read a volume, with the header's slope and intercept applied.

    Raises:
        DataError: what is wrong, without the file's name. What nibabel raises on damaged files
            comes through as it is.
    """
    import nibabel

    affine = _checked(path)
    values = np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)
    return canonical(values.reshape(values.shape[:3]), affine)


def _checked(path: Path) -> Array:
    """Return the affine of a header that is fit for reading."""
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti2Image):
        raise DataError("not a NIfTI file, whatever its name says")
    header, shape = image.header, image.shape
    if len(shape) != 3 and not (len(shape) > 3 and max(shape[3:]) == 1):
        raise DataError(
            f"it has {len(shape)} dimensions ({' x '.join(map(str, shape))}): a volume has 3. "
            "Split a series over time into volumes, a file each"
        )
    if header.get_data_dtype().kind not in "iufb":
        raise DataError("its voxels are colours or complex numbers: give volumes of grey levels")
    if not (int(header["sform_code"]) or int(header["qform_code"])):
        raise DataError(
            "it has no affine (sform_code and qform_code are 0): which side is the patient's left "
            "is not known. Export it again, or set one, for instance with fslorient"
        )
    affine: Array = np.asarray(image.affine, dtype=np.float64)
    check_affine(affine)
    check_memory(shape[:3], "its header")
    return affine


def write_nifti(path: Path, volume: Tensor, geometry: Geometry) -> None:
    """Write a volume as ``.nii.gz``, its axes as the source had them.

    Without resampling, cutting and padding its affine is the source's. The header holds where the
    voxels lie and nothing else of the source's. The file is there whole or not at all.

    Args:
        path: the file.
        volume: `(C, D, H, W)` in [0, 1]; of several channels the mean is written.
        geometry: where its voxels lie.

    Raises:
        OSError: the file cannot be written.
    """
    import nibabel
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    values = volume.detach().cpu().float().mean(0).numpy().transpose(2, 1, 0)
    turns = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(geometry.stored))
    affine = geometry.affine.numpy() @ inv_ornt_aff(turns, values.shape)
    image = nibabel.Nifti1Image(np.ascontiguousarray(apply_orientation(values, turns)), affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(image.to_bytes())

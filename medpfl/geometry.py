"""Where the voxels of a volume lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of one volume `(C, D, H, W)` lie in the patient.

    Args:
        affine: `(4, 4)` float64, invertible: from the place `(w, h, d, 1)` of a voxel to
            millimetres towards the patient's right, anterior and superior (RAS+).
        stored: how the source's axes ran, such as ``LPS``: what is written goes by it again.
    """

    affine: Tensor
    stored: str = "RAS"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres between neighbouring voxels along W, H and D."""
        x, y, z = self.affine[:3, :3].norm(dim=0).tolist()
        return x, y, z

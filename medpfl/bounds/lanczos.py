"""Lanczos' algorithm on many starts side by side, each by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.bounds.pixels import GramProduct

_BROKEN_OFF = 1e-12  # of the matrix's size: what is left of a vector after that is rounding


@dataclass(frozen=True, kw_only=True)
class Runs:
    """m tridiagonal matrices T = V'AV of k steps, one for each start.

    Args:
        diagonal: `(m, k)`.
        beside: `(m, k)`: T's off-diagonal, and last what would have followed.
        basis: `(m, k, d)`, V' of each; zero after its space was exhausted.
        lengths: `(m,)`, the norms of the starts.
    """

    diagonal: Tensor
    beside: Tensor
    basis: Tensor
    lengths: Tensor

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return eigenvalues `(m, k)`, ascending, and eigenvectors `(m, k, k)` of T."""
        values, vectors = torch.linalg.eigh(self.tridiagonal())
        return values, vectors

    def tridiagonal(self) -> Tensor:
        """Return T, `(m, k, k)`."""
        off = torch.diag_embed(self.beside[:, :-1], 1)
        return torch.diag_embed(self.diagonal) + off + off.mT

    def shortened(self, steps: int) -> Runs:
        """Return the runs as they were after so many steps."""
        return Runs(
            diagonal=self.diagonal[:, :steps],
            beside=self.beside[:, :steps],
            basis=self.basis[:, :steps],
            lengths=self.lengths,
        )


def lanczos(product: GramProduct, starts: Tensor, steps: int) -> Runs:
    """Run Lanczos with full reorthogonalisation (Golub and Van Loan 2013, section 10.1).

    Args:
        product: of rows `(m, d)` with a symmetric matrix A.
        starts: `(m, d)`, none of them zero.
        steps: k, at most d.
    """
    lengths = starts.norm(dim=1)
    vector = starts / lengths.unsqueeze(1)
    basis: list[Tensor] = []
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    size = torch.zeros_like(lengths)
    for _ in range(steps):
        basis.append(vector)
        after = product(vector)
        diagonal.append((after * vector).sum(1))
        size = torch.maximum(size, after.norm(dim=1))
        after = _orthogonal(_orthogonal(after, basis), basis)
        norm = after.norm(dim=1)
        going_on = norm > _BROKEN_OFF * size
        norm = torch.where(going_on, norm, torch.zeros_like(norm))
        beside.append(norm)
        vector = torch.where(going_on.unsqueeze(1), after / norm.unsqueeze(1), 0.0)
    return Runs(
        diagonal=torch.stack(diagonal, 1),
        beside=torch.stack(beside, 1),
        basis=torch.stack(basis, 1),
        lengths=lengths,
    )


def _orthogonal(rows: Tensor, basis: list[Tensor]) -> Tensor:
    """Take out of each row what its own basis holds; twice is enough."""
    held = torch.stack(basis, 1)
    return rows - ((held @ rows.unsqueeze(2)).mT @ held).squeeze(1)

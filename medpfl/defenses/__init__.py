"""What a client or a server does to an update against reconstruction."""

from medpfl.defenses.base import Defense, DefenseReport
from medpfl.defenses.noise import Gaussian, Laplace, MedPFLLevel, Noise, NoNoise
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import Perturbation

__all__ = [
    "Defense",
    "DefenseReport",
    "Gaussian",
    "Laplace",
    "MedPFLLevel",
    "NoDefense",
    "NoNoise",
    "Noise",
    "Perturbation",
]

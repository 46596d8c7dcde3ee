"""What a client or a server does to an update against reconstruction."""

from medpfl.defenses.base import Defense, DefenseReport, StatefulDefense, TrainingDefense
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.composition import ClientState, Defenses
from medpfl.defenses.noise import Gaussian, Laplace, MedPFLLevel, Noise, NoNoise
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import Perturbation

__all__ = [
    "ClientState",
    "Clipping",
    "Defense",
    "DefenseReport",
    "Defenses",
    "Gaussian",
    "Laplace",
    "MedPFLLevel",
    "NoDefense",
    "NoNoise",
    "Noise",
    "Perturbation",
    "StatefulDefense",
    "TrainingDefense",
]

"""What a client or a server does to an update against reconstruction."""

from medpfl.defenses.base import Defense, DefenseReport, StatefulDefense, TrainingDefense
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.composition import ClientState, Defenses
from medpfl.defenses.dp_sgd import DpSgd
from medpfl.defenses.inspect import Inspect
from medpfl.defenses.masking import Masking
from medpfl.defenses.noise import Gaussian, Laplace, MedPFLLevel, Noise, NoNoise
from medpfl.defenses.none import NoDefense
from medpfl.defenses.perturbation import Perturbation
from medpfl.defenses.pruning import Pruning
from medpfl.defenses.quantise import Quantise
from medpfl.defenses.randomk import RandomK
from medpfl.defenses.secure_aggregation import SecureAggregation
from medpfl.defenses.sign import Sign
from medpfl.defenses.soteria import Soteria
from medpfl.defenses.topk import TopK

__all__ = [
    "ClientState",
    "Clipping",
    "Defense",
    "DefenseReport",
    "Defenses",
    "DpSgd",
    "Gaussian",
    "Inspect",
    "Laplace",
    "Masking",
    "MedPFLLevel",
    "NoDefense",
    "NoNoise",
    "Noise",
    "Perturbation",
    "Pruning",
    "Quantise",
    "RandomK",
    "SecureAggregation",
    "Sign",
    "Soteria",
    "StatefulDefense",
    "TopK",
    "TrainingDefense",
]

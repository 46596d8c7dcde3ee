"""The federation: server, clients, and what passes between them."""

from medpfl.federated.capturing import Capturing
from medpfl.federated.client import Client
from medpfl.federated.pretrain import AdamSteps, FineTune, NoPretraining, Pretraining
from medpfl.federated.server import Federation
from medpfl.federated.simulation import Simulated, Simulation

__all__ = [
    "AdamSteps",
    "Capturing",
    "Client",
    "Federation",
    "FineTune",
    "NoPretraining",
    "Pretraining",
    "Simulated",
    "Simulation",
]

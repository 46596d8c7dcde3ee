"""The federation: server, clients, and what passes between them."""

from medpfl.federated.client import ClientFacts, FedSGDClient
from medpfl.federated.pretrain import AdamSteps, FineTune, NoPretraining, Pretraining
from medpfl.federated.server import Federation

__all__ = [
    "AdamSteps",
    "ClientFacts",
    "FedSGDClient",
    "Federation",
    "FineTune",
    "NoPretraining",
    "Pretraining",
]

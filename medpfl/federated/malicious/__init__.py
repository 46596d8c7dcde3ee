"""Servers that change the model before clients get it, and keep what they need to read updates."""

from medpfl.federated.malicious.base import Awaited, HonestServer, Planting, Server
from medpfl.federated.malicious.imprint import ImprintServer
from medpfl.federated.malicious.loki import LokiServer
from medpfl.federated.malicious.mic import MicServer
from medpfl.federated.malicious.planter import Planter
from medpfl.federated.malicious.traps import TrapServer

__all__ = [
    "Awaited",
    "HonestServer",
    "ImprintServer",
    "LokiServer",
    "MicServer",
    "Planter",
    "Planting",
    "Server",
    "TrapServer",
]

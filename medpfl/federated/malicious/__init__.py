"""Servers that change the model before clients get it, and keep what they need to read updates."""

from medpfl.federated.malicious.base import HonestServer, Planting, Server
from medpfl.federated.malicious.imprint import ImprintServer
from medpfl.federated.malicious.planter import Planter

__all__ = ["HonestServer", "ImprintServer", "Planter", "Planting", "Server"]

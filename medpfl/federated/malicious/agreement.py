"""Server, threat model and attack must speak of the same thing."""

from __future__ import annotations

from medpfl.attacks import Attack
from medpfl.attacks.readout import RowReadout
from medpfl.errors import ConfigurationError, ThreatModelError
from medpfl.federated.capturing import Capturing
from medpfl.federated.malicious.base import Server
from medpfl.threat import ThreatModel


def check_server(server: Server, threat: ThreatModel, attack: Attack, capturing: Capturing) -> None:
    """Refuse what contradicts itself.

    Raises:
        ThreatModelError: the server does more than the threat model lets it.
        ConfigurationError: the attack reads what nobody has planted.
    """
    malicious = threat.server == "malicious"
    if not server.is_honest and not malicious:
        raise ThreatModelError(
            f"server={server.name} changes the model that clients get, and "
            f"threat.server={threat.server} only looks. Choose threat=malicious, or an attack that "
            "needs no such server, with server=honest"
        )
    if server.is_honest and malicious:
        raise ConfigurationError(
            "threat.server=malicious, and server=honest sends the model as it is: choose "
            "server=imprint, for instance, or threat=honest_but_curious"
        )
    if isinstance(attack, RowReadout) and not attack.fits(server.plants):
        planted = "nothing" if server.is_honest else f"what server={server.name} has"
        raise ConfigurationError(
            f"attack={attack.name} reads the rows of server={attack.name}, and {planted} is "
            f"planted: choose server={attack.name}, or another attack"
        )
    if not server.is_honest and capturing.parameters is not None:
        raise ConfigurationError(
            f"capture.parameters={list(capturing.parameters)}: server={server.name} reads the rows "
            "that it put into the model, which have their own names: leave capture.parameters out"
        )
    if threat.aggregation == "running" and not isinstance(attack, RowReadout):
        raise ConfigurationError(
            f"threat.aggregation=running is no mean of updates, and attack={attack.name} matches "
            "means: choose threat.aggregation=secure, or an attack that reads planted rows"
        )
    if server.wants_public and "auxiliary" not in threat.granted:
        knows = ",".join([*threat.granted, "auxiliary"])
        raise ThreatModelError(
            f"server={server.name} with server.auxiliary=dataset learns from public images: grant "
            f"them with 'threat.knows=[{knows}]', or choose server.auxiliary=normal"
        )


def check_captured(attack: Attack) -> None:
    """Refuse to read rows off captures from files, which hold no server's secrets.

    Raises:
        ConfigurationError: the attack does.
    """
    if isinstance(attack, RowReadout):
        raise ConfigurationError(
            f"attack={attack.name} reads rows that a malicious server planted, and captures do not "
            "hold its secrets: use source=simulation, or another attack. What is planted in a "
            "captured model, medpfl-inspect finds"
        )

"""Secure aggregation: the server sees masked updates and their exact sum.

A simulation of Bonawitz et al. 2017, in the order in which it is read: settings and entry point
(`secure_aggregation`), what comes out (`aggregated`, `cost`), one run (`protocol`, `client`,
`server`, `messages`), real numbers in a ring (`layout`, `fixed_point`), and what it is built from
(`masks`, `sharing`, `sealing`, `agreement`, `derivation`). Keys and sealed messages are by the
`cryptography` package; the protocol around them is not audited cryptography.
"""

from medpfl.defenses.secure_aggregation.aggregated import Aggregated, ServerView
from medpfl.defenses.secure_aggregation.cost import Cost, PhaseCost
from medpfl.defenses.secure_aggregation.secure_aggregation import SecureAggregation

__all__ = ["Aggregated", "Cost", "PhaseCost", "SecureAggregation", "ServerView"]

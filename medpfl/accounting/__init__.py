"""What noise costs in differential privacy: epsilon of releases, and how much of a budget is left.

Nothing here needs torch. A guarantee holds for clipped contributions alone (`Mechanism`).
"""

from medpfl.accounting.calibration import noise_multiplier_for
from medpfl.accounting.epsilon import Accountant, epsilon, profile
from medpfl.accounting.ledger import Ledger
from medpfl.accounting.mechanism import Mechanism, Releases

__all__ = [
    "Accountant",
    "Ledger",
    "Mechanism",
    "Releases",
    "epsilon",
    "noise_multiplier_for",
    "profile",
]

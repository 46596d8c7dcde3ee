"""Attacks that know the defense: its facts decide through what they match.

Granted by ``threat.knows=[defense]``. One mechanism a file; each says how the parts and the search
of an attack change where it is told of such a part of a defense.
"""

from medpfl.attacks.adaptation.adapted import adapted
from medpfl.attacks.adaptation.summed import matched_through

__all__ = ["adapted", "matched_through"]

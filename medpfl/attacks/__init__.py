"""Attacks: from observations to reconstructions, without any ground truth."""

from medpfl.attacks.base import Attack, AttackContext
from medpfl.attacks.gradient_matching import GradientMatching

__all__ = ["Attack", "AttackContext", "GradientMatching"]

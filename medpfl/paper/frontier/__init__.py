"""The frontier: what each defense costs, and what leaks to whoever does and does not know it."""

from medpfl.paper.frontier.product import Frontier

__all__ = ["Frontier"]

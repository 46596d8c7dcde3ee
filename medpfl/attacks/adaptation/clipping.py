"""Clipping: the length of an update says nothing more, or that of each of its tensors."""

from __future__ import annotations

from dataclasses import replace

from medpfl.attacks.adaptation.factors import Factors
from medpfl.attacks.adaptation.through import through_of
from medpfl.attacks.composition import Parts, Search
from medpfl.attacks.problem import Problem
from medpfl.types import DefenseFacts


def through_clipping(
    facts: DefenseFacts, parts: Parts, search: Search, problem: Problem
) -> tuple[Parts, Search]:
    """Compare directions: of the whole update, or tensor by tensor where each is clipped.

    Lengths below the bound would tell a little more; that of a tensor is one number of thousands.
    A distance that compares directions of whole updates stays as it is where these are clipped, and
    closed forms stay, too: nothing that they compute with depends on the length, up to a factor.
    """
    each = getattr(facts, "per", "update") == "layer"
    through = through_of(parts.distance)
    if not each and through.factors.free:
        return parts, search
    factors = Factors(free=True, each=each or through.factors.each)
    return replace(parts, distance=replace(through, factors=factors)), search

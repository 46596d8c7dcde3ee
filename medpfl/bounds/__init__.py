"""Bounds that no attack exceeds. Modules are imported by name: not all of them need torch."""

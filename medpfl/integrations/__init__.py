"""Capture the updates of federations that run elsewhere, as they pass by."""

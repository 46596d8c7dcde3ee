"""Volumes: grids with a place in the patient, and the files that hold them."""

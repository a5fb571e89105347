"""Clients that are many, impatient, slow or hostile, and what is watched while they are there."""

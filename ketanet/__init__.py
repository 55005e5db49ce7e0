"""Functional connectivity network mapping, from coordinates to a tested network."""

__version__ = "0.1.0"
